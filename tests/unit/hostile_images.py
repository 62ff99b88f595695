"""Disk images for tests: made by qemu-img, then changed byte by byte. Offsets are those of the formats' specifications."""

import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from vmbatch.errors import UserError
from vmbatch.images.inspect import Header, inspect
from vmbatch.images.vhdx import crc32c
from vmbatch.process import run

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
LIMIT = 4 * TIB
SECTOR = 512
Change = tuple[int, bytes]


def make(path: Path, kind: str, size: int, *options: str) -> Path:
    chosen = [word for option in options for word in ("-o", option)]
    run(["qemu-img", "create", "-q", "-f", kind, *chosen, path, str(size)], timeout_s=60)
    return path


def facts(path: Path, kind: str) -> dict[str, object] | None:
    """What QEMU says of an image; None where it refuses it."""
    done = run(["qemu-img", "info", "-U", "--output=json", "-f", kind, path], timeout_s=20, check=False)
    told: dict[str, object] = json.loads(done.stdout) if done.status == 0 else {}
    return told or None


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def look(path: Path, declared: str | None = None, limit: int = LIMIT) -> Header:
    with opened(path) as descriptor:
        return inspect(descriptor, declared, limit)


def refusal(path: Path, declared: str | None = None, limit: int = LIMIT) -> str:
    """The sentence and hint of the refusal; "" where the image passes."""
    try:
        look(path, declared, limit)
    except UserError as error:
        assert error.hint
        return str(error)
    return ""


def be(form: str, *values: object) -> bytes:
    return struct.pack(">" + form, *values)


def le(form: str, *values: object) -> bytes:
    return struct.pack("<" + form, *values)


def change(path: Path, changes: Iterable[Change]) -> None:
    """Write bytes over an image; a negative offset counts from its end."""
    with opened(path, os.O_RDWR) as descriptor:
        size = os.fstat(descriptor).st_size
        for at, data in changes:
            os.pwrite(descriptor, data, at if at >= 0 else size + at)


def changed(source: Path, target: Path, changes: Iterable[Change]) -> Path:
    shutil.copyfile(source, target)
    change(target, changes)
    return target


def raw(path: Path, *changes: Change, size: int = MIB) -> Path:
    path.write_bytes(b"")
    os.truncate(path, size)
    change(path, changes)
    return path


# VHD: checksums are sums, at byte 64 of the footer and 36 of the dynamic header; the footer is also the header.


def _sum(data: bytes, at: int) -> bytes:
    return be("I", ~sum(data[:at] + data[at + 4 :]) & 0xFFFFFFFF)


def seal_vpc(path: Path) -> None:
    """Make a changed VHD's checksums right: its first sector becomes its last one, where it has a header."""
    with opened(path, os.O_RDWR) as descriptor:
        size = os.fstat(descriptor).st_size
        head = os.pread(descriptor, SECTOR, 0)
        dynamic = head.startswith(b"conectix")
        foot = head if dynamic else os.pread(descriptor, SECTOR, size - SECTOR)
        foot = foot[:64] + _sum(foot, 64) + foot[68:]
        for at in (0, size - SECTOR) if dynamic else (size - SECTOR,):
            os.pwrite(descriptor, foot, at)
        sparse = os.pread(descriptor, 1024, 512)
        if dynamic and len(sparse) == 1024:
            os.pwrite(descriptor, _sum(sparse, 36), 512 + 36)


# VHDX: CRC-32C at byte 4 of both headers and of the region table.

REGIONS = 192 << 10
HEADERS = (64 << 10, 128 << 10)


def seal_vhdx(path: Path) -> None:
    with opened(path, os.O_RDWR) as descriptor:
        for at, length in (*((one, 4096) for one in HEADERS), (REGIONS, 65536)):
            data = os.pread(descriptor, length, at)
            os.pwrite(descriptor, le("I", crc32c(data[:4] + bytes(4) + data[8:])), at + 4)


SEALS = {"vpc": seal_vpc, "vhdx": seal_vhdx}


def region(path: Path, name: str) -> tuple[int, int]:
    """Where in a VHDX's region table a region is described, and where it begins."""
    table = path.read_bytes()[REGIONS : REGIONS + 65536]
    at = table.index(UUID(name).bytes_le)
    return REGIONS + at, struct.unpack_from("<Q", table, at + 16)[0]


def item(path: Path, name: str) -> tuple[int, int]:
    """Where in a VHDX's metadata table an item is described, and where its value stands."""
    _, start = region(path, "8B7CA206-4790-4B9A-B8FE-575F050F886E")
    with opened(path) as descriptor:
        table = os.pread(descriptor, 65536, start)
    at = table.index(UUID(name).bytes_le)
    return start + at, start + int(struct.unpack_from("<I", table, at + 16)[0])


# VMDK: a stream's footer, as other programs than QEMU write it.


def with_footer(source: Path, target: Path, *changes: Change) -> Path:
    """Move the grain directory's place from the header into a footer; `changes` are made in the footer's header."""
    data = source.read_bytes()
    data += bytes(-len(data) % SECTOR)
    foot = bytearray(data[:SECTOR])
    for at, new in changes:
        foot[at : at + len(new)] = new
    marker = le("QII", 0, 0, 3).ljust(SECTOR, b"\0")
    target.write_bytes(data[:56] + le("Q", (1 << 64) - 1) + data[64:] + marker + bytes(foot) + bytes(SECTOR))
    return target


def descriptor(text: str) -> Change:
    return SECTOR, text.encode("latin-1").ljust(20 * SECTOR, b"\0")


def described(path: Path) -> str:
    return path.read_bytes()[SECTOR : 21 * SECTOR].partition(b"\0")[0].decode("latin-1")
