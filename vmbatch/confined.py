"""Programs that look into a disk image, which is data of somebody else: without root, and without a mount in the host.

Where we are root they are the user `nobody` with a group that nothing else has: they reach what is lent to that group, and
no other process reaches them. qemu-storage-daemon shows a part of the image as a file (FUSE), in a mount namespace of its
own that ends with it; our process never looks through that mount.
"""

import json
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmbatch.errors import OfferError, SiteError
from vmbatch.model import printable
from vmbatch.pids import identify
from vmbatch.process import Completed, run, serving

_EXPORT_S = 150  # longest life of the daemon; also the limit of processor time
_MEMORY = 1 << 30
_STACK = 2 << 20  # of each thread
_GROUPS = 0x7F000000  # above what sites and container tools give out
_SECTOR = 512
_BLOCK = 1 << 16  # read at once
_HEAD = 18 * _BLOCK  # holds a usual partition table and the beginning of a first partition at 1 MiB


@dataclass(frozen=True, slots=True)
class Image:
    """A disk image while it is lent to helpers. size: bytes, as a guest sees it. group: None where we are not root."""

    path: Path
    format: str
    size: int
    group: int | None
    folder: Path  # ours; helpers may pass through it


@contextmanager
def lend(path: Path, format: str, work: Path) -> Iterator[Image]:
    """Open an image (qcow2 or raw) to helpers for a with block, and make a folder below `work` for what they need.

    Others must be able to pass through the folders above both, and to read the image's base. Raises SiteError.
    """
    group = _GROUPS + os.getpid() if os.geteuid() == 0 else None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SiteError(f"cannot open {path}: {error.strerror}") from error
    try:
        size = _virtual_size(handle, path, format)
        with _folder(work, group) as folder, _opened(handle, group):
            yield Image(path, format, size, group, folder)
    finally:
        os.close(handle)


def _virtual_size(handle: int, path: Path, format: str) -> int:
    """qcow2: bytes 24 to 31 of the header (QEMU's docs/interop/qcow2.txt)."""
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise SiteError(f"{path} is no regular file")
    if format == "raw":
        return status.st_size
    head = os.pread(handle, 32, 0)
    if format != "qcow2" or len(head) < 32 or head[:4] != b"QFI\xfb":
        raise SiteError(f"{path} is not what was expected: an image of format {format}", "formats are qcow2 and raw")
    return int.from_bytes(head[24:32], "big")


@contextmanager
def _folder(work: Path, group: int | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".image-", dir=work))
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        _give(handle, group, 0o710)
        os.close(handle)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _opened(handle: int, group: int | None) -> Iterator[None]:
    before = os.fstat(handle)
    try:
        _give(handle, group, 0o660)
        yield
    finally:
        if group is not None:
            os.fchmod(handle, stat.S_IMODE(before.st_mode))
            os.fchown(handle, -1, before.st_gid)


def _give(handle: int, group: int | None, mode: int) -> None:
    if group is not None:
        os.fchown(handle, -1, group)
        os.fchmod(handle, mode)


def leave(image: Image, name: str, data: bytes, *, writable: bool = False) -> Path:
    """Leave a file for helpers in their folder."""
    path = image.folder / name
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        _give(handle, image.group, 0o660 if writable else 0o640)
    return path


def tool(image: Image, words: Sequence[str], *, largest: int, stdin: bytes = b"", timeout_s: float = 30) -> Completed:
    """Run a helper in its folder, to its end; the caller looks at its status. `largest`: bytes of a file that it writes.

    Raises SiteError where it cannot be run or does not end in time.
    """
    try:
        return run(
            [*_limits(image, largest, "--no-new-privs"), *words],
            stdin=stdin,
            timeout_s=timeout_s,
            cwd=image.folder,
            check=False,
        )
    except SiteError as error:
        raise SiteError(f"{words[0]} for {image.path}: {error.message}", error.hint) from error


def _limits(image: Image, largest: int, *more: str) -> list[str]:
    words = ["setpriv", "--pdeathsig", "KILL", *more]
    if image.group is not None:
        words += ["--reuid", str(_nobody()), "--regid", str(image.group), "--clear-groups"]
    # no limit of addresses: QEMU's threads reserve far more than they use
    words += ["prlimit", "--core=0", f"--cpu={_EXPORT_S}", f"--data={_MEMORY}", f"--stack={_STACK}", f"--fsize={largest}"]
    return words


def _nobody() -> int:
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return 65534


def reader(image: Image) -> Callable[[int, int], bytes]:
    """Return read_at(offset, length), which reads what a guest would see; short at the disk's end."""
    head = _read(image, 0, _HEAD)

    def read_at(offset: int, length: int) -> bytes:
        if offset + length <= len(head) or len(head) < _HEAD:
            return head[offset : offset + length]
        return _read(image, offset, length)

    return read_at


def _read(image: Image, offset: int, length: int) -> bytes:
    start = offset & -_SECTOR
    length = min(length + offset - start, image.size - start)
    if length <= 0:
        return b""
    out = leave(image, "part", b"", writable=True)
    try:
        source = f"if=json:{json.dumps(_part(image, start, -(-length // _SECTOR) * _SECTOR))}"
        words = ["qemu-img", "dd", "-f", "raw", "-O", "raw", f"bs={_BLOCK}", source, f"of={out}"]
        done = tool(image, words, largest=length + _BLOCK)
        if done.status:
            raise _failure(image, done.stderr.decode(errors="replace"))
        return out.read_bytes()[offset - start : length]
    finally:
        out.unlink()


def _part(image: Image, start: int, size: int) -> dict[str, object]:
    """Name a part of the disk for QEMU's programs: the image's format is never guessed. Whole sectors only."""
    file = {"driver": "file", "filename": str(image.path)}
    disk = {"driver": image.format, "cache": {"no-flush": True}, "file": file}
    return {"driver": "raw", "offset": start, "size": size & -_SECTOR, "file": disk}


def _failure(image: Image, words: str) -> SiteError:
    said = f"{image.path}: {printable(words.strip(), 500)}"
    if "Permission denied" in words and "fuse" not in words.lower():
        return OfferError(said, "its base must be readable by everybody, and the folders above both be open")
    return SiteError(said, "apt-get install fuse3; modprobe fuse" if "fuse" in words.lower() else "")


@contextmanager
def export(image: Image, start: int, size: int, *, more: int) -> Iterator[str]:
    """Show bytes of the image as a file, for a with block. Yields the file's path, which helpers alone may open.

    `more`: how many bytes will be written, about. They are not forced to the disk, as with an overlay's own cache.
    Raises SiteError; an error at the end means that what was written may be lost.
    """
    mount = leave(image, "disk", b"", writable=True)
    part = {**_part(image, start, size), "node-name": "part"}
    shown = {
        "type": "fuse",
        "id": "e",
        "node-name": "part",
        "mountpoint": str(mount),
        "writable": True,
        "allow-other": "off",
    }
    daemon = ["qemu-storage-daemon", "--blockdev", json.dumps(part), "--export", json.dumps(shown)]
    daemon += ["--chardev", "stdio,id=m", "--monitor", "chardev=m"]  # the last: it greets when all else stands
    largest = image.path.stat().st_size + 4 * more + (256 << 20)  # each change may take a cluster of qcow2, and metadata
    namespace = ["unshare", "--mount", *([] if image.group is not None else ["--map-root-user"])]
    argv = [*namespace, *_limits(image, largest), *daemon]
    try:
        with serving(argv, name=daemon[0], until=b'"QMP"', timeout_s=_EXPORT_S) as pid:
            try:
                yield f"/proc/{pid}/root{mount}"
            except SiteError as error:  # what it says follows from the daemon's end, if that has ended
                if identify(pid):
                    raise
                raise SiteError(f"{daemon[0]} ended while {image.path} was written") from error
    except OfferError:
        raise
    except SiteError as error:
        raise error if error.hint else _failure(image, error.message) from error
    finally:
        mount.unlink()
