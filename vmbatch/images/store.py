"""The right to use a base: a lease is a file named by the job's key and n, below the image's name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmbatch.config import Config
from vmbatch.errors import OfferError, SiteError
from vmbatch.journal import Journal
from vmbatch.names import short_hash
from vmbatch.process import locked


def lease(config: Config, base: Path, journal: Journal, role: str = "") -> bool:
    """Lease a base for the guest of this journal. False: it is not there."""
    file = lease_file(config.paths.state, base, journal.name)
    journal.will("lease", file)
    with locked(config.paths.state / "leases"):
        if not base.is_file():
            return False
        write_lease(file, role)
    return True


def alone(config: Config, file: Path, journal: Journal) -> None:
    """Lease what only one guest may write to. Raises OfferError naming who has it."""
    lease = lease_file(config.paths.state, file, journal.name)
    journal.will("lease", lease)
    with locked(config.paths.state / "leases"):
        others = [name for name in leases(config.paths.state, file) if name != journal.name]
        if others:
            raise OfferError(
                f"disk {file} is in use by {others[0]}, and only one guest may write to it",
                "wait for that job; or give the disk a <vbdisksource>, or <readonly/>, in the template",
            )
        write_lease(lease, "writer")


def write_lease(file: Path, role: str = "") -> None:
    """Write a lease, while the leases are locked. One that is there stays: two disks may have one base."""
    file.parent.mkdir(mode=0o755, exist_ok=True)
    with suppress(FileExistsError):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(role)


def lease_file(state: Path, base: Path, name: str) -> Path:
    return state / "leases" / f"{base.name}-{short_hash(str(base), 12)}" / name


@contextmanager
def unused(config: Config, base: Path) -> Iterator[None]:
    """Within this nobody begins to use a base, so it may be replaced. Raises SiteError where somebody uses it."""
    with locked(config.paths.state / "leases"):
        users = leases(config.paths.state, base)
        if users:
            raise SiteError(
                f"{base} is in use by {len(users)} guest(s): {', '.join(users[:5])}",
                "wait for them (vmbatch status), or build it under another --name",
            )
        yield


def leases(state: Path, base: Path) -> list[str]:
    """Return who uses a base just now."""
    try:
        return sorted(entry.name for entry in lease_file(state, base, "x").parent.iterdir())
    except FileNotFoundError:
        return []
