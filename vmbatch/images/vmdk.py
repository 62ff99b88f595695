"""A VMDK image's header: one sparse file that holds its own descriptor.

Format: VMware's "Virtual Disk Format 5.0". The descriptor of any other kind names files that QEMU would open.
"""

import re
import struct
from dataclasses import dataclass

from vmbatch.images.headers import SECTOR, Reader, check_size, check_table, refused

_KIND = "vmdk"
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_GD_OFFSET = slice(56, 64)
_GD_AT_END = (1 << 64) - 1
_MARKER = struct.Struct("<QII")
_FOOTER_MARKER, _END_OF_STREAM = (0, 0, 3), (0, 0, 0)
_NEWLINES, _REDUNDANT = 1 << 0, 1 << 1
_DESCRIPTOR_SECTORS = 20  # QEMU looks at as many, from sector 1, whatever the header says
_TYPES = {"monolithicSparse": 0, "streamOptimized": 1}  # and their compression
_EXTENT = re.compile(r'(?:RW|RDONLY) (\d{1,20}) SPARSE "([^"/\\:]+)"')
_ASSIGNMENT = re.compile(r"([A-Za-z][\w.-]*)[ \t]*=[ \t]*(.*)", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
_OTHER_FILES = ("parentfilenamehint", "changetrackpath")


@dataclass(frozen=True, slots=True)
class _Header:
    magic: bytes
    version: int
    flags: int
    capacity: int
    grain: int
    descriptor: int
    descriptor_sectors: int
    entries: int
    redundant: int
    directory: int
    overhead: int
    unclean: int
    newlines: bytes
    compression: int


def virtual_size(image: Reader, limit: int) -> int:
    """Return the size in bytes of a disk that is whole in this one file. Raises UserError for anything else."""
    header = _read(image)
    size = check_size(_KIND, header.capacity * SECTOR, limit)
    _check_layout(image, header)
    _check_descriptor(_descriptor(image, header), header)
    return size


def _read(image: Reader) -> _Header:
    raw = image.read(0, _HEADER.size)
    if raw[:4] == b"COWD":
        raise refused(_KIND, "is an old ESX extent (COWD)")
    if raw[:4] != b"KDMV":
        raise refused(_KIND, "is a text descriptor that names other files as the disk")
    header = _Header(*_HEADER.unpack(raw))
    if header.directory == _GD_AT_END:
        header = _footer(image, raw)
    if not 1 <= header.version <= 3:
        raise refused(_KIND, f"has version {header.version}; 1 to 3 are known")
    if header.unclean:
        raise refused(_KIND, "was not closed cleanly")
    return header


def _footer(image: Reader, head: bytes) -> _Header:
    """A stream's header is repeated in its last sectors, and QEMU believes that copy: both must say the same."""
    start = image.size - 3 * SECTOR
    tail = image.read(start, 3 * SECTOR)
    foot = tail[SECTOR : SECTOR + _HEADER.size]
    marks = _MARKER.unpack_from(tail), _MARKER.unpack_from(tail, 2 * SECTOR)
    if image.size % SECTOR or foot[:4] != head[:4] or marks != (_FOOTER_MARKER, _END_OF_STREAM):
        raise refused(_KIND, "has no footer, which its header announces", "it is incomplete: copy it again")
    if _without_directory(foot) != _without_directory(head):
        raise refused(_KIND, "has a footer that disagrees with its header")
    return _Header(*_HEADER.unpack(foot))


def _without_directory(raw: bytes) -> bytes:
    return raw[: _GD_OFFSET.start] + raw[_GD_OFFSET.stop :]


def _check_layout(image: Reader, header: _Header) -> None:
    if header.flags & _NEWLINES and header.newlines != b"\n \r\n":
        raise refused(_KIND, "was damaged by a transfer as text", "copy it again, as binary")
    if header.grain & (header.grain - 1) or not 8 <= header.grain <= 1 << 21:
        raise refused(_KIND, f"has grains of {header.grain} sectors; powers of two from 8 to 2097152 are known")
    if header.entries != 512:
        raise refused(_KIND, f"has grain tables of {header.entries} entries; 512 are known")
    if header.overhead * SECTOR > image.size:
        raise refused(_KIND, f"begins its data at sector {header.overhead}, behind the file's end")
    length = 4 * -(-header.capacity // (header.grain * header.entries))
    check_table(image, _KIND, "a grain directory", header.directory * SECTOR, length)
    if header.flags & _REDUNDANT:
        check_table(image, _KIND, "a second grain directory", header.redundant * SECTOR, length)


def _descriptor(image: Reader, header: _Header) -> str:
    """Return the descriptor: the text that QEMU sees, which must not be longer than the one that the header means."""
    if header.descriptor != 1 or not 1 <= header.descriptor_sectors <= _DESCRIPTOR_SECTORS:
        raise refused(
            _KIND,
            f"has a descriptor of {header.descriptor_sectors} sectors at sector {header.descriptor};"
            f" at most {_DESCRIPTOR_SECTORS} at sector 1 are known",
        )
    window = image.read(SECTOR, min(_DESCRIPTOR_SECTORS * SECTOR, image.size - SECTOR))
    text = window.partition(b"\0")[0]
    if len(text) > header.descriptor_sectors * SECTOR:
        raise refused(_KIND, "has a descriptor that runs past its end")
    return text.decode("latin-1")


def _check_descriptor(text: str, header: _Header) -> None:
    """QEMU searches the whole text for some words, comments too: they may stand nowhere but where they belong."""
    low = text.lower()
    for word in _OTHER_FILES:
        if word in low:
            raise refused(_KIND, f"names another file in its descriptor ({word})")
    if _CONTROL.search(text):
        raise refused(_KIND, "has a descriptor that is not plain text")
    values, extents = _lines(text)
    if values.get("parentcid", "").lower() != "ffffffff" or low.count("parentcid") != 1:
        raise refused(_KIND, "has a parent image, or does not say that it has none (parentCID)")
    kind = values.get("createtype", "")
    if kind not in _TYPES or low.count("createtype") != 1:
        raise refused(_KIND, f"is of type {kind[:40]!a}; {' and '.join(_TYPES)} are known")
    if header.compression != _TYPES[kind]:
        raise refused(_KIND, f"is of type {kind}, but its compression is {header.compression}")
    extent = _EXTENT.fullmatch(extents[0]) if len(extents) == 1 else None
    if not extent or int(extent[1]) != header.capacity:
        raise refused(_KIND, f"has a descriptor that means more than this file: {'; '.join(extents)[:100]!a}")


def _lines(text: str) -> tuple[dict[str, str], list[str]]:
    """Return the assignments by their names in small letters, and what is neither one nor a comment: the extents."""
    values: dict[str, str] = {}
    others = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        assignment = _ASSIGNMENT.fullmatch(line)
        if assignment and assignment[1].lower() not in values:
            values[assignment[1].lower()] = assignment[2].strip('"')
        elif not line.startswith("#"):
            others.append(line)
    return values, others
