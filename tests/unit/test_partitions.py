"""A disk's table is read as sfdisk and mkfs.fat write it; whatever else stands there raises nothing and costs little."""

import json
import os
import random
import struct
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbatch.partitions import Partition, Table, file_descriptor, read

MIB = 1 << 20
NOTHING = Table("none", (), "", False)


class Disk:
    """Bytes of a disk, zero where none were put; counts what is read."""

    def __init__(self, size: int, **parts: bytes) -> None:
        self.size, self.read = size, 0
        self.parts = {int(at.removeprefix("at_")): data for at, data in parts.items()}

    def put(self, at: int, data: bytes) -> "Disk":
        self.parts[at] = data
        return self

    def read_at(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < 1 << 63 and 0 <= length <= MIB
        length = max(0, min(length, self.size - offset))
        self.read += length
        data = bytearray(length)
        for at, part in self.parts.items():
            first, last = max(at, offset), min(at + len(part), offset + length)
            if first < last:
                data[first - offset : last - offset] = part[first - at : last - at]
        return bytes(data)

    def table(self) -> Table:
        found = read(self.read_at, self.size)
        assert self.read < 2 * MIB
        return found


def mbr(*lines: tuple[int, int, int], status: int = 0, code: bytes = b"") -> bytes:
    """An MBR of lines (type, first sector, sectors)."""
    entries = b"".join(struct.pack("<B3xB3xII", status, *line) for line in lines)
    return code.ljust(446, b"\0")[:446] + entries.ljust(64, b"\0") + b"\x55\xaa"


def gpt(block: int, entries: bytes, place: int = 2, sector: int = 512) -> bytes:
    """A header for entries of 128 bytes each, which lie at the block `place`."""
    last = struct.pack("<QIII", place, len(entries) // 128, 128, zlib.crc32(entries))
    header = b"EFI PART\0\0\1\0" + struct.pack("<III", 92, 0, 0) + struct.pack("<Q", block) + bytes(40) + last
    assert len(header) == 92
    return (header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]).ljust(sector, b"\0")


def entry(first: int, last: int, kind: bytes = b"k" * 16) -> bytes:
    return kind + b"u" * 16 + struct.pack("<QQ", first, last) + bytes(80)


def fat(
    *, jump: bytes = b"\xeb\x3c\x90", unit: int = 512, per: int = 4, reserved: int = 4, copies: int = 2, media: int = 0xF8,
    root: int = 512, total: int = 65536, length: int = 64, code: bytes = b"\xfa" * 448
) -> bytes:  # fmt: skip
    """A FAT16's boot sector, full of code, for a disk of 32 MiB."""
    fields = struct.pack("<HBHBHHBH", unit, per, reserved, copies, root, 0, media, length)
    head = jump + b"TEST    " + fields + bytes(8) + struct.pack("<I", total) + bytes(26)
    return (head + code)[:510] + b"\x55\xaa"


def test_an_empty_disk_has_no_table() -> None:
    assert Disk(0).table() == NOTHING
    assert Disk(100, at_0=b"x").table() == NOTHING
    assert Disk(64 * MIB).table() == NOTHING
    assert Disk(64 * MIB, at_0=mbr()).table() == NOTHING  # only GRUB's signature, or a label without a line


def test_an_mbr_has_its_primary_partitions() -> None:
    disk = Disk(64 * MIB, at_0=mbr((0x83, 2048, 4096), (0, 0, 0), (0x0C, 8192, 100), status=0x80, code=b"\xeb\x63\x90"))
    disk.parts[0] = disk.parts[0].replace(bytes([0x80]) + bytes(15), bytes(16))
    assert disk.table() == Table("mbr", (Partition(1, MIB, 2 * MIB), Partition(3, 4 * MIB, 51200)), "", False)


def test_what_does_not_lie_on_the_disk_is_left_out() -> None:
    lines = mbr((0x83, 2048, 2048), (0x83, 4096, 0xFFFFFFFF), (0x83, 0xFFFFFFFF, 1), (0x83, 6144, 2048))
    assert Disk(4 * MIB, at_0=lines).table().partitions == (Partition(1, MIB, MIB), Partition(4, 3 * MIB, MIB))
    assert Disk(MIB, at_0=lines).table() == NOTHING


@pytest.mark.parametrize("status", [0x01, 0x55, 0xEB, 0xFF])
def test_boot_code_in_the_place_of_a_table_is_no_table(status: int) -> None:
    assert Disk(64 * MIB, at_0=mbr((0x83, 2048, 2048), status=status)).table() == NOTHING
    assert Disk(64 * MIB, at_0=mbr((0x83, 2048, 2048))).table().kind == "mbr"


@pytest.mark.parametrize("extended", [0x05, 0x0F, 0x85])
def test_logical_partitions_are_followed(extended: int) -> None:
    disk = Disk(64 * MIB, at_0=mbr((0x83, 2048, 2048), (extended, 4096, 16384)))
    disk.put(4096 * 512, mbr((0x83, 63, 1000), (extended, 4096, 2048)))
    disk.put(8192 * 512, mbr((0x82, 63, 500)))
    logical = (Partition(5, 4159 * 512, 512000), Partition(6, 8255 * 512, 256000))
    assert disk.table().partitions == (Partition(1, MIB, MIB), *logical)


def test_a_chain_of_logical_partitions_that_loops_ends() -> None:
    disk = Disk(64 * MIB, at_0=mbr((0x05, 4096, 65536)))
    disk.put(4096 * 512, mbr((0x83, 63, 1000), (0x05, 8192, 2048)))
    disk.put(12288 * 512, mbr((0x83, 63, 500), (0x05, 0, 2048)))
    assert [part.number for part in disk.table().partitions] == [5, 6]


def test_a_chain_of_logical_partitions_that_is_too_long_ends() -> None:
    disk = Disk(64 * MIB, at_0=mbr((0x05, 64, 100000)))
    for n in range(1000):
        disk.put((64 + n * 4) * 512, mbr((0x83, 1, 1), (0x05, 4 * (n + 1), 4)))
    assert [part.number for part in disk.table().partitions] == list(range(5, 69))


ENTRIES = entry(2048, 4095) + bytes(128) + entry(4096, 4096) + entry(9, 8) + entry(5000, 1 << 40) + entry(1, 2, bytes(16))
GPT = Table("gpt", (Partition(1, MIB, MIB), Partition(3, 2 * MIB, 512)), "", False)
PROTECTIVE = mbr((0xEE, 1, 0xFFFFFFFF))


def whole_gpt(size: int = 4 * MIB) -> Disk:
    end = size // 512 - 1
    disk = Disk(size, at_0=PROTECTIVE, at_512=gpt(1, ENTRIES), at_1024=ENTRIES)
    return disk.put(end * 512, gpt(end, ENTRIES, end - 32)).put((end - 32) * 512, ENTRIES)


def test_a_gpt_is_read_from_its_first_copy() -> None:
    disk = whole_gpt()
    disk.put(4 * MIB - 512, bytes(512))
    assert disk.table() == GPT


@pytest.mark.parametrize("at", [512, 512 + 16, 512 + 24, 512 + 72, 512 + 88, 1024, 1024 + 40])
def test_a_gpt_with_a_byte_wrong_is_read_from_its_last_copy(at: int) -> None:
    disk = whole_gpt()
    raw = bytearray(disk.read_at(0, 4096))
    raw[at] ^= 1
    disk.put(0, bytes(raw[:1024])).put(1024, bytes(raw[1024:]))
    del disk.parts[512]
    assert disk.table() == GPT
    disk.put(4 * MIB - 512, bytes(512))
    with pytest.raises(ValueError, match="promises a GPT"):
        disk.table()


def test_a_copy_of_a_gpt_counts_only_where_it_belongs() -> None:
    disk = Disk(4 * MIB, at_0=PROTECTIVE, at_512=gpt(7, ENTRIES), at_1024=ENTRIES)
    with pytest.raises(ValueError, match="promises a GPT"):
        disk.table()
    assert disk.put(512, gpt(1, ENTRIES)).table() == GPT


def test_a_gpt_may_count_in_sectors_of_4096() -> None:
    entries = entry(10, 19)
    disk = Disk(MIB, at_0=PROTECTIVE, at_4096=gpt(1, entries, sector=4096), at_8192=entries)
    assert disk.table().partitions == (Partition(1, 40960, 40960),)


def test_a_gpt_counts_only_where_an_mbr_protects_it() -> None:
    assert whole_gpt().put(0, mbr((0x83, 2048, 2048))).table() == Table("mbr", (Partition(1, MIB, MIB),), "", False)
    assert whole_gpt().put(0, bytes(512)).table() == NOTHING
    hybrid = mbr((0x83, 2048, 2048), (0xEE, 1, 2047))
    assert whole_gpt().put(0, hybrid).table() == GPT


@pytest.mark.parametrize(
    ("count", "width", "place"), [(0xFFFFFFFF, 128, 2), (128, 0xFFFFFF80, 2), (4, 64, 2), (128, 0, 2), (4, 128, 1 << 63)]
)
def test_a_gpt_that_claims_more_than_a_table_is_refused_unread(count: int, width: int, place: int) -> None:
    raw = bytearray(gpt(1, ENTRIES)[:92])
    raw[72:92] = struct.pack("<QIII", place, count, width, zlib.crc32(b""))
    raw[16:20] = bytes(4)
    raw[16:20] = struct.pack("<I", zlib.crc32(raw))
    disk = Disk(1 << 45, at_0=PROTECTIVE, at_512=bytes(raw), at_1024=ENTRIES)
    with pytest.raises(ValueError, match="promises a GPT"):
        disk.table()
    assert disk.read < 64 * 1024


def test_a_fat_full_of_boot_code_is_no_mbr() -> None:
    assert Disk(32 * MIB, at_0=fat()).table() == Table("none", (), "fat16", False)
    assert Disk(32 * MIB, at_0=fat(jump=b"\xe9\x00\x01")).table().boot_sector == "fat16"
    small = fat(per=8, total=16384, length=6)
    assert Disk(8 * MIB, at_0=small).table().boot_sector == "fat12"


@pytest.mark.parametrize(
    "wrong",
    [
        {"jump": b"\x33\xc0\x8e"}, {"jump": b"\xeb\x3c\x91"}, {"unit": 513}, {"unit": 0}, {"unit": 256},
        {"per": 0}, {"per": 3}, {"reserved": 0}, {"copies": 0}, {"copies": 3}, {"media": 0xF1}, {"media": 0}, {"root": 0},
        {"total": 65537}, {"total": 0}, {"length": 0}, {"length": 10}, {"per": 128, "length": 32768},
    ],
    ids=str,
)  # fmt: skip
def test_parameters_that_no_fat_has_are_not_taken_for_one(wrong: dict[str, int]) -> None:
    assert Disk(32 * MIB, at_0=fat(**wrong)).table().boot_sector == ""  # type: ignore[arg-type]


def test_clusters_are_counted_against_the_kind() -> None:
    for clusters, kind in ((4084, "fat12"), (4085, "fat16"), (65524, "fat16"), (65525, "")):
        sector = fat(per=1, length=300, total=4 + 2 * 300 + 32 + clusters)
        assert Disk(64 * MIB, at_0=sector).table().boot_sector == kind


def test_a_fats_parameters_that_stayed_behind_in_an_mbr_do_not_hide_it() -> None:
    stale = mbr((0x83, 2048, 2048), code=fat()[:446])
    assert Disk(32 * MIB, at_0=stale).table() == Table("mbr", (Partition(1, MIB, MIB),), "", False)
    for line in ((0x06, 0, 65536), (0x83, 2048, 0x7FFFFFFF)):  # mkfs.fat's own line, and chance
        for lines in ((line,), ((0x83, 2048, 2048), line)):
            assert Disk(32 * MIB, at_0=mbr(*lines, code=fat()[:446])).table() == Table("none", (), "fat16", False)


def test_code_of_a_fat_that_looks_like_a_protective_line_is_no_broken_gpt() -> None:
    assert Disk(32 * MIB, at_0=mbr((0xEE, 1, 1), code=fat()[:446])).table().boot_sector == "fat16"


def test_an_iso_is_seen_beside_a_table() -> None:
    for first, kind in ((b"", "none"), (mbr((0x83, 0, 1000)), "mbr")):
        assert Disk(MIB, at_0=first, at_32768=b"\x01CD001\x01").table() == Table(
            kind, (Partition(1, 0, 512000),) if kind == "mbr" else (), "", True
        )


LINE = st.tuples(st.sampled_from([0x05, 0x0F, 0x83, 0xEE]), st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))


def survives(disk: Disk) -> Table:
    try:
        table = disk.table()
    except ValueError as error:
        assert "promises a GPT" in str(error)
        return NOTHING
    assert all(part.start >= 0 and part.size > 0 for part in table.partitions)
    assert all(part.start + part.size <= disk.size for part in table.partitions)
    return table


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=4096), st.integers(0, 1 << 50), st.booleans())
def test_any_bytes_are_some_disk(data: bytes, size: int, signed: bool) -> None:
    if signed and len(data) >= 512:
        data = data[:510] + b"\x55\xaa" + data[512:]
    survives(Disk(size, at_0=data))


@settings(max_examples=300, deadline=None)
@given(st.lists(LINE, max_size=4), st.integers(0, 1 << 42), st.randoms(use_true_random=False))
def test_any_lines_of_a_table_lie_on_the_disk_or_are_left_out(
    lines: list[tuple[int, int, int]], size: int, chance: random.Random
) -> None:
    disk = Disk(size, at_0=mbr(*lines), at_512=gpt(1, ENTRIES), at_1024=ENTRIES)
    for kind, start, _ in lines:
        if kind in (0x05, 0x0F):
            disk.put(start * 512, mbr((0x83, chance.getrandbits(32), 5), (0x05, chance.getrandbits(8), 5)))
    survives(disk)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["gpt", "fat"]), st.integers(0, 2047), st.binary(min_size=1, max_size=24))
def test_any_change_of_a_sound_table_is_survived(kind: str, at: int, patch: bytes) -> None:
    disk = whole_gpt() if kind == "gpt" else Disk(32 * MIB, at_0=fat())
    raw = bytearray(disk.read_at(0, 2048))
    raw[at : at + len(patch)] = patch
    survives(Disk(disk.size, at_0=bytes(raw)))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def table(path: Path) -> Table:
    with opened(path) as descriptor:
        return read(file_descriptor(descriptor), path.stat().st_size)


def image(path: Path, size_mib: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)
    return path


def tool(*words: str | Path, stdin: str = "") -> str:
    done = subprocess.run([str(word) for word in words], input=stdin, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_file_is_read_to_its_end_and_no_further(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    with opened(tmp_path / "f") as descriptor:
        read_at = file_descriptor(descriptor)
        assert (read_at(2, 3), read_at(8, 5), read_at(10, 1)) == (b"234", b"89", b"")


@pytest.mark.programs
@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_it_is_the_table_that_sfdisk_shows(label: str, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk", 64)
    dos = "2048,8192,c\n10240,,E\n12288,8192,L\n22528,4096,S\n28672,,L\n"
    tool("sfdisk", "-q", disk, stdin=f"label: {label}\n" + (dos if label == "dos" else "2048,8192,U\n20480,100,S\n,,L\n"))
    shown = json.loads(tool("sfdisk", "--json", disk))["partitiontable"]
    expected = [
        Partition(int(one["node"].removeprefix(str(disk))), one["start"] * 512, one["size"] * 512)
        for one in shown["partitions"]
        if one["type"] not in ("5", "f")
    ]
    assert len(expected) == (4 if label == "dos" else 3)
    assert table(disk) == Table("mbr" if label == "dos" else "gpt", tuple(expected), "", False)


@pytest.mark.programs
@pytest.mark.parametrize("fake_mbr", ["yes", "no"])
@pytest.mark.parametrize(("bits", "size_mib"), [(12, 4), (16, 32), (16, 1024), (32, 64), (32, 1024)])
def test_what_mkfs_makes_is_known(bits: int, size_mib: int, fake_mbr: str, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk", size_mib)
    tool("mkfs.vfat", "-F", str(bits), f"--mbr={fake_mbr}", disk)
    assert table(disk) == Table("none", (), f"fat{bits}", False)
    tool("sfdisk", "-q", disk, stdin="2048,,L\n")
    assert table(disk) == Table("mbr", (Partition(1, MIB, (size_mib - 1) * MIB),), "", False)


@pytest.mark.programs
@pytest.mark.parametrize("table_kind", ["none", "mbr", "gpt"])
def test_a_hybrid_iso_is_seen(table_kind: str, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("x")
    fat16 = image(tmp_path / "fat", 2)
    hybrid = {
        "none": [],
        "mbr": ["--protective-msdos-label"],
        "gpt": ["-append_partition", "2", "0xef", str(fat16), "-appended_part_as_gpt"],
    }
    iso = tmp_path / "iso"
    tool("xorriso", "-as", "mkisofs", "-quiet", *hybrid[table_kind], "-o", iso, tmp_path / "tree")
    found = table(iso)
    assert (found.kind, found.boot_sector, found.iso) == (table_kind, "", True)
