"""A VDI image's header, version 1.1. Format: VirtualBox's VDICore.h; QEMU reads blocks of 1 MiB only."""

import struct
from dataclasses import dataclass

from vmbatch.images.headers import SECTOR, Reader, check_size, check_table, refused

_KIND = "vdi"
_HEADER = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s")
_VERSION = 0x00010001
_DYNAMIC, _FIXED = 1, 2
_BLOCK = 1 << 20
_NOBODY = bytes(16)


@dataclass(frozen=True, slots=True)
class _Header:
    text: bytes
    signature: int
    version: int
    length: int
    type: int
    flags: int
    description: bytes
    map_offset: int
    data_offset: int
    cylinders: int
    heads: int
    sectors: int
    sector: int
    unused: int
    size: int
    block: int
    block_extra: int
    blocks: int
    allocated: int
    uuid: bytes
    snapshot: bytes
    link: bytes
    parent: bytes


def virtual_size(image: Reader, limit: int) -> int:
    """Return the size in bytes of a disk that is whole in this one file. Raises UserError for anything else."""
    header = _Header(*_HEADER.unpack(image.read(0, _HEADER.size)))
    if header.version != _VERSION:
        raise refused(_KIND, f"has version {header.version >> 16}.{header.version & 0xFFFF}; 1.1 is known")
    if header.type not in (_DYNAMIC, _FIXED) or header.link != _NOBODY or header.parent != _NOBODY:
        raise refused(
            _KIND,
            f"is of type {header.type} or has a parent image; dynamic (1) and fixed (2) ones without are known",
            "make a plain copy: VBoxManage clonemedium disk OLD NEW --format VDI",
        )
    if (header.sector, header.block, header.block_extra) != (SECTOR, _BLOCK, 0):
        raise refused(
            _KIND,
            f"has sectors of {header.sector} and blocks of {header.block} + {header.block_extra} bytes;"
            f" {SECTOR} and {_BLOCK} are known",
        )
    size = check_size(_KIND, header.size, limit)
    _check_blocks(image, header)
    return size


def _check_blocks(image: Reader, header: _Header) -> None:
    needed = -(-header.size // _BLOCK)
    if header.blocks != needed or header.allocated > needed:
        raise refused(_KIND, f"has {header.allocated} of {header.blocks} blocks; its disk needs {needed}")
    check_table(image, _KIND, "a block map", header.map_offset, 4 * header.blocks)
    written = header.blocks if header.type == _FIXED else header.allocated
    end = header.data_offset + written * _BLOCK
    if header.data_offset % SECTOR or header.data_offset < header.map_offset + 4 * header.blocks or end > image.size:
        raise refused(_KIND, f"has data from byte {header.data_offset} to {end}; the file ends at byte {image.size}")
