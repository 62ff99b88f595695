"""The right to use a base: a lease is a file named by the job's key and n, below the image's name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmbatch.config import Config, check_trusted
from vmbatch.errors import SiteError
from vmbatch.journal import Journal
from vmbatch.model import Guest, short_hash
from vmbatch.process import locked


def lease(config: Config, guest: Guest, journal: Journal) -> None:
    """Lease every base of the guest. Raises SiteError where a base is missing or others than root may write it."""
    for disk in guest.disks:
        if config.root:
            check_trusted(disk.base)
        file = lease_file(config.paths.state, disk.base, journal.name)
        journal.will("lease", file)
        with locked(config.paths.state / "leases"):
            file.parent.mkdir(mode=0o755, exist_ok=True)
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if not disk.base.is_file():
            raise SiteError(f"image {guest.image}: {disk.base} is missing", f"vmbatch image build {guest.image}")


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
    folder = lease_file(state, base, "x").parent
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
