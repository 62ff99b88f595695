"""A user's image is known by its header before anything else reads it: what leads out of the file never passes."""

import os
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import hostile_images as images
import pytest
from hostile_images import GIB, LIMIT, MIB, SEALS, TIB, Change, be, le
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmbatch.errors import UserError
from vmbatch.images.headers import Reader
from vmbatch.images.inspect import FORMATS, Header, inspect
from vmbatch.images.vhdx import crc32c
from vmbatch.process import run

programs = pytest.mark.programs
BASES = {
    "qcow2": ("qcow2",),
    "old": ("qcow2", "compat=0.10"),
    "fine": ("qcow2", "cluster_size=512,extended_l2=off"),
    "vmdk": ("vmdk",),
    "stream": ("vmdk", "subformat=streamOptimized"),
    "vdi": ("vdi",),
    "vpc": ("vpc", "force_size=on"),
    "geometry": ("vpc",),
    "fixed": ("vpc", "subformat=fixed,force_size=on"),
    "vhdx": ("vhdx",),
}
SIZE = 10 * MIB


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One image of each kind, of 10 MiB, as qemu-img makes it. Not to be changed."""
    folder = tmp_path_factory.mktemp("bases")
    made = {name: images.make(folder / name, kind, SIZE, *options) for name, (kind, *options) in BASES.items()}
    made["footer"] = images.with_footer(made["stream"], folder / "footer")
    return made


def spent() -> tuple[int, int]:
    """Bytes and calls that this thread has read, as the kernel counts them (proc_pid_io(5))."""
    with open("/proc/thread-self/io", "rb", buffering=0) as file:
        words = file.read().split()
    return int(words[1]), int(words[5])


def cost(function: Callable[[], object]) -> tuple[int, int]:
    before = spent()
    function()
    after = spent()
    return after[0] - before[0], after[1] - before[1]


# What passes.


@programs
@pytest.mark.parametrize("size", [MIB, 10 * GIB + 512, 2 * TIB], ids=["1M", "10G", "2T"])
@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("qcow2", "compat=1.1"),
        ("qcow2", "compat=0.10"),
        ("qcow2", "cluster_size=2M"),
        ("qcow2", "cluster_size=16k,extended_l2=on"),
        ("qcow2", "compression_type=zstd"),
        ("qcow2", "lazy_refcounts=on,refcount_bits=1"),
        ("qcow2", "refcount_bits=64"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "zeroed_grain=on,compat6=on"),
        ("vmdk", "subformat=streamOptimized"),
        ("vdi", "static=off"),
        ("vdi", "static=on"),
        ("vpc", "subformat=dynamic"),
        ("vpc", "subformat=dynamic,force_size=on"),
        ("vpc", "subformat=fixed,force_size=on"),
        ("vhdx", "subformat=dynamic"),
        ("vhdx", "subformat=dynamic,block_size=1M"),
        ("vhdx", "subformat=fixed"),
        ("raw", "preallocation=off"),
    ],
)
def test_every_format_passes_with_the_size_that_qemu_sees(tmp_path: Path, kind: str, option: str, size: int) -> None:
    if kind == "vpc":
        size = min(size, 2040 * GIB)
    if option == "subformat=fixed" or "static=on" in option or "fixed" in option:
        size = min(size, 10 * GIB)
    path = images.make(tmp_path / "image", kind, size, option)
    told = images.facts(path, kind)
    assert told is not None
    assert images.look(path) == images.look(path, kind) == Header(kind, int(str(told["virtual-size"])))
    assert kind == "vpc" or told["virtual-size"] == size


@programs
@pytest.mark.parametrize("options", [(), ("-c",)], ids=["plain", "compressed"])
@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_that_holds_data_passes(tmp_path: Path, kind: str, options: tuple[str, ...]) -> None:
    if options and kind not in ("qcow2",):
        options = ("-o", "subformat=streamOptimized") if kind == "vmdk" else ()
    source = images.raw(tmp_path / "raw", (0, random.Random(1).randbytes(3 * MIB)), size=8 * MIB)
    target = tmp_path / "image"
    run(["qemu-img", "convert", *options, "-f", "raw", "-O", kind, source, target], timeout_s=60)
    assert images.look(target).format == kind


@programs
def test_a_qcow2_with_snapshots_and_bitmaps_passes(tmp_path: Path) -> None:
    path = images.make(tmp_path / "image", "qcow2", SIZE)
    run(["qemu-img", "snapshot", "-c", "before", path], timeout_s=60)
    run(["qemu-img", "bitmap", "--add", "-f", "qcow2", path, "changes"], timeout_s=60)
    assert images.look(path, "qcow2") == Header("qcow2", SIZE)
    assert images.changed(path, tmp_path / "broken", [(64, be("Q", 1 << 40))])  # bytes 64..71: the snapshot table
    assert "snapshot table" in images.refusal(tmp_path / "broken")


@programs
def test_a_stream_with_a_footer_passes(bases: dict[str, Path]) -> None:
    told = images.facts(bases["footer"], "vmdk")
    assert told is not None and told["virtual-size"] == SIZE
    assert images.look(bases["footer"], "vmdk") == Header("vmdk", SIZE)


@pytest.mark.parametrize(
    "changes",
    [(), ((510, b"\x55\xaa"), (512, b"EFI PART")), ((32769, b"CD001"), (510, b"\x55\xaa")), ((4096, b"QFI\xfb"),)],
    ids=["zeros", "GPT", "hybrid ISO", "magic elsewhere"],
)
def test_partition_tables_and_iso_file_systems_are_raw(tmp_path: Path, changes: tuple[Change, ...]) -> None:
    path = images.raw(tmp_path / "image", *changes)
    assert images.look(path) == images.look(path, "raw") == Header("raw", MIB)


def test_the_largest_size_that_is_allowed_passes_and_one_sector_more_does_not(tmp_path: Path) -> None:
    path = images.raw(tmp_path / "image")
    assert images.look(path, limit=MIB).virtual_size == MIB
    assert f"of {MIB} bytes; this site takes at most {MIB - 512}" in images.refusal(path, limit=MIB - 512)


# What is no image at all.


def test_only_regular_files_are_looked_at(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        images.opened(tmp_path / "pipe", os.O_RDWR) as pipe,
        images.opened(Path("/dev/zero")) as device,
        images.opened(tmp_path) as folder,
        socket.socket(socket.AF_UNIX) as network,
    ):
        places = {pipe: "a pipe", device: "a device", folder: "a directory", network.fileno(): "a socket"}
        for descriptor, word in places.items():
            with pytest.raises(UserError, match=f"{word}, not a file"):
                inspect(descriptor, None, LIMIT)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"\1" * 511, "truncate -s %512 FILE"),
        (b"\1" * 513, "no multiple of 512"),
        (b"QFI\xfb", "incomplete"),
        (b"QFI\xfb\0\0\0\3" + bytes(80), "incomplete"),
        (b"KDMV", "incomplete"),
        (b"vhdxfile" + bytes(9000), "incomplete"),
        (b"conectix", "incomplete"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "incomplete"),
    ],
)
def test_empty_odd_and_short_files_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "image").write_bytes(data)
    assert words in images.refusal(tmp_path / "image")


@pytest.mark.parametrize("name", ["vhd", "iso", "", "QCOW2", "qcow2\n\x1b[31m"])
def test_a_format_that_is_not_known_is_refused(tmp_path: Path, name: str) -> None:
    text = images.refusal(images.raw(tmp_path / "image"), name)
    assert "is no format" in text and "raw, qcow2" in text and "\x1b" not in text


OTHERS = {
    "qcow": (0, b"QFI\xfb\0\0\0\1"),
    "qed": (0, b"QED\0"),
    "parallels": (0, b"WithoutFreeSpace"),
    "bochs": (0, b"Bochs Virtual HD Image"),
    "cloop": (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0"),
    "luks": (0, b"LUKS\xba\xbe\0\1"),
    "dmg": (-512, b"koly\0\0\0\4"),
    "gzip": (0, b"\x1f\x8b\x08"),
    "xz": (0, b"\xfd7zXZ\0"),
    "zstd": (0, b"\x28\xb5\x2f\xfd"),
    "bzip2": (0, b"BZh91AY"),
    "zip": (0, b"PK\3\4"),
    "tar": (257, b"ustar\0"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("declared", [None, "raw", "qcow2"])
def test_other_formats_are_refused_by_name(tmp_path: Path, name: str, declared: str | None) -> None:
    assert f"content is {name}," in images.refusal(images.raw(tmp_path / "image", OTHERS[name]), declared)


@programs
@pytest.mark.parametrize("name", ["qcow", "qed", "parallels"])
def test_other_formats_that_qemu_makes_are_refused(tmp_path: Path, name: str) -> None:
    assert f"-f {name} -O qcow2" in images.refusal(images.make(tmp_path / "image", name, SIZE), "raw")


@programs
@pytest.mark.parametrize("declared", FORMATS)
def test_an_image_of_another_format_than_declared_is_refused(bases: dict[str, Path], declared: str) -> None:
    for name, path in bases.items():
        kind = BASES.get(name, ("vmdk",))[0]
        assert (f"declared as {declared}, but its content is {kind}" in images.refusal(path, declared)) == (kind != declared)


def test_raw_content_is_nothing_else(tmp_path: Path) -> None:
    for declared in FORMATS[1:]:
        assert "content is raw" in images.refusal(images.raw(tmp_path / "image"), declared)


@programs
@pytest.mark.parametrize("name", ["qcow2", "vmdk", "vhdx"])
@pytest.mark.parametrize(
    "second",
    [(64, b"\x7f\x10\xda\xbe"), (-512, b"conectix"), (-512, b"koly"), (257, b"ustar")],
    ids=["vdi", "vpc", "dmg", "tar"],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path: Path, bases: dict[str, Path], name: str, second: Change) -> None:
    path = images.changed(bases[name], tmp_path / "image", ())
    os.truncate(path, path.stat().st_size + 512 - path.stat().st_size % 512)
    images.change(path, [second])
    for declared in (None, name, "raw"):
        assert "can be read as" in images.refusal(path, declared)


# Hostile headers: base, what is written over it, words of the refusal.

END_V3 = 112  # header length that qemu-img writes; the first extension follows
QCOW2: list[tuple[str, str, list[Change], str]] = [
    ("backing file", "qcow2", [(8, be("QI", 600, 11)), (600, b"/etc/shadow")], "backing file"),
    ("backing file in an old image", "old", [(8, be("QI", 600, 11)), (600, b"/etc/shadow")], "backing file"),
    ("backing offset alone", "qcow2", [(8, be("Q", 1))], "backing file"),
    ("backing length alone", "qcow2", [(16, be("I", 5))], "backing file"),
    ("backing format", "qcow2", [(END_V3, be("II", 0xE2792ACA, 3))], "backing file's format"),
    ("data file bit", "qcow2", [(72, be("Q", 4))], "external data file"),
    ("raw data file bit", "qcow2", [(88, be("Q", 2))], "external data file"),
    ("data file name", "qcow2", [(END_V3, be("II8s", 0x44415441, 8, b"/etc/xyz"))], "external data file"),
    ("encryption header", "qcow2", [(END_V3, be("II", 0x0537BE77, 16))], "encryption"),
    ("dirty", "qcow2", [(72, be("Q", 1))], "marked dirty; repair it: qemu-img check"),
    ("corrupt", "qcow2", [(72, be("Q", 2))], "marked corrupt; repair it: qemu-img check"),
    ("unknown feature", "qcow2", [(72, be("Q", 1 << 5))], "bits 0x20"),
    ("last feature", "qcow2", [(72, be("Q", 1 << 63))], "features that are not known"),
    ("compression without its bit", "qcow2", [(104, b"\1")], "compression type 1"),
    ("unknown compression", "qcow2", [(72, be("Q", 8)), (104, b"\2")], "compression type 2"),
    ("no compression type", "qcow2", [(72, be("Q", 8))], "compression type 0"),
    ("extended L2 in small clusters", "fine", [(72, be("Q", 16))], "extended L2"),
    ("AES", "qcow2", [(32, be("I", 1))], "encrypted (method 1)"),
    ("LUKS", "old", [(32, be("I", 2))], "encrypted (method 2)"),
    ("version 0", "qcow2", [(4, be("I", 0))], "version 0"),
    ("version 4", "qcow2", [(4, be("I", 4))], "version 4"),
    ("small clusters", "qcow2", [(20, be("I", 8))], "clusters of 2^8"),
    ("large clusters", "qcow2", [(20, be("I", 22))], "clusters of 2^22"),
    ("huge clusters", "qcow2", [(20, be("I", 0xFFFFFFFF))], "clusters of 2^4294967295"),
    ("short header", "qcow2", [(100, be("I", 96))], "header of 96 bytes"),
    ("odd header", "qcow2", [(100, be("I", 113))], "header of 113 bytes"),
    ("long header", "qcow2", [(100, be("I", 65544))], "header of 65544 bytes"),
    ("refcount width", "qcow2", [(96, be("I", 7))], "reference counts of 2^7"),
    ("no disk", "qcow2", [(24, be("Q", 0))], "disk of 0 bytes"),
    ("odd disk", "qcow2", [(24, be("Q", SIZE - 1))], "no multiple of 512"),
    ("bomb", "qcow2", [(24, be("Q", 1 << 50))], "1125899906842624 bytes; this site takes at most 4398046511104 (4096 GiB)"),
    ("largest number", "qcow2", [(24, be("Q", (1 << 64) - 512))], "this site takes at most"),
    ("L1 too small", "qcow2", [(36, be("I", 0))], "L1 table of 0 entries; its disk needs 1"),
    ("L1 too large", "qcow2", [(36, be("I", 2))], "L1 table of 2 entries; its disk needs 1"),
    ("L1 over 32 MiB", "fine", [(24, be("Q", 256 * GIB)), (36, be("I", 1 << 23))], "L1 table of 67108864 bytes"),
    ("L1 behind the end", "qcow2", [(40, be("Q", 1 << 40))], "L1 table that ends at byte 1099511627784"),
    ("L1 wraps around", "qcow2", [(40, be("Q", (1 << 64) - 65536))], "L1 table that ends at"),
    ("L1 in the header", "qcow2", [(40, be("Q", 0))], "L1 table at byte 0"),
    ("L1 not aligned", "qcow2", [(40, be("Q", 196609))], "L1 table at byte 196609"),
    ("no refcounts", "qcow2", [(56, be("I", 0))], "no reference count table"),
    ("refcounts over 8 MiB", "qcow2", [(56, be("I", 129))], "reference count table of 8454144 bytes"),
    ("refcounts behind the end", "qcow2", [(48, be("Q", 1 << 62))], "reference count table that ends"),
    ("refcounts not aligned", "qcow2", [(48, be("Q", 512))], "reference count table at byte 512"),
    ("too many snapshots", "qcow2", [(60, be("IQ", 65537, 65536))], "snapshot table of 2621480 bytes"),
    ("snapshots behind the end", "qcow2", [(60, be("IQ", 60000, 65536))], "snapshot table that ends"),
    ("snapshots nowhere", "qcow2", [(60, be("IQ", 1, 0))], "snapshot table at byte 0"),
    ("extension past its end", "qcow2", [(END_V3, be("II", 0x1234, 65536))], "extension of 65536 bytes that runs past"),
    ("extension of 4 GiB", "qcow2", [(END_V3, be("II", 0x1234, 0xFFFFFFFF))], "runs past its end"),
    ("extension twice", "qcow2", [(END_V3, be("IIII", 7, 0, 7, 0))], "0x7 twice"),
    ("extensions without end", "qcow2", [(END_V3, b"".join(be("II", n, 0) for n in range(1, 40)))], "more than 32"),
    (
        "extension cut by the cluster",
        "fine",
        [(100, be("I", 504)), (504, be("II", 9, 1))],
        "runs past its end",
    ),
    ("bitmaps too short", "qcow2", [(88, be("Q", 1)), (END_V3, be("II", 0x23852875, 8))], "bitmaps extension of 8 bytes"),
    (
        "bitmaps behind the end",
        "qcow2",
        [(88, be("Q", 1)), (END_V3, be("IIIIQQ", 0x23852875, 24, 1, 0, 64, 1 << 40))],
        "bitmap directory that ends",
    ),
]
VMDK: list[tuple[str, str, list[Change], str]] = [
    ("old extent", "vmdk", [(0, b"COWD")], "old ESX extent"),
    ("descriptor instead of a disk", "vmdk", [(12, le("Q", 0))], "disk of 0 bytes"),
    ("bomb", "vmdk", [(12, le("Q", 1 << 41))], "this site takes at most"),
    ("version", "vmdk", [(4, le("I", 4))], "version 4"),
    ("unclean", "vmdk", [(72, b"\1")], "not closed cleanly"),
    ("text transfer", "vmdk", [(73, b"\n \n\n")], "transfer as text"),
    ("grain of nothing", "vmdk", [(20, le("Q", 0))], "grains of 0 sectors"),
    ("grain of 1 TiB", "vmdk", [(20, le("Q", 1 << 31))], "grains of 2147483648"),
    ("odd grain", "vmdk", [(20, le("Q", 129))], "grains of 129"),
    ("grain tables", "vmdk", [(44, le("I", 1))], "grain tables of 1 entries"),
    ("data behind the end", "vmdk", [(64, le("Q", 1 << 30))], "behind the file's end"),
    ("directory behind the end", "vmdk", [(56, le("Q", 1 << 40))], "a grain directory that ends"),
    ("second directory behind the end", "vmdk", [(48, le("Q", 1 << 40))], "second grain directory that ends"),
    ("directory in the header", "vmdk", [(56, le("Q", 0))], "grain directory at byte 0"),
    ("descriptor elsewhere", "vmdk", [(28, le("Q", 3))], "at sector 3"),
    ("no descriptor", "stream", [(28, le("QQ", 0, 0))], "0 sectors at sector 0"),
    ("large descriptor", "vmdk", [(36, le("Q", 21))], "descriptor of 21 sectors"),
    ("descriptor past its end", "vmdk", [(36, le("Q", 1)), images.descriptor("#" * 600)], "runs past its end"),
    ("compression", "vmdk", [(77, le("H", 1))], "its compression is 1"),
    ("no compression", "stream", [(77, le("H", 0))], "its compression is 0"),
    ("footer that is not there", "vmdk", [(56, b"\xff" * 8)], "no footer"),
    ("not text", "vmdk", [images.descriptor("a\x01b")], "not plain text"),
    ("carriage return", "vmdk", [images.descriptor('x=1\rRW 1 FLAT "/etc/shadow" 0\n')], "not plain text"),
    ("empty descriptor", "vmdk", [images.descriptor("")], "parent"),
]
VDI: list[tuple[str, str, list[Change], str]] = [
    ("version", "vdi", [(68, le("I", 0x10000))], "version 1.0"),
    ("undo", "vdi", [(76, le("I", 3))], "type 3"),
    ("differencing", "vdi", [(76, le("I", 4))], "type 4"),
    ("parent", "vdi", [(440, b"\1" * 16)], "has a parent image"),
    ("link", "vdi", [(424, b"\1" * 16)], "has a parent image"),
    ("sectors", "vdi", [(360, le("I", 4096))], "sectors of 4096"),
    ("blocks of 1 sector", "vdi", [(376, le("I", 512))], "blocks of 512"),
    ("extra bytes", "vdi", [(380, le("I", 512))], "+ 512 bytes"),
    ("bomb", "vdi", [(368, le("Q", 1 << 50))], "this site takes at most"),
    ("no disk", "vdi", [(368, le("Q", 0))], "disk of 0 bytes"),
    ("too many blocks", "vdi", [(384, le("I", 0x3FFFFFFF))], "its disk needs 10"),
    ("too few blocks", "vdi", [(384, le("I", 9))], "0 of 9 blocks"),
    ("more than all", "vdi", [(388, le("I", 11))], "11 of 10 blocks"),
    ("data that is not there", "vdi", [(388, le("I", 10))], "the file ends at byte 1024"),
    ("map behind the end", "vdi", [(340, le("I", 1 << 30))], "block map that ends"),
    ("map in the header", "vdi", [(340, le("I", 0))], "block map at byte 0"),
    ("data in the map", "vdi", [(344, le("I", 512))], "data from byte 512"),
    ("data behind the end", "vdi", [(344, le("I", 1 << 30))], "the file ends at byte 1024"),
    ("data not aligned", "vdi", [(344, le("I", 1025)), (4096, b"\0")], "data from byte 1025"),
    ("fixed without data", "vdi", [(76, le("I", 2))], "the file ends at byte 1024"),
]
VPC: list[tuple[str, str, list[Change], str]] = [
    ("differencing", "vpc", [(60, be("I", 4))], "type 4"),
    ("dynamic that says fixed", "vpc", [(60, be("I", 2))], "type 2"),
    ("fixed that says differencing", "fixed", [(60 - 512, be("I", 4))], "type 4"),
    ("version", "vpc", [(12, be("I", 0x20000))], "version 0x20000"),
    ("bomb", "vpc", [(48, be("Q", 1 << 50))], "this site takes at most"),
    ("over 2040 GiB", "vpc", [(48, be("Q", 2041 * GIB))], "the format ends at"),
    ("no disk", "vpc", [(48, be("Q", 0))], "disk of 0 bytes"),
    ("two sizes", "geometry", [(48, be("Q", SIZE * 2))], "force_size_calc=current_size"),
    ("fixed and short", "fixed", [(48 - 512, be("Q", SIZE * 2))], "its disk needs 20972032"),
    ("header behind the end", "vpc", [(16, be("Q", 1 << 40))], "incomplete"),
    ("header that is none", "vpc", [(16, be("Q", 0))], "no dynamic header"),
    ("header by another name", "vpc", [(512, b"cxspares")], "no dynamic header"),
    ("header of another version", "vpc", [(512 + 24, be("I", 2))], "no dynamic header of version"),
    ("blocks of nothing", "vpc", [(512 + 32, be("I", 0))], "blocks of 0 bytes, which"),
    ("small blocks", "vpc", [(512 + 28, be("III", 1 << 20, 256, 0))], "blocks of 256 bytes, which"),
    ("odd blocks", "vpc", [(512 + 32, be("I", 3 << 20))], "blocks of 3145728"),
    ("too few blocks", "vpc", [(512 + 28, be("I", 1))], "too few"),
    ("table over 32 MiB", "vpc", [(512 + 28, be("I", 1 << 30))], "block table of 4294967296 bytes"),
    ("table behind the end", "vpc", [(512 + 16, be("Q", 1 << 50))], "block table that ends"),
    ("table in the header", "vpc", [(512 + 16, be("Q", 0))], "block table at byte 0"),
]


def hostile(rows: list[tuple[str, str, list[Change], str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("base", "changes", "words"), [row[1:] for row in rows], ids=[row[0] for row in rows])


@programs
@hostile(QCOW2 + VMDK + VDI)
def test_a_hostile_header_is_refused(
    tmp_path: Path, bases: dict[str, Path], base: str, changes: list[Change], words: str
) -> None:
    text = images.refusal(images.changed(bases[base], tmp_path / "image", changes))
    assert words in text and text.startswith(f"the {BASES[base][0]} image")


@programs
@hostile(VPC)
def test_a_hostile_vhd_with_right_checksums_is_refused(
    tmp_path: Path, bases: dict[str, Path], base: str, changes: list[Change], words: str
) -> None:
    path = images.changed(bases[base], tmp_path / "image", changes)
    images.seal_vpc(path)
    assert words in images.refusal(path)


@programs
@pytest.mark.parametrize("creator", [b"win ", b"qem2", b"d2v ", b"CTXS", b"tap\0", b"qemu", b"vpc ", b"vbox", b"wa\0\0"])
def test_a_vhds_size_is_the_one_that_qemu_sees_or_it_is_refused(
    tmp_path: Path, bases: dict[str, Path], creator: bytes
) -> None:
    path = images.changed(bases["geometry"], tmp_path / "image", [(28, creator), (48, be("Q", SIZE))])
    images.seal_vpc(path)
    told = images.facts(path, "vpc")
    assert told is not None
    if told["virtual-size"] == SIZE:
        assert images.look(path) == Header("vpc", SIZE)
    else:
        assert f"holds a disk of {SIZE} bytes, or of {told['virtual-size']} by its geometry" in images.refusal(path)


@programs
@pytest.mark.parametrize(
    ("base", "at", "words"),
    [
        ("vpc", 8, "footer that disagrees"),
        ("vpc", -500, "footer that disagrees"),
        ("fixed", -500, "wrong checksum"),
        ("vpc", 512 + 600, "dynamic header with a wrong checksum"),
        ("vhdx", images.REGIONS + 65000, "no valid region table"),
    ],
)
def test_one_changed_byte_breaks_a_checksum(tmp_path: Path, bases: dict[str, Path], base: str, at: int, words: str) -> None:
    assert words in images.refusal(images.changed(bases[base], tmp_path / "image", [(at, b"\x99")]))


@programs
def test_images_that_qemu_img_makes_with_other_files_are_refused(tmp_path: Path) -> None:
    base = images.make(tmp_path / "base", "raw", SIZE)
    cases = {
        "qcow2": ("backing file", ["-F", "raw", "-b", str(base)]),
        "qcow2 ": ("external data file", ["-o", f"data_file={tmp_path}/data"]),
        "vmdk": ("parentfilenamehint", ["-F", "vmdk", "-b", str(images.make(tmp_path / "parent", "vmdk", SIZE))]),
        "vmdk ": ("text descriptor", ["-o", "subformat=monolithicFlat"]),
        "vmdk  ": ("text descriptor", ["-o", "subformat=twoGbMaxExtentSparse"]),
    }
    for kind, (words, options) in cases.items():
        path = tmp_path / "image.vmdk"
        run(["qemu-img", "create", "-q", "-f", kind.strip(), *options, path, str(SIZE)], timeout_s=60)
        for declared in (None, kind.strip()):
            assert words in images.refusal(path, declared)
        assert images.refusal(path, "raw")


@programs
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("monolithicSparse", "monolithicFlat", "type 'monolithicFlat'"),
        ("monolithicSparse", "vmfsRaw", "type 'vmfsRaw'"),
        ('createType="', 'kreateType="', "type ''"),
        ("# Extent", 'createType="monolithicFlat"\n#', "type 'monolithicSparse'"),
        ("ffffffff", "12345678", "parent image"),
        ("# Extent", "# parentCID=12345678\n#", "parent image"),
        ("# Extent", '# parentFileNameHint="/etc/shadow"\n#', "parentfilenamehint"),
        ("# Extent", 'changeTrackPath="/etc/shadow"\n#', "changetrackpath"),
        ("SPARSE", "FLAT", "means more than this file"),
        ('SPARSE "', 'SPARSE "/etc/', "means more than this file"),
        ('SPARSE "', 'SPARSE "..\\', "means more than this file"),
        ('SPARSE "', 'SPARSE "nbd:', "means more than this file"),
        ("RW 20480", "RW 20481", "means more than this file"),
        ("RW 20480", "RW 99999999999999999999999", "means more than this file"),
        ("RW 20480", "NOACCESS 20480", "means more than this file"),
        ("RW 20480", 'RW 1 FLAT "/etc/shadow" 0\nRW 20480', "/etc/shadow"),
        ("RW 20480", "#RW 20480", "means more than this file"),
        ("# Extent", "gibberish\n#", "gibberish"),
        ("# Extent", "version=2\n#", "version=2"),
    ],
)
def test_a_vmdk_descriptor_names_nothing_but_its_own_file(
    tmp_path: Path, bases: dict[str, Path], old: str, new: str, words: str
) -> None:
    text = images.described(bases["vmdk"])
    assert text.count(old) == 1
    path = images.changed(bases["vmdk"], tmp_path / "image", [images.descriptor(text.replace(old, new))])
    assert words in images.refusal(path)
    windows = images.changed(bases["vmdk"], tmp_path / "image", [images.descriptor(text.replace("\n", "\r\n"))])
    assert images.look(windows).virtual_size == SIZE


@programs
@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (12, le("Q", 40960), "footer that disagrees"),
        (28, le("QQ", 5, 1), "footer that disagrees"),
        (77, le("H", 0), "footer that disagrees"),
        (0, b"KDMW", "no footer"),
        (56, b"\xff" * 8, "grain directory"),
    ],
)
def test_a_vmdk_footer_says_what_the_header_says(
    tmp_path: Path, bases: dict[str, Path], at: int, data: bytes, words: str
) -> None:
    assert words in images.refusal(images.with_footer(bases["stream"], tmp_path / "image", (at, data)))


@programs
def test_a_vmdk_footer_stands_in_whole_sectors(tmp_path: Path, bases: dict[str, Path]) -> None:
    data = bases["footer"].read_bytes()
    (tmp_path / "image").write_bytes(data[:-1536] + bytes(100) + data[-1536:])
    assert "no footer" in images.refusal(tmp_path / "image")


@programs
@pytest.mark.parametrize("at", [-1536 + 12, -512])
def test_a_vmdk_footer_stands_between_its_marks(tmp_path: Path, bases: dict[str, Path], at: int) -> None:
    assert "no footer" in images.refusal(images.changed(bases["footer"], tmp_path / "image", [(at, b"\7")]))


@pytest.mark.parametrize(
    "text",
    [
        '# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 9 FLAT "/etc/shadow" 0\n',
        "#disk descriptorfile\r\n",
        "# anything\n\n   \nversion=3\n",
        "version=1\r\n",
    ],
)
def test_a_text_that_qemu_takes_for_a_vmdk_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "image").write_bytes(text.encode().ljust(1024, b"\n"))
    assert "text descriptor" in images.refusal(tmp_path / "image")
    assert "content is vmdk" in images.refusal(tmp_path / "image", "raw")


PARAMETERS, VIRTUAL_SIZE = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B", "2FA54224-CD1B-4876-B211-5DBED83BF4B8"
LOGICAL = "8141BF1D-A96F-4709-BA47-F233A8FAAB5F"
BLOCK_TABLE, METADATA = "2DC27766-F623-4200-9D64-115E9BFD4A08", "8B7CA206-4790-4B9A-B8FE-575F050F886E"


def vhdx_rows(path: Path) -> list[tuple[list[Change], str]]:
    parameters, size, logical = (images.item(path, name) for name in (PARAMETERS, VIRTUAL_SIZE, LOGICAL))
    table, metadata = images.region(path, BLOCK_TABLE), images.region(path, METADATA)
    both = images.HEADERS
    again = UUID(BLOCK_TABLE).bytes_le + le("QII", 6 * MIB, MIB, 1)
    same = path.read_bytes()[size[0] : size[0] + 32]
    nobody, parent = b"\7" * 16, bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c")
    return [
        ([(parameters[1] + 4, le("I", 2))], "parent image"),
        ([(parameters[1], le("I", 1 << 19))], "blocks of 524288"),
        ([(parameters[1], le("I", 3 << 20))], "blocks of 3145728"),
        ([(size[1], le("Q", 1 << 60))], "this site takes at most"),
        ([(size[1], le("Q", 0))], "disk of 0 bytes"),
        ([(size[1], le("Q", 3 * TIB))], "block table of"),
        ([(logical[1], le("I", 4096))], "sectors of 4096"),
        ([(size[0] + 16, le("I", 1 << 31))], "8 bytes of it"),
        ([(size[0] + 16, le("I", 0))], "8 bytes of it at byte 0"),
        ([(size[0] + 20, le("I", 9))], "9 bytes of it"),
        ([(size[0], nobody)], "needs metadata item 07070707"),
        ([(size[0], nobody), (size[0] + 24, le("I", 0))], "lacks metadata: 2FA54224"),
        ([(size[0], parent)], "parent image"),
        ([(metadata[1] + 8, le("HH", 0, 2048))], "no valid metadata table"),
        ([(metadata[1], b"METADATA")], "no valid metadata table"),
        ([(table[0], nobody), (table[0] + 28, le("I", 1))], "needs region 07070707"),
        ([(table[0], nobody), (table[0] + 28, le("I", 0))], "lacks its block table"),
        ([(table[0] + 16, le("Q", 1 << 40))], "region that ends"),
        ([(table[0] + 16, le("Q", 65536))], "region at byte 65536"),
        ([(table[0] + 16, le("Q", metadata[1]))], "overlap"),
        ([(table[0] + 24, le("I", 0))], "with 0 bytes"),
        ([(table[0] + 24, le("I", 1 << 19))], "with 524288 bytes"),
        ([(images.REGIONS + 8, le("I", 3)), (images.REGIONS + 80, again)], "with 1048576 bytes"),
        ([(metadata[1] + 10, le("H", 6)), (metadata[1] + 192, same)], "8 bytes of it"),
        ([(table[0] + 24, le("I", 0xFFF00000))], "at most 33554432 are read"),
        ([(images.REGIONS + 8, le("I", 2048))], "no valid region table"),
        ([(images.REGIONS, b"REGI")], "no valid region table"),
        ([(at + 48, b"\1" * 16) for at in both], "qemu-img check -f vhdx -r all"),
        ([(at + 64, le("H", 1)) for at in both], "changes in its log"),
        ([(at + 8, le("Q", 9) + bytes([n]) * 16) for n, at in enumerate(both)], "neither is the newer"),
        ([(at + 66, le("H", 2)) for at in both], "no valid header"),
    ]


@programs
def test_a_hostile_vhdx_with_right_checksums_is_refused(tmp_path: Path, bases: dict[str, Path]) -> None:
    for changes, words in vhdx_rows(bases["vhdx"]):
        path = images.changed(bases["vhdx"], tmp_path / "image", changes)
        images.seal_vhdx(path)
        assert words in images.refusal(path), (changes, words)


@programs
def test_a_vhdx_is_read_by_its_newer_valid_header(tmp_path: Path, bases: dict[str, Path]) -> None:
    first, second = images.HEADERS
    dirty = [(first + 8, le("Q", 50)), (first + 48, b"\1" * 16)]
    path = images.changed(bases["vhdx"], tmp_path / "image", [*dirty, (second + 8, le("Q", 51))])
    images.seal_vhdx(path)
    assert images.look(path) == Header("vhdx", SIZE)
    images.change(path, [(second + 4, b"bad!")])
    assert "changes in its log" in images.refusal(path)


def test_the_checksum_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283


# Whatever the bytes: one kind of error, few reads, and never more trusting than QEMU.


def pieces(path: Path) -> list[Change]:
    """All of a small sparse file that is not zero."""
    data = path.read_bytes()
    return [(at, data[at : at + 4096]) for at in range(0, len(data), 4096) if any(data[at : at + 4096])]


@pytest.fixture(scope="module")
def whole(bases: dict[str, Path]) -> dict[str, tuple[int, list[Change]]]:
    return {name: (path.stat().st_size, pieces(path)) for name, path in bases.items()}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scratch") / "image"
    path.touch()
    return path


def restore(path: Path, image: tuple[int, list[Change]]) -> None:
    os.truncate(path, 0)
    os.truncate(path, image[0])
    images.change(path, image[1])


SMALL = (0, 1, 2, 3, 4, 5, 8, 9, 16, 21, 22, 24, 64, 72, 104, 112, 128, 512, 1024, 4096, 20480, 65536)
LARGE = (MIB, SIZE, 2 * SIZE, 1 << 31, 1 << 32, 1 << 40, 1 << 50, (1 << 63) - 1, (1 << 64) - 512, (1 << 64) - 1)
NUMBERS = st.sampled_from(SMALL + LARGE)
WORDS = st.builds(
    lambda n, form: struct.pack(form, n & (1 << 8 * struct.calcsize(form)) - 1),
    NUMBERS,
    st.sampled_from([">I", ">Q", "<I", "<Q", "<H", "B"]),
)
# Mostly where some format has a field, so that a change means something.
PLACES = st.one_of(
    st.sampled_from([*range(0, 112, 4), *range(340, 392, 4), 77]), st.integers(0, 1600), st.integers(-1600, -1)
)
TABLES = st.sampled_from([64 << 10, 128 << 10, 192 << 10, 1 << 20, 2 << 20, 3 << 20]).flatmap(
    lambda start: st.integers(start, start + 256) | st.integers(start + 65536, start + 65600)
)
CHANGES = st.lists(st.tuples(PLACES | TABLES, WORDS | st.binary(min_size=1, max_size=8)), max_size=3)
NAMES = st.sampled_from([*BASES, "footer"])


def mutate(path: Path, image: tuple[int, list[Change]], name: str, changes: list[Change], seal: bool) -> None:
    restore(path, image)
    images.change(path, [(at, data) for at, data in changes if -image[0] <= at <= image[0] - len(data)])
    kind = BASES.get(name, ("vmdk",))[0]
    if seal and kind in SEALS:
        SEALS[kind](path)


def verdict(path: Path) -> Header | None:
    try:
        return images.look(path)
    except UserError as error:
        assert error.message and error.hint and error.message.isprintable()
        return None


@programs
def test_any_bytes_give_a_header_or_a_user_error_after_few_reads(
    whole: dict[str, tuple[int, list[Change]]], scratch: Path
) -> None:
    @settings(max_examples=400, deadline=None)
    @given(NAMES, CHANGES, st.booleans(), st.none() | st.integers(0, 70000))
    def check(name: str, changes: list[Change], seal: bool, end: int | None) -> None:
        mutate(scratch, whole[name], name, changes, seal)
        if end is not None:
            os.truncate(scratch, end)
        size, calls = cost(lambda: verdict(scratch))
        assert size < 260 << 10 and calls < 140

    check()


@programs
def test_what_passes_is_what_qemu_sees_and_leads_to_no_other_file(
    whole: dict[str, tuple[int, list[Change]]], scratch: Path
) -> None:
    accepted = set()

    @settings(max_examples=60, deadline=None)
    @given(NAMES, CHANGES, st.just(True))
    @example("qcow2", [(104, b"\1"), (72, be("Q", 8))], True)
    @example("vmdk", [(20, le("Q", 64))], True)
    def check(name: str, changes: list[Change], seal: bool) -> None:
        mutate(scratch, whole[name], name, changes, seal)
        header = verdict(scratch)
        if header is None:
            return
        accepted.add(header.format)
        told = images.facts(scratch, header.format)
        if told is None:  # stricter than we are: nothing was opened
            return
        assert told["virtual-size"] == header.virtual_size and told["format"] == header.format
        text = str(told)
        assert "backing-filename" not in text and "'data-file'" not in text and "encrypted" not in told

    check()
    assert "qcow2" in accepted and "vmdk" in accepted


@programs
def test_a_sparse_image_of_100_gib_costs_less_than_a_mebibyte(tmp_path: Path) -> None:
    path = images.make(tmp_path / "image", "qcow2", 100 * GIB)
    os.truncate(path, 100 * GIB)
    size, calls = cost(lambda: images.look(path))
    assert size < MIB and calls < 40


def test_reads_are_bounded_in_number_and_size(tmp_path: Path) -> None:
    with images.opened(images.raw(tmp_path / "image")) as descriptor:
        with pytest.raises(UserError, match="larger than any"):
            Reader(descriptor).read(0, MIB)
        reader = Reader(descriptor)
        with pytest.raises(UserError, match="larger than any"):
            for _ in range(1000):
                reader.read(0, 1)
        for offset in (MIB - 1, -1):
            with pytest.raises(UserError, match="incomplete"):
                Reader(descriptor).read(offset, 2)
        os.truncate(tmp_path / "image", 100)
        with pytest.raises(UserError, match="became shorter"):
            Reader.read(late(descriptor), 0, 512)


def late(descriptor: int) -> Reader:
    """A reader that measured its file before somebody cut it."""
    reader = Reader(descriptor)
    reader.size = MIB
    return reader
