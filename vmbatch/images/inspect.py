"""A user's own disk image is looked at by our own bounded reader, before qemu-img, libvirt or QEMU reads it.

What passes is a whole disk in one file: it names no other file, and its tables are no larger than its disk needs.
Inspect a file that nobody else can write any more: what is written afterwards was not inspected.
"""

import os
import re
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass

from vmbatch.errors import UserError
from vmbatch.images import qcow2, vdi, vhdx, vmdk, vpc
from vmbatch.images.headers import SECTOR, Reader, check_size

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx")
_QCOW = b"QFI\xfb"
_MAGICS = (
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("vpc", 0, vpc.COOKIE),
    ("vpc", -SECTOR, vpc.COOKIE),
    ("vhdx", 0, b"vhdxfile"),
    ("qed", 0, b"QED\0"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\n"),
    ("dmg", -SECTOR, b"koly"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("gzip", 0, b"\x1f\x8b\x08"),
    ("xz", 0, b"\xfd7zXZ\0"),
    ("zstd", 0, b"\x28\xb5\x2f\xfd"),
    ("bzip2", 0, b"BZh"),
    ("zip", 0, b"PK\3\4"),
    ("tar", 257, b"ustar"),
)
_HINTS = {
    "luks": "make a copy in clear, inside of a machine that opens it",
    "gzip": "unpack it: gunzip FILE",
    "xz": "unpack it: unxz FILE",
    "zstd": "unpack it: unzstd FILE",
    "bzip2": "unpack it: bunzip2 FILE",
    "zip": "unpack it: unzip FILE",
    "tar": "unpack it: tar -xf FILE",
}
# What QEMU takes for a VMDK descriptor: comments and blank lines, then the version.
_TEXT = re.compile(rb"(?:#[^\n]*\n|[ \t\r]*\n)*(?:#[ \t]*disk[ \t]*descriptorfile|[ \t]*version[ \t]*=)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image: format in libvirt's and qemu-img's words, and the bytes that the guest will see."""

    format: str
    virtual_size: int


def inspect(descriptor: int, declared: str | None, max_virtual: int) -> Header:
    """Look at an open image; `declared` None: its content decides. `max_virtual` is in bytes.

    Raises UserError for whatever is not one of FORMATS, not the one declared, not whole in this file, or too large.
    """
    if declared is not None and declared not in FORMATS:
        raise UserError(f"{declared[:40]!a} is no format of an image", f"use one of: {', '.join(FORMATS)}")
    _check_regular(descriptor)
    image = Reader(descriptor)
    found = _recognise(image)
    if declared not in (None, found):
        raise UserError(f"the image is declared as {declared}, but its content is {found}", f"declare it as {found}")
    return Header(found, _SIZES[found](image, max_virtual))


def _check_regular(descriptor: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFBLK: "a disk of the host", stat.S_IFCHR: "a device"}
        kinds |= {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "something else")
        raise UserError(f"the image is {kind}, not a file", "name an ordinary file")
    if not status.st_size:
        raise UserError("the image is an empty file", "copy it again")


def _recognise(image: Reader) -> str:
    """Return the only format that the content can be. What has no format's mark is raw: ISO 9660, MBR and GPT disks too."""
    length = min(image.size, SECTOR)
    head, tail = image.read(0, length), image.read(image.size - length, length)
    found = {name for name, at, magic in _MAGICS if (tail[at:] if at < 0 else head[at:]).startswith(magic)}
    if head.startswith(_QCOW):
        found.add("qcow" if head[4:8] == struct.pack(">I", 1) else "qcow2")
    if _TEXT.match(head):
        found.add("vmdk")
    if len(found) > 1:
        raise UserError(
            f"the image can be read as {' and as '.join(sorted(found))}",
            "make a plain copy with qemu-img convert, naming the right one by -f",
        )
    for name in found - set(FORMATS):
        hint = f"make a copy: qemu-img convert -f {name} -O qcow2 OLD NEW"
        raise UserError(f"the image's content is {name}, which cannot boot here", _HINTS.get(name, hint))
    return found.pop() if found else "raw"


def _raw_size(image: Reader, limit: int) -> int:
    head = image.read(0, min(image.size, SECTOR))
    if head and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        raise UserError("it looks like text (a page of a web server, say), not like a disk", "look at it: head FILE")
    if image.size % SECTOR:
        raise UserError(
            f"the raw image has {image.size} bytes, which is no multiple of {SECTOR}",
            f"if it is whole, fill its last sector: truncate -s %{SECTOR} FILE",
        )
    return check_size("raw", image.size, limit)


_SIZES: dict[str, Callable[[Reader, int], int]] = {
    "raw": _raw_size,
    "qcow2": qcow2.virtual_size,
    "vmdk": vmdk.virtual_size,
    "vdi": vdi.virtual_size,
    "vpc": vpc.virtual_size,
    "vhdx": vhdx.virtual_size,
}
