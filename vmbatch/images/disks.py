"""Overlays: the job's own writes, above a base that is never written.

A kernel that is booted directly is copied for each job: libvirt gives it to QEMU's user, who must not own what others boot.
"""

import os
import shutil
import stat
from pathlib import Path

from vmbatch.config import Config, check_trusted, private_dir
from vmbatch.errors import SiteError
from vmbatch.journal import Journal
from vmbatch.model import Guest
from vmbatch.process import run

NEEDED_MIB = 256  # room for a guest to start in; what a job writes is not known before


def overlay(config: Config, guest: Guest, journal: Journal) -> None:
    """Make the job's scratch folder and an overlay for every disk. Raises SiteError naming path and bytes."""
    _scratch(config, guest.scratch.parent)
    check_space(guest.scratch.parent)
    journal.will("dir", guest.scratch)
    guest.scratch.mkdir(mode=0o711)
    for disk in guest.disks:
        _create(disk.overlay, disk.base, disk.base_format)
    for ours, source in ((guest.own_kernel, guest.kernel), (guest.own_initrd, guest.initrd)):
        if source and ours:
            shutil.copyfile(source, ours)
            ours.chmod(0o600)


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


def _create(target: Path, base: Path, base_format: str) -> None:
    run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", base_format, "-b", base, target],
        timeout_s=60,
    )
    target.chmod(0o600)
