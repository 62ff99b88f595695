"""What a disk's first sectors say: an MBR, a GPT, or no table because one file system fills the disk.

Bytes in, data out. A disk may come from anybody: every read is bounded, every chain has an end, nothing is believed that
does not lie on the disk.

Sources: UEFI Specification 2.10, chapter 5 (MBR and GPT); Microsoft, "FAT: General Overview of On-Disk Format" 1.03;
ECMA-119, section 8.4 (ISO 9660). Extended partitions have no standard; they are read as Linux reads them.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ReadAt = Callable[[int, int], bytes]

_SECTOR = 512  # of an MBR, whatever the device says
_SECTORS = (512, 4096)  # that a GPT may count in
_SIGNATURE = b"\x55\xaa"
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_MOST_LOGICAL = 64
_MOST_ENTRY_BYTES = 1 << 18  # 2048 GPT entries; tools make 128
_DESCRIPTOR = 16 * 2048  # where a volume descriptor of ISO 9660 lies


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition, in bytes. `number` is Linux's: logical ones begin at 5."""

    number: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Table:
    """What stands on a disk. A partition that does not lie on the disk is left out, and so is an extended one."""

    kind: str  # mbr, gpt, none: a file system fills the disk, or nothing does
    partitions: tuple[Partition, ...]
    boot_sector: str  # fat12, fat16, fat32: sector 0 is a file system's; it ends in 55 AA as well, but is no MBR
    iso: bool  # an ISO 9660 volume; a hybrid one has a table too


@dataclass(frozen=True, slots=True)
class _Entry:
    """A used line of an MBR: type, place in bytes."""

    number: int
    kind: int
    start: int
    size: int


def read(read_at: ReadAt, size: int) -> Table:
    """Read the table of a disk of `size` bytes. `read_at(offset, length)` returns fewer bytes only at the disk's end.

    Reads less than 2 MiB in all. Garbage is a disk without a table. Raises ValueError where an MBR promises a GPT and
    neither of its copies is sound: what such a disk holds cannot be told.

    A sound MBR goes before the parameters of a FAT in the same sector: they stay behind when a disk that was one file
    system is partitioned.
    """
    first = read_at(0, _SECTOR)
    iso = read_at(_DESCRIPTOR, 6)[1:] == b"CD001"
    fat = _fat(first, size)
    entries = _entries(first)
    if any(entry.kind == _PROTECTIVE for entry in entries):
        found = _gpt(read_at, size)
        if found is not None:
            return Table("gpt", found, "", iso)
        if not fat and not iso:
            raise ValueError("the disk's MBR promises a GPT, but neither the first nor the last copy of it is sound")
    elif any(_lies(entry, size) for entry in entries) and (not fat or _sound(entries, size)):
        return Table("mbr", tuple(_mbr(read_at, entries, size)), "", iso)
    return Table("none", (), fat, iso)


def file_descriptor(descriptor: int) -> ReadAt:
    """Return a `read_at` for an open file or block device. It raises OSError where the device does."""

    def read_at(offset: int, length: int) -> bytes:
        return os.pread(descriptor, length, offset)

    return read_at


def _entries(sector: bytes) -> list[_Entry]:
    """The used lines of an MBR; none where a status byte shows that something else stands there, code for instance."""
    if len(sector) < _SECTOR or sector[510:512] != _SIGNATURE:
        return []
    entries = []
    for number, at in enumerate(range(446, 510, 16), start=1):
        status, kind, start, count = struct.unpack_from("<B3xB3xII", sector, at)
        if status not in (0x00, 0x80):
            return []
        if kind and count:
            entries.append(_Entry(number, kind, start * _SECTOR, count * _SECTOR))
    return entries


def _lies(entry: _Entry | Partition, size: int) -> bool:
    return entry.size > 0 and entry.start + entry.size <= size


def _sound(entries: list[_Entry], size: int) -> bool:
    """Nobody's boot code looks like this. mkfs.fat may write a line that starts at 0, for BIOSes: that is no table."""
    return all(entry.start > 0 and _lies(entry, size) for entry in entries)


def _mbr(read_at: ReadAt, entries: list[_Entry], size: int) -> Iterator[Partition]:
    extended = None
    for entry in entries:
        if entry.kind in _EXTENDED:
            extended = extended or entry
        elif _lies(entry, size):
            yield Partition(entry.number, entry.start, entry.size)
    if extended:
        yield from _logical(read_at, extended.start, size)


def _logical(read_at: ReadAt, begin: int, size: int) -> Iterator[Partition]:
    """Follow the chain of an extended partition: a table for each logical one, and where the next table is."""
    at, number, seen = begin, 5, set[int]()
    while at not in seen and len(seen) < _MOST_LOGICAL and at + _SECTOR <= size:
        seen.add(at)
        onward = None
        for entry in _entries(read_at(at, _SECTOR)):
            if entry.kind in _EXTENDED:
                onward = begin + entry.start
                continue
            part = Partition(number, at + entry.start, entry.size)
            number += 1
            if _lies(part, size):
                yield part
        if onward is None:
            return
        at = onward


def _gpt(read_at: ReadAt, size: int) -> tuple[Partition, ...] | None:
    for sector in _SECTORS:
        for block in (1, size // sector - 1):
            found = _gpt_at(read_at, size, sector, block)
            if found is not None:
                return found
    return None


def _gpt_at(read_at: ReadAt, size: int, sector: int, block: int) -> tuple[Partition, ...] | None:
    """The partitions of one copy of a GPT; None where it is not sound."""
    header = read_at(block * sector, sector) if block > 0 else b""
    if len(header) < 92 or header[:8] != b"EFI PART":
        return None
    length, crc, own = struct.unpack_from("<II4xQ", header, 12)
    place, count, width, entries_crc = struct.unpack_from("<QIII", header, 72)
    if own != block or not 92 <= length <= sector or zlib.crc32(header[:16] + bytes(4) + header[20:length]) != crc:
        return None
    if width < 128 or count * width > _MOST_ENTRY_BYTES or place * sector + count * width > size:
        return None
    entries = read_at(place * sector, count * width)
    if zlib.crc32(entries) != entries_crc or len(entries) < count * width:
        return None
    parts = []
    for index in range(count):
        kind, first, last = struct.unpack_from("<16s16xQQ", entries, index * width)
        part = Partition(index + 1, first * sector, (last - first + 1) * sector)
        if any(kind) and _lies(part, size):
            parts.append(part)
    return tuple(parts)


def _fat(sector: bytes, size: int) -> str:
    """Which FAT the sector begins, "" for none: jump, parameters within the specification's limits, and a table and a
    number of clusters that fit each other.

    Linux and mkfs.fat go by the 16-bit length of the table where the specification counts clusters only: a small FAT32
    is a FAT32.
    """
    if len(sector) < _SECTOR or sector[510:512] != _SIGNATURE:
        return ""
    if sector[0] != 0xE9 and (sector[0], sector[2]) != (0xEB, 0x90):
        return ""
    unit, per_cluster, reserved, copies, root, total16, media, length16 = struct.unpack_from("<HBHBHHBH", sector, 11)
    total32, length32 = struct.unpack_from("<II", sector, 32)
    total, length = total16 or total32, length16 or length32
    if unit not in (512, 1024, 2048, 4096) or per_cluster not in (1, 2, 4, 8, 16, 32, 64, 128):
        return ""
    if not reserved or copies not in (1, 2) or (media != 0xF0 and media < 0xF8) or total * unit > size:
        return ""
    clusters = (total - reserved - copies * length - -(-root * 32 // unit)) // per_cluster
    bits = 32 if not length16 else 12 if clusters < 4085 else 16
    most = {12: 4085, 16: 65525, 32: 0x0FFFFFF5}[bits]
    fits = 0 < clusters < most and (clusters + 2) * bits <= length * unit * 8
    return f"fat{bits}" if fits and (root > 0) == (bits < 32) else ""
