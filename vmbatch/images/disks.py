"""The job's own files: overlays above a base that is never written, copies, empty disks, a kernel for direct boot.

A kernel is copied for each job: libvirt gives it to QEMU's user, who must not own what others boot.
"""

import os
import stat
from pathlib import Path

from vmbatch.config import Config, check_trusted, private_dir
from vmbatch.disk import Disk
from vmbatch.errors import SiteError
from vmbatch.journal import Journal
from vmbatch.model import Guest
from vmbatch.process import run

NEEDED_MIB = 256  # room for a guest to start in; what a job writes is not known before
# Formats that QEMU writes to and libvirt knows; the second column is what VmBatch's templates call them.
EMPTY = ("raw", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc")
_COPY_TIMEOUT_S = 3600


def scratch(config: Config, guest: Guest, journal: Journal) -> None:
    """Make the job's scratch folder. Raises SiteError naming path and bytes."""
    _scratch(config, guest.scratch.parent)
    check_space(guest.scratch.parent)
    journal.will("dir", guest.scratch)
    guest.scratch.mkdir(mode=0o711)


def make(guest: Guest) -> None:
    """Make the overlays and copies of a guest whose bases are all there."""
    for disk in guest.disks:
        if disk.use == "overlay":
            overlay(disk)
        elif disk.use == "copy":
            _copy(disk)


def overlay(disk: Disk) -> None:
    """Make a qcow2 above the base. Where the size is known the base is not even opened."""
    run(_OVERLAYS[str(disk.format)](disk), timeout_s=60)
    disk.file.chmod(0o600)


def _qcow2(disk: Disk) -> list[str | Path]:
    base: list[str | Path] = ["-F", str(disk.base_format), "-b", str(disk.base)]
    known = ["-u"] if disk.virtual_size is not None else []
    size = [str(disk.virtual_size)] if disk.virtual_size is not None else []
    return ["qemu-img", "create", "-q", "-f", "qcow2", *known, *base, disk.file, *size]


def _vhd(disk: Disk) -> list[str | Path]:
    """Xen 4 with blktap2: vhd-util of the Xen tools; -m where the base is no VHD itself."""
    raw = ["-m"] if disk.base_format == "raw" else []
    return ["vhd-util", "snapshot", "-n", disk.file, "-p", str(disk.base), *raw]


def _qcow(disk: Disk) -> list[str | Path]:
    """Xen 3 with blktap: qcow-create of the Xen tools takes the size in MB."""
    size = disk.virtual_size if disk.virtual_size is not None else os.stat(str(disk.base)).st_size
    return ["qcow-create", str(-(-size // (1 << 20))), disk.file, str(disk.base)]


def _vdi(disk: Disk) -> list[str | Path]:
    medium: list[str | Path] = ["--filename", disk.file, "--format", "VDI", "--diffparent", str(disk.base)]
    return ["VBoxManage", "createmedium", "disk", *medium]


_OVERLAYS = {"qcow2": _qcow2, "vhd": _vhd, "qcow": _qcow, "vdi": _vdi}


def _copy(disk: Disk) -> None:
    """Copy the base: shared blocks where the file system can, holes as holes."""
    assert disk.base is not None, "supplied before"
    run(["cp", "--reflink=auto", "--sparse=always", "--", disk.base, disk.file], timeout_s=_COPY_TIMEOUT_S)
    disk.file.chmod(0o600)


def empty(file: Path, disk: Disk) -> None:
    """Make an empty disk of the size that the template says. Raises SiteError for a format that no guest can write to."""
    kind = str(disk.format)
    if kind == "vhd":
        run(["vhd-util", "create", "-n", file, "-s", str(disk.origin.size_mib)], timeout_s=60)
        file.chmod(0o600)
        return
    if kind not in EMPTY:
        raise SiteError(f"disk {disk.origin.source}: format {kind!r} cannot be created here", f"use {', '.join(EMPTY)}")
    exact = ["-o", "force_size=on"] if kind == "vpc" else []
    size = f"{disk.origin.size_mib}M"
    run(["qemu-img", "create", "-q", "-f", kind, *exact, file, size], timeout_s=60)
    file.chmod(0o600)


def check_space(folder: Path) -> None:
    """Raise SiteError where a guest has no room to start."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < NEEDED_MIB << 20:
        raise SiteError(
            f"{folder} has {free} bytes free; a guest's disk needs at least {NEEDED_MIB << 20}",
            "free some space, or set [paths] scratch",
        )
    if status.f_files and status.f_favail < 16:
        raise SiteError(f"{folder} has {status.f_favail} free inodes; a guest needs 16", "remove some files")


def _scratch(config: Config, folder: Path) -> None:
    """QEMU opens files below this folder by name: nobody else may be able to swap them."""
    if config.root:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        check_trusted(folder)
        if not stat.S_IMODE(folder.stat().st_mode) & 0o001:
            raise SiteError(f"QEMU's own user cannot enter {folder}", f"chmod o+x {folder}")
    else:
        private_dir(folder)
