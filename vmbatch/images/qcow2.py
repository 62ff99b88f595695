"""A qcow2 image's header. Format: "qcow2 image format", docs/interop/qcow2 in QEMU's manual; limits are QEMU's own."""

import struct
from dataclasses import dataclass

from vmbatch.images.headers import Reader, check_size, check_table, refused

_KIND = "qcow2"
_BASE = struct.Struct(">4sIQIIQIIQQIIQ")
_VERSION_3 = struct.Struct(">QQQII")
_COMPRESSION_AT = 104
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_BITMAPS_VALID, _RAW_DATA_FILE = 1 << 0, 1 << 1  # autoclear features
_REFCOUNT_TABLE_LIMIT = 8 << 20
_SNAPSHOTS = 65536
_SNAPSHOT_BYTES = 40  # at least, each
_EXTENSIONS = 32  # 5 are defined, each at most once
_END, _BACKING_FORMAT, _CRYPTO, _DATA_FILE_NAME, _BITMAPS = 0, 0xE2792ACA, 0x0537BE77, 0x44415441, 0x23852875
_POINTERS = {_BACKING_FORMAT: "a backing file's format", _DATA_FILE_NAME: "an external data file", _CRYPTO: "encryption"}


@dataclass(frozen=True, slots=True)
class _Header:
    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int
    compatible: int
    autoclear: int
    refcount_order: int
    length: int

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits


def virtual_size(image: Reader, limit: int) -> int:
    """Return the size in bytes of a disk that is whole in this one file. Raises UserError for anything else."""
    header = _read(image)
    _check_alone(header)
    _check_features(image, header)
    size = check_size(_KIND, header.size, limit)
    _check_tables(image, header)
    _check_extensions(image, header)
    return size


def _read(image: Reader) -> _Header:
    base = _BASE.unpack(image.read(0, _BASE.size))
    version = base[1]
    if version not in (2, 3):
        raise refused(_KIND, f"has version {version}; 2 and 3 are known")
    more = _VERSION_3.unpack(image.read(_BASE.size, _VERSION_3.size)) if version == 3 else (0, 0, 0, 4, _BASE.size)
    header = _Header(*base[1:], *more)
    if not 9 <= header.cluster_bits <= 21:
        raise refused(_KIND, f"has clusters of 2^{header.cluster_bits} bytes; 2^9 to 2^21 are known")
    least = _BASE.size + (_VERSION_3.size if version == 3 else 0)
    if header.length % 8 or not least <= header.length <= header.cluster:
        raise refused(_KIND, f"has a header of {header.length} bytes, which cannot be")
    if header.refcount_order > 6:
        raise refused(_KIND, f"has reference counts of 2^{header.refcount_order} bits; at most 2^6 are known")
    return header


def _check_alone(header: _Header) -> None:
    """Nothing may lead out of the file: what is named there would be opened by root's QEMU."""
    if header.backing_offset or header.backing_length:
        raise refused(_KIND, "has a backing file")
    if header.incompatible & _DATA_FILE or header.autoclear & _RAW_DATA_FILE:
        raise refused(_KIND, "has an external data file")
    if header.crypt_method:
        raise refused(
            _KIND,
            f"is encrypted (method {header.crypt_method})",
            "make a copy in clear: qemu-img convert --object secret,id=s,file=PASSWORD"
            " --image-opts driver=qcow2,file.filename=OLD,encrypt.key-secret=s -O qcow2 NEW",
        )


def _check_features(image: Reader, header: _Header) -> None:
    """zstd and extended L2 entries change only how this file's clusters are found and packed: they are fine."""
    for bit, name in ((_DIRTY, "dirty"), (_CORRUPT, "corrupt")):
        if header.incompatible & bit:
            raise refused(_KIND, f"is marked {name}", "repair it: qemu-img check -f qcow2 -r all FILE")
    unknown = header.incompatible & ~(_COMPRESSION | _EXTENDED_L2)
    if unknown:
        raise refused(_KIND, f"needs features that are not known (bits {unknown:#x})")
    if header.incompatible & _EXTENDED_L2 and header.cluster_bits < 14:
        raise refused(_KIND, f"has extended L2 entries with clusters of 2^{header.cluster_bits} bytes")
    compression = image.read(_COMPRESSION_AT, 1)[0] if header.length > _COMPRESSION_AT else 0
    if compression != bool(header.incompatible & _COMPRESSION):  # 0: zlib, 1: zstd
        raise refused(_KIND, f"has compression type {compression}, against its feature bits")


def _check_tables(image: Reader, header: _Header) -> None:
    cluster = header.cluster
    per_entry = cluster * (cluster // (16 if header.incompatible & _EXTENDED_L2 else 8))
    needed = -(-header.size // per_entry)
    if header.l1_entries != needed:
        raise refused(_KIND, f"has an L1 table of {header.l1_entries} entries; its disk needs {needed}")
    check_table(image, _KIND, "an L1 table", header.l1_offset, needed * 8, align=cluster)
    if not header.refcount_clusters:
        raise refused(_KIND, "has no reference count table", "repair it: qemu-img check -f qcow2 -r all FILE")
    length = header.refcount_clusters * cluster
    what = "a reference count table"
    check_table(image, _KIND, what, header.refcount_offset, length, align=cluster, most=_REFCOUNT_TABLE_LIMIT)
    if header.snapshots:
        length, most = header.snapshots * _SNAPSHOT_BYTES, _SNAPSHOTS * _SNAPSHOT_BYTES
        check_table(image, _KIND, "a snapshot table", header.snapshots_offset, length, align=cluster, most=most)


def _check_extensions(image: Reader, header: _Header) -> None:
    offset, seen = header.length, set[int]()
    while offset < header.cluster:
        kind, length = struct.unpack(">II", image.read(offset, 8))
        offset += 8
        if kind == _END:
            return
        if kind in seen or len(seen) == _EXTENSIONS:
            raise refused(_KIND, f"has header extension {kind:#x} twice, or more than {_EXTENSIONS} of them")
        seen.add(kind)
        if length > header.cluster - offset:
            raise refused(_KIND, f"has a header extension of {length} bytes that runs past its end")
        if kind in _POINTERS:
            raise refused(_KIND, f"has a header extension that names {_POINTERS[kind]}")
        if kind == _BITMAPS and header.autoclear & _BITMAPS_VALID:
            _check_bitmaps(image, header, offset, length)
        offset += -(-length // 8) * 8


def _check_bitmaps(image: Reader, header: _Header, offset: int, length: int) -> None:
    if length != 24:
        raise refused(_KIND, f"has a bitmaps extension of {length} bytes; 24 are known")
    _, _, size, directory = struct.unpack(">IIQQ", image.read(offset, length))
    check_table(image, _KIND, "a bitmap directory", directory, size, align=header.cluster)
