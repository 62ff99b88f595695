"""Files into a disk image before it boots: debugfs and e2fsck (e2fsprogs) on a part that `confined` shows as a file."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vmbatch import partitions
from vmbatch.confined import Image, export, leave, lend, reader, tool
from vmbatch.errors import OfferError, SiteError
from vmbatch.model import printable

SUPPORTED = "ext2, ext3 and ext4"
_REPAIR_S, _WRITE_S = 60.0, 45.0
_PATH_BYTES = 1000
# Where other file systems have their mark: offset, mark, name.
_MARKS = (
    (0, b"XFSB", "XFS"),
    (0x10040, b"_BHRfS_M", "Btrfs"),
    (3, b"NTFS    ", "NTFS"),
    (82, b"FAT32", "FAT32"),
    (54, b"FAT1", "FAT"),
    (0x8001, b"CD001", "ISO 9660"),
    (0, b"hsqs", "SquashFS"),
    (0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
    (536, b"LVM2 001", "LVM"),
    (4086, b"SWAPSPACE2", "swap space"),
)
_MARKS_BYTES = 0x10048
# What debugfs says besides faults: its version, a folder or a file that is there or not there already.
_NO_FAULT = re.compile(
    r"debugfs \d[^ ]* \(|(ext2fs_)?mkdir: Ext2 directory already exists|rm: File not found by ext2_lookup"
)
# What the export, or the disk below it, has to do with: the node's fault, and not the image's.
_OUR_FAULT = re.compile(
    r"No space left|Input/output|endpoint|connection|No such file or|too large|ended with", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file to be. `path` is absolute in the file system; `mode` holds permission bits."""

    path: str
    data: bytes
    mode: int
    uid: int = 0
    gid: int = 0


def put(image: Path, format: str, partition: int, entries: Sequence[Entry], *, work: Path) -> None:
    """Write files into the ext2, ext3 or ext4 file system of a qcow2 or raw image that nothing else uses just now.

    partition 0: a file system fills the disk; n: the n-th of its MBR or GPT. Missing folders are made (root, 0755),
    existing files replaced. A file system that was not unmounted is repaired first, as its own kernel would do. `work` is
    a folder for temporary files. The data are not forced to the disk.

    Raises OfferError where the image is not fit for it, and SiteError where the node is not; then throw the image away.
    """
    for entry in entries:
        _check(entry)
    with lend(image, format, work) as lent:
        read_at = reader(lent)
        start, size = _locate(lent, partition, read_at)
        unclean = _examine(lent, partition, read_at(start, _MARKS_BYTES))
        for number, entry in enumerate(entries):
            leave(lent, str(number), entry.data)
        with export(lent, start, size, more=sum(len(entry.data) for entry in entries)) as device:
            if unclean:
                _repair(lent, device, size)
            _write(lent, device, size, entries)
            _verify(lent, device, size, entries)


def _check(entry: Entry) -> None:
    """Paths are quoted for debugfs, which knows no way to spell a quote or a line's end."""
    names = entry.path.split("/")[1:]
    plain = entry.path.startswith("/") and not re.search(r'[\x00-\x1f\x7f"]', entry.path)
    if not plain or not {"", ".", ".."}.isdisjoint(names) or len(_bytes(entry.path)) > _PATH_BYTES:
        raise SiteError(f"{entry.path[:200]!r} cannot be the path of a file in an image", "use a plain absolute path")


def _bytes(path: str) -> bytes:
    return path.encode(errors="surrogateescape")


def _locate(lent: Image, number: int, read_at: Callable[[int, int], bytes]) -> tuple[int, int]:
    """Return start and size of a partition, in bytes."""
    if number == 0:
        return 0, lent.size
    try:
        table = partitions.read(read_at, lent.size)
    except ValueError as error:
        raise OfferError(f"{lent.path}: {error}") from error
    for one in table.partitions:
        if one.number == number and 0 < one.start < one.start + one.size <= lent.size:
            return one.start, one.size
    known = ", ".join(str(one.number) for one in table.partitions) or "none"
    raise OfferError(f"{lent.path} has no partition {number}; it has: {known}", "name another in the template's <vbdisk>")


def _examine(lent: Image, partition: int, head: bytes) -> bool:
    """Whether an ext file system was not unmounted. Superblock: the kernel's Documentation/filesystems/ext4."""
    super_block = head[1024:2048]
    where = f"partition {partition} of {lent.path}" if partition else str(lent.path)
    if super_block[0x38:0x3A] != b"\x53\xef":
        found = next((name for offset, mark, name in _MARKS if head[offset : offset + len(mark)] == mark), "none known")
        raise OfferError(f"{where} holds no file system that vmbatch can write into: {found}", f"{SUPPORTED} can be used")
    state = int.from_bytes(super_block[0x3A:0x3C], "little")
    needs_recovery = super_block[0x60] & 0x4
    return bool(needs_recovery) or state & 0x3 != 0x1


def _repair(lent: Image, device: str, size: int) -> None:
    """Replay the journal, and check all where that is not enough. Only what e2fsck does without asking."""
    done = tool(lent, ["e2fsck", "-p", device], largest=size, timeout_s=_REPAIR_S)
    if done.status & ~0x3:  # 1: mended; 2: mended, and a kernel that has it mounted should boot again
        said = (done.text + done.stderr.decode(errors="replace")).replace(device + ":", "")
        words = printable(" ".join(said.split()), 300)
        raise OfferError(
            f"the file system in {lent.path} was not unmounted, and e2fsck cannot mend it: {words}",
            "boot the image once and shut it down, or run e2fsck on it",
        )


def _write(lent: Image, device: str, size: int, entries: Sequence[Entry]) -> None:
    folders = {str(folder) for entry in entries for folder in PurePosixPath(entry.path).parents} - {"/"}
    lines = [f'mkdir "{folder}"' for folder in sorted(folders)]
    for number, entry in enumerate(entries):
        path = PurePosixPath(entry.path)
        lines += [f'rm "{path}"', f'cd "{path.parent}"', f'write {number} "{path.name}"']
        fields = {"mode": f"0{0o100000 | entry.mode:o}", "uid": entry.uid, "gid": entry.gid}
        lines += [f'sif "{path}" {name} {value}' for name, value in fields.items()]
    _debugfs(lent, ["-w", device], size, lines)


def _debugfs(lent: Image, words: Sequence[str], size: int, lines: Sequence[str]) -> bytes:
    """Give debugfs its commands, and return what it printed. Its exit status says nothing: its words do."""
    done = tool(
        lent, ["debugfs", "-f", "-", *words], largest=size, stdin=_bytes("\n".join(lines) + "\n"), timeout_s=_WRITE_S
    )
    said = done.stderr.decode(errors="replace").replace(words[-1], str(lent.path)).splitlines()
    faults = [printable(line.strip(), 300) for line in said if line.strip() and not _NO_FAULT.match(line)]
    if any("Could not allocate" in line for line in faults):
        raise OfferError(f"the file system in {lent.path} is full: {faults[0]}", "give the image a bigger file system")
    if faults or done.status:
        why = "; ".join([*dict.fromkeys(faults)][:3]) or f"debugfs ended with {done.status}"
        kind = SiteError if _OUR_FAULT.search(why) else OfferError
        raise kind(f"cannot write into the file system in {lent.path}: {why}")
    return done.stdout


def _verify(lent: Image, device: str, size: int, entries: Sequence[Entry]) -> None:
    """Read everything back: debugfs prints each command before its answer, so all of the answer's end is known."""
    lines = [f'{word} "{entry.path}"' for word in ("stat", "cat") for entry in entries]
    said = _debugfs(lent, [device], size, lines)
    contents = b"".join(b'debugfs: cat "%s"\n%s' % (_bytes(entry.path), entry.data) for entry in entries)
    answers = said.removesuffix(contents).split(b"debugfs: stat ")[1:]
    right = said.endswith(contents) and len(answers) == len(entries)
    for entry, answer in zip(entries, answers, strict=False):
        mode = re.search(rb"Type: regular +Mode: +(\d+)", answer)
        owner = re.search(rb"User: +(\d+) +Group: +(\d+)", answer)
        right = right and mode is not None and owner is not None
        if mode and owner:
            right = right and (int(mode[1], 8), int(owner[1]), int(owner[2])) == (entry.mode, entry.uid, entry.gid)
    if not right:
        raise SiteError(f"what was written into {lent.path} does not read back as it should", "look at the node's disk")
