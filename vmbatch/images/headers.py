"""How an untrusted image's header is read: few and small reads inside the file, whatever the file says."""

import os

from vmbatch.errors import UserError
from vmbatch.quantities import mib_text

SECTOR = 512
TABLE_LIMIT = 32 << 20  # bytes: QEMU holds a whole table in memory; its own limit for a qcow2 L1 table
_READS = 128
_BYTES = 256 << 10


def refused(kind: str, found: str, hint: str = "") -> UserError:
    """Make the error for an image of this format; `found` continues the sentence. The hint is a plain copy, unless given."""
    return UserError(f"the {kind} image {found}", hint or f"make a plain copy: qemu-img convert -f {kind} -O qcow2 OLD NEW")


class Reader:
    """A file of `size` bytes, seen through a bounded number of bounded reads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._reads_left = _READS
        self._bytes_left = _BYTES

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes. Raises UserError where they are not all in the file, or it asks for too much."""
        if offset < 0 or offset + length > self.size:
            raise UserError(
                f"the image ends at byte {self.size}, but its header leads to byte {offset + length}",
                "it is incomplete: copy it again",
            )
        self._reads_left -= 1
        self._bytes_left -= length
        if self._reads_left < 0 or self._bytes_left < 0:
            raise UserError("the image's header is larger than any that is known", "make a raw copy with qemu-img convert")
        try:
            data = os.pread(self.descriptor, length, offset)
        except OSError as error:
            raise UserError(f"the image cannot be read: {error.strerror}", "copy it again") from error
        if len(data) != length:
            raise UserError("the image became shorter while it was read", "wait until nothing writes to it")
        return data


def check_table(
    image: Reader, kind: str, what: str, offset: int, length: int, *, align: int = SECTOR, most: int = TABLE_LIMIT
) -> None:
    """Raise UserError unless a table of `length` bytes is small enough, aligned, behind the first unit and in the file."""
    if length > most:
        raise refused(kind, f"has {what} of {length} bytes; at most {most} are read")
    if offset % align or offset < align:
        raise refused(kind, f"has {what} at byte {offset}, where none can be")
    if offset + length > image.size:
        raise refused(kind, f"has {what} that ends at byte {offset + length}, but the file ends at byte {image.size}")


def check_size(kind: str, size: int, limit: int) -> int:
    """Return a virtual size in bytes. Raises UserError unless it is a number of sectors from 1 to `limit` bytes."""
    if size <= 0:
        raise refused(kind, f"holds a disk of {size} bytes", "make one with a size: qemu-img create -f qcow2 NEW 10G")
    if size % SECTOR:
        raise refused(kind, f"holds a disk of {size} bytes, which is no multiple of {SECTOR}")
    if size > limit:
        raise refused(
            kind,
            f"holds a disk of {size} bytes; this site takes at most {limit} ({mib_text(limit >> 20)})",
            "use a smaller disk, or ask the administrator",
        )
    return size
