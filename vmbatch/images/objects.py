"""The store's shelves: images by the hash of their content, and an index of where each came from.

`objects/<sha512>.<format>` is never written again. `index/<id>.json` says which object a source gave, one file a source;
its modification time is the last use. `locks/<id>` is held by who fetches just now.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vmbatch.disk import Origin
from vmbatch.errors import OfferError
from vmbatch.model import Image
from vmbatch.names import short_hash

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One source and the image that it gave. Sizes in bytes, times in seconds since 1970."""

    schema: int
    source: str
    check: str  # "md5:..." as it was asked for, or ""
    sha512: str  # of the object
    size: int
    format: str
    virtual_size: int
    mtime_ns: int  # of the object: a later one means that somebody wrote to it
    fetched_at: float
    original_sha512: str  # of what was fetched; another one where it was converted
    original_format: str
    links: tuple[str, ...] = ()  # where people look for it

    def path(self, store: Path) -> Path:
        return store / "objects" / f"{self.sha512}.{self.format}"


def identify(origin: Origin) -> str:
    """Name a source: another address, hash or declared format is another one, and a local file that was changed."""
    stamp: list[int] = []
    if origin.kind == "file":
        with suppress(OSError):
            status = os.stat(origin.source)
            stamp = [status.st_size, status.st_mtime_ns]
    return short_hash(json.dumps([origin.source, origin.check, origin.format, *stamp]), 24)


def folder(store: Path, name: str) -> Path:
    """Return a folder of the store, made where it is missing. Images may be for some users only: nobody else lists them."""
    place = store / name
    store.mkdir(mode=0o755, parents=True, exist_ok=True)
    place.mkdir(mode=0o711 if name in ("objects", "once") else 0o700, exist_ok=True)
    return place


def read(store: Path, ident: str) -> Entry | None:
    """Return what a source gave; None: not fetched yet, or its record is no longer readable."""
    return _entry(store / "index" / f"{ident}.json")


def _entry(file: Path) -> Entry | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        values: dict[str, Any] = json.loads(file.read_text())
        if values.get("schema") == SCHEMA:
            return Entry(**{**values, "links": tuple(values["links"])})
    return None


def write(store: Path, ident: str, entry: Entry) -> None:
    """Write an entry in one step, on disk when this returns."""
    file = folder(store, "index") / f"{ident}.json"
    fresh = file.with_suffix(".new")
    with fresh.open("w") as stream:
        json.dump(asdict(entry), stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)


def entries(store: Path) -> Iterator[tuple[str, Entry, float]]:
    """Yield (id, entry, time of the last use) of everything in the index."""
    place = store / "index"
    for file in sorted(place.glob("*.json")) if place.is_dir() else ():
        entry = _entry(file)
        with suppress(OSError):
            if entry:
                yield file.stem, entry, file.stat().st_mtime


def of_image(store: Path, image: Image) -> Path | None:
    """Return the file of an image of the catalogue; None: it has an address, and was not fetched yet."""
    if image.source is None or "://" not in image.source:
        return Path(image.source) if image.source else None
    check = image.checksum.partition(":")[::2] if image.checksum else ("sha512", image.sha512) if image.sha512 else None
    entry = read(store, identify(Origin("url", image.source, "shared", image.format, check=check)))
    return entry.path(store) if entry else None


def used(store: Path, ident: str) -> None:
    """Note a use."""
    with suppress(OSError):
        os.utime(store / "index" / f"{ident}.json")


def linked(store: Path, ident: str, link: Path) -> None:
    """Note where people look for an image, so that the link goes with it."""
    entry = read(store, ident)
    if entry and str(link) not in entry.links:
        write(store, ident, replace(entry, links=(*entry.links, str(link))))


def whole(store: Path, entry: Entry) -> bool:
    """Whether the object is there. Raises OfferError where somebody has written to it."""
    try:
        status = entry.path(store).stat()
    except FileNotFoundError:
        return False
    if (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime_ns):
        raise OfferError(
            f"{entry.path(store)} has been changed since it was fetched",
            f"rm {entry.path(store)}; it is fetched or imported anew then",
        )
    return True


def publish(store: Path, part: Path, sha512: str, format: str) -> Path:
    """Put a finished file on its shelf, closed to writing. One that is there already stays."""
    target = folder(store, "objects") / f"{sha512}.{format}"
    part.chmod(0o444)
    if target.exists():
        part.unlink()
    else:
        part.rename(target)
        handle = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    return target
