"""What leaves the store: images that nobody used for long, and the longest unused ones when it is too full.

An image in use, or named by the catalogue, stays. Disks that were made once count, and go, like images. Leases are locked
while one is looked at and removed, so a start that comes at the same time either has its lease before, or finds the image
gone and fetches it again.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from vmbatch import catalogue
from vmbatch.config import Config
from vmbatch.failpoints import reach
from vmbatch.images import objects, store
from vmbatch.process import locked

_PART_AGE_S = 86400


@dataclass(frozen=True, slots=True)
class Kept:
    """An object of the store. size in bytes on the disk; used: seconds since 1970."""

    path: Path
    size: int
    used: float
    sources: tuple[str, ...]
    pinned: bool  # by the catalogue


def contents(config: Config) -> list[Kept]:
    """Return what the store holds, the longest unused first."""
    shelf = config.paths.store / "objects"
    index: dict[Path, list[tuple[str, float]]] = {}
    for _, entry, used in objects.entries(config.paths.store):
        index.setdefault(entry.path(config.paths.store), []).append((entry.source, used))
    pinned = {
        str(path) for image in catalogue.read(config).values() if (path := objects.of_image(config.paths.store, image))
    }
    found = []
    for path in shelf.iterdir() if shelf.is_dir() else ():
        with suppress(OSError):
            status = path.stat()
            uses = index.get(path, [])
            used = max((when for _, when in uses), default=status.st_ctime)
            sources = tuple(source for source, _ in uses)
            found.append(Kept(path, status.st_blocks * 512, used, sources, str(path) in pinned))
    once = config.paths.store / "once"
    for path in once.glob("*/*") if once.is_dir() else ():
        with suppress(OSError):
            status = path.stat()
            found.append(Kept(path, status.st_blocks * 512, status.st_mtime, (f"made once, {path.parent.name}",), False))
    return sorted(found, key=lambda kept: kept.used)


def gc(config: Config, *, dry: bool = False, unused: bool = False) -> Iterator[tuple[Kept, str]]:
    """Evict what is too old or too much, or all that nobody uses, yielding each with the reason."""
    kept = contents(config)
    total = sum(one.size for one in kept)
    high, low = config.store.high_mib << 20, (config.store.low_mib or config.store.high_mib * 9 // 10) << 20
    full = bool(high) and total > high
    oldest = time.time() - config.store.keep_days * 86400
    for one in kept:
        why = "no job uses it" if unused and one.path.parent.name == "objects" else ""
        if config.store.keep_days and one.used < oldest:
            why = f"not used for {int((time.time() - one.used) / 86400)} days"
        elif full and total > low:
            why = f"the store holds {total >> 20} MiB, more than {low >> 20} MiB"
        if why and not one.pinned and (dry or remove(config, one.path)):
            total -= one.size
            yield one, why


def make_room(config: Config) -> None:
    """Evict before something new comes in, where the site has set limits."""
    if config.store.high_mib or config.store.keep_days:
        for _ in gc(config):
            pass
        sweep(config)


def remove(config: Config, path: Path) -> bool:
    """Remove one object with its index and its links. False: it is in use."""
    with locked(config.paths.state / "leases"):
        if store.leases(config.paths.state, path):
            return False
        for ident, entry, _ in list(objects.entries(config.paths.store)):
            if entry.path(config.paths.store) == path:
                _unlink(entry.links, path)
                (config.paths.store / "index" / f"{ident}.json").unlink(missing_ok=True)
        reach("store:evict")
        path.unlink(missing_ok=True)
    return True


def _unlink(links: tuple[str, ...], path: Path) -> None:
    for link in links:
        with suppress(OSError):
            if os.readlink(link) == str(path):
                os.unlink(link)


def sweep(config: Config) -> None:
    """Remove what transfers left that nobody went on with for a day."""
    parts = config.paths.store / "parts"
    for left in parts.iterdir() if parts.is_dir() else ():
        with suppress(OSError):
            if time.time() - left.lstat().st_mtime > _PART_AGE_S:
                rmtree(left) if left.is_dir() else left.unlink()
