"""Disks that are made once and keep their content: the persistent cache of CernVM-FS, for one.

The job that finds the disk unused has it for itself and writes to it. Others wait until that job has ended, or begin with
an empty one, as the template says. Those that waited, and those that come while it is only read, have an overlay each.
What a guest has written is never looked into on the host: format and size are what the template says.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vmbatch.config import Config
from vmbatch.disk import Disk, Origin
from vmbatch.errors import OfferError
from vmbatch.failpoints import reach
from vmbatch.images import disks, objects, store
from vmbatch.journal import Journal
from vmbatch.model import Guest
from vmbatch.names import safe, short_hash
from vmbatch.process import locked

WRITER, READER = "writer", "reader"
_POLL_S = 0.1
_TELL_S = 10.0


def place(config: Config, origin: Origin, uid: int, format: str) -> Path:
    """Where a disk lies: another name, size or format is another disk, and so is another user's."""
    owner = "site" if origin.owner == "site" else f"user-{uid}"
    ident = short_hash(f"{origin.source}/{origin.size_mib}/{format}", 12)
    return objects.folder(config.paths.store, "once") / owner / f"{safe(origin.source)[:40]}-{ident}.{format}"


def use(
    config: Config,
    guest: Guest,
    journal: Journal,
    disk: Disk,
    say: Callable[[str], None],
    descriptors: dict[str, int],
) -> Disk:
    """Give the guest its share of a disk made once. Raises OfferError where the first user does not end in time."""
    file = place(config, disk.origin, guest.person.uid, str(disk.format))
    file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    lease = store.lease_file(config.paths.state, file, journal.name)
    journal.will("lease", lease)
    deadline = time.monotonic() + config.store.once_timeout_s
    waited, told = False, 0.0
    while True:
        with locked(config.paths.state / "leases"):
            users = roles(config, file)
            if not users or (file.exists() and WRITER not in users.values()):
                role = READER if users or (waited and file.exists()) else WRITER
                store.write_lease(lease, role)
                break
        if disk.origin.busy == "overlay":
            disks.empty(disk.file, disk)
            return disk
        journal.check()
        waited = True
        holder = next(name for name, role in users.items() if role == WRITER)
        if time.monotonic() >= deadline:
            raise OfferError(
                f"disk {disk.origin.source} is in use by {holder} for longer than {config.store.once_timeout_s} s",
                "try again later, or raise [store] once_timeout_s",
            )
        if time.monotonic() - told >= _TELL_S:
            told = time.monotonic()
            say(f"waits for disk {disk.origin.source}, which {holder} writes to")
        time.sleep(_POLL_S)
    return _first(disk, file) if role == WRITER else _later(disk, file, descriptors)


def roles(config: Config, file: Path) -> dict[str, str]:
    """Return who uses a disk, and whether as its writer. The leases must be locked."""
    names = store.leases(config.paths.state, file)
    return {name: store.lease_file(config.paths.state, file, name).read_text() for name in names}


def _first(disk: Disk, file: Path) -> Disk:
    if not file.exists():
        fresh = file.with_name(f".{file.name}.new")
        fresh.unlink(missing_ok=True)
        disks.empty(fresh, disk)
        reach("store:once")
        fresh.rename(file)
    return replace(disk, file=file)


def _later(disk: Disk, file: Path, descriptors: dict[str, int]) -> Disk:
    """An overlay; the disk itself stays root's alone, and QEMU gets it open."""
    os.utime(file)  # its last use, for the store's limits
    group = disk.file.stem
    descriptors[group] = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return replace(
        disk,
        use="overlay",
        file=disk.file.with_suffix(".qcow2"),
        format="qcow2",
        base=file,
        base_format=disk.format,
        virtual_size=disk.origin.size_mib << 20,
        group=group,
    )
