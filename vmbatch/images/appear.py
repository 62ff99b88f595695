"""<source file=...>: where people look for an image, although it lies in the store or in the job's own folder. A link.

A file of somebody else's at that place stays as it is.
"""

import os
from pathlib import Path

from vmbatch import events
from vmbatch.config import Config, check_trusted
from vmbatch.disk import Disk
from vmbatch.errors import SiteError
from vmbatch.images import objects
from vmbatch.journal import Journal


def appear(config: Config, journal: Journal, disk: Disk) -> None:
    """Make the link. What keeps us from it is told in the job's log and harms nothing: the guest has its image."""
    link, target = disk.appears, disk.file if disk.use == "direct" else disk.base or disk.file
    assert link is not None, "asked before"
    try:
        if config.root:
            link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            check_trusted(link.parent)
        if not _free(config, link, target):
            return
        kept = _kept(config, target)
        if kept:
            objects.linked(config.paths.store, kept, link)
        else:
            journal.will("link", link, target=str(target))
        link.symlink_to(target)
    except FileExistsError:
        events.log(journal, f"{link} is not ours and stays; the image lies at {target}")
    except (OSError, SiteError) as error:
        events.log(journal, f"{link} could not be made ({error}); the image lies at {target}")


def _free(config: Config, link: Path, target: Path) -> bool:
    """Whether the link is to be made. One of ours is taken away where it leads to another image, or to none."""
    try:
        before = Path(os.readlink(link))
    except FileNotFoundError:
        return True
    except OSError:  # no link
        raise FileExistsError from None
    if not any(root in before.parents for root in _roots(config)):
        raise FileExistsError
    if before == target or (before.exists() and not _kept(config, before)):
        return False  # it is right, or another job's, which uses it now
    link.unlink()
    return True


def _roots(config: Config) -> tuple[Path, ...]:
    scratch = str(config.paths.scratch)
    fixed = scratch.partition("%")[0].rpartition("/")[0] if "%" in scratch else scratch
    return (config.paths.store, Path(fixed))


def _kept(config: Config, target: Path) -> str | None:
    """Return the id of the store's entry for this file; None: it is no image of the store."""
    if target.parent != config.paths.store / "objects":
        return None
    return next(
        (ident for ident, entry, _ in objects.entries(config.paths.store) if entry.path(config.paths.store) == target), None
    )
