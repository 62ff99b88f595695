"""The site's images as an administrator handles them: import, verify, remove."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vmbatch import catalogue
from vmbatch.config import Config, read_toml
from vmbatch.disk import Origin
from vmbatch.errors import UserError
from vmbatch.hashes import read_check
from vmbatch.images import acquire, build, evict, objects, store
from vmbatch.images.acquire import Asker
from vmbatch.images.objects import Entry
from vmbatch.model import Image

_CHUNK = 1 << 20
_IMPORTED = "imported from "
_OURS = ("source", "format", "sha512", "copy_method", "checksum")  # keys that an import writes


def bring(config: Config, source: str, format: str | None, checksum: str | None, asker: Asker) -> Entry:
    """Import a file or a URL into the store, converted where it is of another maker. Raises SiteError, OfferError."""
    check = None
    if checksum:
        if ":" not in checksum:
            raise UserError(f"--checksum {checksum} names no hash function", "write sha256:HEX, or md5, sha1, sha512")
        made = read_check("--checksum", *checksum.partition(":")[::2])
        check = (made.function, made.value)
    url = catalogue.is_url(source)
    if "://" in source and not url:
        raise UserError(f"{source} is no address that images come from", "http, https, ftp and ftps are")
    place = source if url else str(Path(source).absolute())
    origin = Origin("url" if url else "file", place, "shared", format, check=check)
    return acquire.get(config, origin, asker, Path.is_file)


def register(config: Config, name: str, entry: Entry) -> Path:
    """Put an image of the store into the catalogue, or another one under a name that is there. Returns the file."""
    if not catalogue.NAME.fullmatch(name):
        raise UserError(f"'{name}' cannot be an image's name", "use letters, digits, '_', '.' and '-'")
    config.paths.catalogue.mkdir(parents=True, exist_ok=True, mode=0o755)
    kept = {}
    file = config.paths.catalogue / f"{name}.toml"
    if file.exists():  # what an administrator wrote about it stays: memory, groups, template
        kept = {key: value for key, value in read_toml(file, trusted=config.root).items() if key not in _OURS}
        if str(kept.get("description", "")).startswith(_IMPORTED):
            del kept["description"]
    source = {"source": f"sha512:{entry.sha512}", "format": entry.format, "sha512": entry.sha512}
    return build.register(config, name, {**source, "description": f"{_IMPORTED}{entry.source}", **kept})


def verify(config: Config, names: list[str]) -> Iterator[tuple[str, str]]:
    """Hash images anew: of the store, and of the catalogue where it knows the hash. Yields (name, what is wrong or "")."""
    wanted: dict[Path, tuple[str, str]] = {}
    if not names:
        for kept in (one for one in evict.contents(config) if one.path.parent.name == "objects"):
            wanted[kept.path] = (kept.path.name[:16] + "...", kept.path.name.partition(".")[0])
    for name, image in catalogue.read(config).items():
        path = objects.of_image(config.paths.store, image)
        sha512 = path.name.partition(".")[0] if path and path.parent.name == "objects" else image.sha512
        if (not names or name in names) and path and sha512:
            wanted[path] = (name, sha512)
    for name in names:
        catalogue.find(config, name)
    for path, (name, expected) in wanted.items():
        yield name, _compare(path, expected)


def _compare(path: Path, expected: str) -> str:
    digest = hashlib.sha512()
    try:
        with path.open("rb") as file:
            while part := file.read(_CHUNK):
                digest.update(part)
                os.posix_fadvise(file.fileno(), 0, file.tell(), os.POSIX_FADV_DONTNEED)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return (
        ""
        if digest.hexdigest() == expected
        else f"{path} has the sha512 {digest.hexdigest()[:16]}..., not {expected[:16]}..."
    )


def remove(config: Config, name: str) -> list[Path]:
    """Take an image out of the catalogue, with its file where nobody else names it. Raises SiteError where it is in use."""
    image = catalogue.find(config, name)
    file = config.paths.catalogue / f"{name}.toml"
    if not file.exists():
        raise UserError(f"image {name} is the site's; only its administrator may remove it")
    others = {path for other in catalogue.read(config).values() if other.name != name for path in _files(config, other)}
    ours = [path for path in _files(config, image) if path not in others and _below(path, config)]
    gone = [file]
    if not ours:
        file.unlink()
        return gone
    with store.unused(config, ours[0]):
        file.unlink()
        for path in ours:
            if path.parent.name != "objects":
                path.unlink(missing_ok=True)
            gone.append(path)
    for path in ours:
        if path.parent.name == "objects":
            evict.remove(config, path)
    return gone


def _files(config: Config, image: Image) -> set[Path]:
    return {*image.files, *filter(None, [objects.of_image(config.paths.store, image)])}


def _below(path: Path, config: Config) -> bool:
    return path.parent in (config.paths.images, config.paths.store / "objects")


def facts(config: Config, name: str) -> Iterator[tuple[str, str]]:
    """Yield what is known of an image: of the catalogue, or one of the store by the beginning of its hash."""
    with suppress(UserError):
        yield from _entry_facts(config, name)
        return
    found = [kept for kept in evict.contents(config) if kept.path.name.startswith(name.removeprefix("sha512:"))]
    if len(found) != 1 or len(name) < 4:
        catalogue.find(config, name)  # says what is nearest
    yield from object_facts(config, found[0].path)


def _entry_facts(config: Config, name: str) -> Iterator[tuple[str, str]]:
    image = catalogue.find(config, name)
    yield "image", image.name
    for key in catalogue.KEYS:
        value = getattr(image, key)
        if value not in (None, "", ()):
            yield key, ", ".join(value) if isinstance(value, tuple) else str(value)
    path = objects.of_image(config.paths.store, image)
    if path:
        yield from object_facts(config, path)


def object_facts(config: Config, path: Path) -> Iterator[tuple[str, str]]:
    """Yield what is known of an image's file."""
    yield "file", str(path)
    with suppress(OSError):
        status = path.stat()
        yield "size", f"{status.st_size} bytes, {status.st_blocks * 512} on the disk"
    for _, entry, used in objects.entries(config.paths.store):
        if entry.path(config.paths.store) == path:
            yield "fetched from", entry.source
            yield "fetched", stamp(entry.fetched_at)
            yield "last used", stamp(used)
            yield "guest sees", f"{entry.virtual_size} bytes"
            if entry.original_sha512 != entry.sha512:
                yield "converted from", f"{entry.original_format}, sha512 {entry.original_sha512}"
            yield from (("appears as", link) for link in entry.links)
    users = store.leases(config.paths.state, path)
    yield "in use by", ", ".join(users) or "nobody"


def stamp(seconds: float) -> str:
    """Spell a time for a person."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
