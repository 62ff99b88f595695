"""A VHD image's header; QEMU calls the format vpc.

Format: Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0.
"""

import struct
from dataclasses import dataclass

from vmbatch.images.headers import SECTOR, Reader, check_size, check_table, refused

COOKIE = b"conectix"
_KIND = "vpc"
_FOOTER = struct.Struct(">8sIIQI4sHH4sQQHBBII")
_SPARSE = struct.Struct(">8sQQIIII")
_SPARSE_BYTES = 1024
_FIXED, _DYNAMIC = 2, 3
_VERSION = 0x00010000
_LARGEST_GEOMETRY = 65535 * 16 * 255  # sectors; there the size field is believed
_LARGEST = 2040 << 30
_BY_SIZE = (b"win ", b"qem2", b"d2v ", b"CTXS", b"tap\0")  # creators whose size field every version of QEMU believes


@dataclass(frozen=True, slots=True)
class _Footer:
    cookie: bytes
    features: int
    version: int
    data_offset: int
    time: int
    creator: bytes
    major: int
    minor: int
    system: bytes
    original_size: int
    size: int
    cylinders: int
    heads: int
    sectors: int
    type: int
    checksum: int


def virtual_size(image: Reader, limit: int) -> int:
    """Return the size in bytes of a disk that is whole in this one file. Raises UserError for anything else."""
    first, last = image.read(0, SECTOR), image.read(image.size - SECTOR, SECTOR)
    dynamic = first.startswith(COOKIE)
    if dynamic and first != last:
        raise refused(_KIND, "has a footer that disagrees with its header")
    footer = _read(last, dynamic)
    size = check_size(_KIND, _size(footer), limit)
    if size > _LARGEST:
        raise refused(_KIND, f"holds a disk of {size} bytes; the format ends at {_LARGEST}")
    if not dynamic and image.size != size + SECTOR:
        raise refused(_KIND, f"has {image.size} bytes; its disk needs {size + SECTOR}")
    if dynamic:
        _check_blocks(image, footer)
    return size


def _read(raw: bytes, dynamic: bool) -> _Footer:
    footer = _Footer(*_FOOTER.unpack_from(raw))
    if footer.checksum != _sum(raw, 64):
        raise refused(_KIND, "has a footer with a wrong checksum", "it is damaged: copy it again")
    if footer.version != _VERSION:
        raise refused(_KIND, f"has version {footer.version:#x}; {_VERSION:#x} is known")
    if footer.type != (_DYNAMIC if dynamic else _FIXED):
        raise refused(
            _KIND,
            f"is of type {footer.type}; fixed (2) ones, and dynamic (3) ones with a header, are known",
            "merge a differencing image with its parent, then use that",
        )
    return footer


def _sum(raw: bytes, at: int) -> int:
    """Return the complement of the sum of all bytes but the four of the checksum itself."""
    return ~(sum(raw) - sum(raw[at : at + 4])) & 0xFFFFFFFF


def _size(footer: _Footer) -> int:
    """A geometry and a size stand in each image. Who believes which is a matter of taste: both must say the same."""
    geometry = footer.cylinders * footer.heads * footer.sectors
    if footer.creator in _BY_SIZE or geometry == _LARGEST_GEOMETRY or geometry * SECTOR == footer.size:
        return footer.size
    raise refused(
        _KIND,
        f"made by {footer.creator.decode('latin-1')!a} holds a disk of {footer.size} bytes,"
        f" or of {geometry * SECTOR} by its geometry",
        "make a copy of the right size: qemu-img convert --image-opts"
        " driver=vpc,force_size_calc=current_size,file.filename=OLD -O qcow2 NEW",
    )


def _check_blocks(image: Reader, footer: _Footer) -> None:
    raw = image.read(footer.data_offset, _SPARSE_BYTES)
    cookie, _, offset, version, entries, block, checksum = _SPARSE.unpack_from(raw)
    if cookie != b"cxsparse" or version != _VERSION:
        raise refused(_KIND, f"has no dynamic header of version {_VERSION:#x} at byte {footer.data_offset}")
    if checksum != _sum(raw, 36):
        raise refused(_KIND, "has a dynamic header with a wrong checksum", "it is damaged: copy it again")
    if block < SECTOR or block & (block - 1):
        raise refused(_KIND, f"has blocks of {block} bytes, which is no power of two from {SECTOR}")
    if entries * block < footer.size:
        raise refused(_KIND, f"has {entries} blocks of {block} bytes, too few for its disk of {footer.size} bytes")
    check_table(image, _KIND, "a block table", offset, 4 * entries)
