"""A VHDX image's header. Format: Microsoft's MS-VHDX, "Virtual Hard Disk v2 File Format"."""

import struct
from collections.abc import Iterator
from itertools import pairwise
from uuid import UUID

from vmbatch.images.headers import TABLE_LIMIT, Reader, check_size, check_table, refused

_KIND = "vhdx"
_KIB, _MIB = 1 << 10, 1 << 20
_HEADERS = (64 * _KIB, 128 * _KIB)
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_HEADER_BYTES = 4 * _KIB
_REGIONS = 192 * _KIB
_TABLE_BYTES = 64 * _KIB
_REGION_TABLE = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")
_METADATA_TABLE = struct.Struct("<8sHH20s")
_ITEM = struct.Struct("<16sIIII")
_ITEM_REQUIRED = 4
_ENTRIES = 2047
_HAS_PARENT = 2
_BLOCK_TABLE, _METADATA = "2DC27766-F623-4200-9D64-115E9BFD4A08", "8B7CA206-4790-4B9A-B8FE-575F050F886E"
_PARAMETERS, _SIZE = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B", "2FA54224-CD1B-4876-B211-5DBED83BF4B8"
_PAGE_83, _PARENT = "BECA12AB-B2E6-4523-93EF-C309E000C746", "A8D35F2D-B30B-454D-ABF7-D3D84834AB0C"
_LOGICAL, _PHYSICAL = "8141BF1D-A96F-4709-BA47-F233A8FAAB5F", "CDA348C7-445D-4471-9CC9-E9885251C556"
_ITEM_BYTES = {_PARAMETERS: 8, _SIZE: 8, _PAGE_83: 16, _LOGICAL: 4, _PHYSICAL: 4}
_AGAIN = "it is damaged: copy it again"


def virtual_size(image: Reader, limit: int) -> int:
    """Return the size in bytes of a disk that is whole in this one file. Raises UserError for anything else."""
    log = _check_log(image)
    regions = _regions(image, log)
    items = _items(image, regions[_METADATA])
    block, flags = struct.unpack("<II", items[_PARAMETERS])
    if flags & _HAS_PARENT:
        raise refused(_KIND, "has a parent image", "merge it with its parent, then use that")
    if block & (block - 1) or not _MIB <= block <= 256 * _MIB:
        raise refused(_KIND, f"has blocks of {block} bytes; powers of two from 1 to 256 MiB are known")
    logical = int.from_bytes(items[_LOGICAL], "little")
    if logical != 512:
        raise refused(_KIND, f"has sectors of {logical} bytes; 512 are known")
    size = check_size(_KIND, int.from_bytes(items[_SIZE], "little"), limit)
    blocks = -(-size // block)
    needed = 8 * (blocks + (blocks - 1) // ((512 << 23) // block))  # a bitmap's entry stands behind each chunk's blocks
    length = regions[_BLOCK_TABLE][1]
    if not needed <= length <= TABLE_LIMIT:
        raise refused(_KIND, f"has a block table of {length} bytes; its disk needs {needed}, and {TABLE_LIMIT} are read")
    return size


def _check_log(image: Reader) -> tuple[int, int]:
    """Find the header that counts, of two. Returns the log's place: offset and length in bytes."""
    valid = []
    for at in _HEADERS:
        raw = image.read(at, _HEADER_BYTES)
        fields = _HEADER.unpack_from(raw)
        if (fields[0], fields[7]) == (b"head", 1) and fields[1] == _sum(raw):
            valid.append((fields[2], raw))
    if not valid:
        raise refused(_KIND, "has no valid header", _AGAIN)
    sequence, raw = max(valid)
    if any(one[0] == sequence and one[1] != raw for one in valid):
        raise refused(_KIND, "has two headers, and neither is the newer one", _AGAIN)
    _, _, _, _, _, log, log_version, _, length, offset = _HEADER.unpack_from(raw)
    if any(log) or log_version:
        raise refused(_KIND, "has changes in its log", "bring them in: qemu-img check -f vhdx -r all FILE")
    return offset, length


def _regions(image: Reader, log: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Return the known regions: offset and length in bytes of each. No two share a byte."""
    raw = image.read(_REGIONS, _TABLE_BYTES)
    signature, checksum, count, _ = _REGION_TABLE.unpack_from(raw)
    if signature != b"regi" or count > _ENTRIES or checksum != _sum(raw):
        raise refused(_KIND, "has no valid region table", _AGAIN)
    found: dict[str, tuple[int, int]] = {}
    taken = [log] if log[1] else []
    for name, offset, length, required in _entries(raw, _REGION_TABLE.size, _REGION, count):
        taken.append((offset, length))
        if name in (_BLOCK_TABLE, _METADATA):
            check_table(image, _KIND, "a region", offset, length, align=_MIB)
            if name in found or length % _MIB or not length:
                raise refused(_KIND, f"has region {name} twice, or with {length} bytes")
            found[name] = (offset, length)
        elif required & 1:
            raise refused(_KIND, f"needs region {name}, which is not known")
    taken.sort()
    if any(one[0] + one[1] > two[0] for one, two in pairwise(taken)):
        raise refused(_KIND, "has regions that overlap")
    if len(found) != 2:
        raise refused(_KIND, "lacks its block table or its metadata")
    return found


def _items(image: Reader, region: tuple[int, int]) -> dict[str, bytes]:
    """Return the value of each of the five items that every image without a parent has."""
    raw = image.read(region[0], _TABLE_BYTES)
    signature, _, count, _ = _METADATA_TABLE.unpack_from(raw)
    if signature != b"metadata" or count > _ENTRIES:
        raise refused(_KIND, "has no valid metadata table", _AGAIN)
    items: dict[str, bytes] = {}
    for name, offset, length, flags in _entries(raw, _METADATA_TABLE.size, _ITEM, count):
        if name == _PARENT:
            raise refused(_KIND, "has a parent image", "merge it with its parent, then use that")
        if name in _ITEM_BYTES:
            if name in items or length != _ITEM_BYTES[name] or offset < _TABLE_BYTES or offset + length > region[1]:
                raise refused(_KIND, f"has metadata item {name} twice, or {length} bytes of it at byte {offset}")
            items[name] = image.read(region[0] + offset, length)
        elif flags & _ITEM_REQUIRED:
            raise refused(_KIND, f"needs metadata item {name}, which is not known")
    if len(items) != len(_ITEM_BYTES):
        raise refused(_KIND, f"lacks metadata: {', '.join(sorted(_ITEM_BYTES.keys() - items.keys()))}")
    return items


def _entries(raw: bytes, start: int, entry: struct.Struct, count: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield a table's entries: GUID as the specification spells it, offset and length in bytes, flags."""
    for guid, offset, length, flags, *_ in entry.iter_unpack(raw[start : start + count * entry.size]):
        yield str(UUID(bytes_le=guid)).upper(), offset, length, flags


def _crc_table() -> tuple[int, ...]:
    """CRC-32C, reflected (RFC 3720, 12.1): polynomial 0x1EDC6F41."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC = _crc_table()


def _sum(raw: bytes) -> int:
    """Return the checksum of a block whose own checksum stands in bytes 4 to 8 and counts as zeros."""
    return crc32c(raw[:4] + bytes(4) + raw[8:])


def crc32c(raw: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in raw:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
