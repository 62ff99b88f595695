"""The nouns of a guest's disks and files. All are frozen, as those of model.py."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a disk's content comes from."""

    kind: str  # file, url; own: the user's file, opened with the user's uid; empty: created
    source: str  # absolute path or URL; for empty a name
    method: str  # shared, download; for empty: always, once
    format: str | None = None  # None: as the content says
    by_user: bool = False  # a URL that the user chose
    check: tuple[str, str] | None = None  # (hash function, hexadecimal digits)
    size_mib: int = 0  # of an empty disk
    owner: str = "user"  # of a disk made once: user, site
    busy: str = "wait"  # what others do while the first job has it: wait, overlay
    max_mib: int | None = None  # of a user's own image, file and disk; None: no limit but the site's for all
    formats: tuple[str, ...] = ()  # that a user's own image may have
    paths: tuple[str, ...] = ()  # where it may lie
    urls: tuple[str, ...] = ()  # where it may come from, redirected or not


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the guest. What base and formats are None is known when the image has been brought in."""

    name: str  # what a request or <vbdisk> calls it; else its target
    element: int  # its number among the template's <disk> elements
    target: str  # vda, hda, sda
    bus: str
    use: str  # overlay: the job's own, above base; copy: of base; direct: file itself; readonly: base itself
    file: Path  # what QEMU opens
    format: str | None  # of file
    base: Path | None
    base_format: str | None
    origin: Origin
    appears: Path | None = None  # where people look for the image
    boot: bool = False
    group: str | None = None  # QEMU gets the base open, under this name; None: it opens it by its path
    virtual_size: int | None = None  # bytes that the guest sees; None: what qemu-img finds in base


@dataclass(frozen=True, slots=True)
class DiskPart:
    """Where a part of the guest lies: `disk` is an index into Guest.disks; partition 0: a file system fills the disk."""

    name: str  # rootdisk, jobdisk
    disk: int
    partition: int


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar file of the site for the guest. path: where it is unpacked; cdrom: onto the CD-ROM."""

    source: Path
    path: str
    strip: int
    cdrom: bool


@dataclass(frozen=True, slots=True)
class Own:
    """A file of the user, opened with the user's uid: kernel, initrd, cdrom, tar."""

    path: str
    max_mib: int | None
    paths: tuple[str, ...]  # where it may lie; (): anywhere
