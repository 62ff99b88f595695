"""Images of other makers -> qcow2, once, when they come in. By qemu-img, without root, with limits, after our own look."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

from vmbatch.config import Config
from vmbatch.images.inspect import Header
from vmbatch.model import Person
from vmbatch.process import run

NATIVE = ("raw", "qcow2")
_MEMORY = 2 << 30


def to_qcow2(
    config: Config, part: Path, header: Header, person: Person, progress: Callable[[int, int | None], None]
) -> tuple[str, int]:
    """Replace `part` by its content as qcow2. Returns sha512 and size in bytes. Raises SiteError where qemu-img fails."""
    work = part.with_name(f"{part.name}.work")
    rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o711)
    try:
        source, target = work / "in", work / "out"
        part.rename(source)
        source.chmod(0o444)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:
                os.fchown(handle, person.uid, person.gid)
        finally:
            os.close(handle)
        progress(0, header.virtual_size)
        _convert(config, source, target, header, person)
        progress(header.virtual_size, header.virtual_size)
        return _settle(target, part)
    finally:
        rmtree(work, ignore_errors=True)


def _convert(config: Config, source: Path, target: Path, header: Header, person: Person) -> None:
    limits = [
        "prlimit", f"--cpu={config.store.convert_timeout_s}", f"--data={_MEMORY}", "--stack=2097152", "--core=0",
        f"--fsize={header.virtual_size + header.virtual_size // 64 + (64 << 20)}", "--",
    ]  # fmt: skip
    convert = ["qemu-img", "convert", "-f", header.format, "-O", "qcow2", str(source), str(target)]
    run([*limits, *convert], timeout_s=config.store.convert_timeout_s, person=person)


def _settle(target: Path, part: Path) -> tuple[str, int]:
    """Make the result ours, on the disk, and hash it."""
    handle = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.geteuid() == 0:
            os.fchown(handle, 0, 0)
        os.fchmod(handle, 0o600)
        os.fsync(handle)
        with os.fdopen(os.dup(handle), "rb") as stream:
            digest = hashlib.file_digest(stream, "sha512").hexdigest()
        size = os.fstat(handle).st_size
    finally:
        os.close(handle)
    with suppress(FileNotFoundError):
        part.unlink()
    target.rename(part)
    return digest, size
