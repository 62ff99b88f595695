"""An image from its source into the store, once: the first job fetches, the others wait and are told so.

Who fetches holds a lock that the kernel frees when its process dies, however it dies; then the next one goes on from the
bytes that are there. Nothing is in the store before its hash, size and format have been checked.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmbatch.config import Config, check_trusted
from vmbatch.disk import Origin
from vmbatch.errors import OfferError, UserError
from vmbatch.failpoints import reach
from vmbatch.hashes import Check
from vmbatch.images import objects, transform
from vmbatch.images.fetch import Fetched, Limits, SourceError, copy, fetch, shown
from vmbatch.images.inspect import Header, inspect
from vmbatch.images.objects import Entry
from vmbatch.model import Person, printable

_POLL_S = 0.05
_TELL_S = 10.0
_FAILURE_BYTES = 2000
KEPT_MIB = 256  # room that stays for guests to start in


@dataclass(frozen=True, slots=True)
class Asker:
    """Who wants an image: a name for the others that wait, and how it is kept informed."""

    name: str
    person: Person  # as whom the network is used, and images are converted
    say: Callable[[str], None]
    progress: Callable[[int, int | None], None]  # bytes so far, and in all
    check: Callable[[], None]  # raises where the job was cancelled


def get(config: Config, origin: Origin, asker: Asker, lease: Callable[[Path], bool]) -> Entry:
    """Return the store's entry for a source, fetched now where it is not there.

    `lease` takes the right to use an object, False where it is gone again. Raises SiteError or OfferError; the others
    that waited for the same transfer get the same error.
    """
    store, ident = config.paths.store, objects.identify(origin)
    began = time.time()
    while True:
        entry = _there(store, ident, lease)
        if entry:
            return entry
        with _first(store, ident, asker, began) as ours:
            if not ours or objects.read(store, ident):
                continue
            try:
                _bring(config, origin, asker, store, ident)
            except OfferError as error:
                _fail(store, ident, error)
                raise


def _there(store: Path, ident: str, lease: Callable[[Path], bool]) -> Entry | None:
    entry = objects.read(store, ident)
    if entry is None:
        return None
    if objects.whole(store, entry) and lease(entry.path(store)):
        objects.used(store, ident)
        return entry
    (store / "index" / f"{ident}.json").unlink(missing_ok=True)
    return None


@contextmanager
def _first(store: Path, ident: str, asker: Asker, began: float) -> Iterator[bool]:
    """Hold the source's lock, or wait for who holds it: yields False when that one is done, and there is something new."""
    handle = os.open(objects.folder(store, "locks") / ident, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if _wait(handle, store, ident, asker, began):
            os.ftruncate(handle, 0)
            os.pwrite(handle, asker.name.encode(errors="replace")[:200], 0)
            yield True
        else:
            yield False
    finally:
        os.close(handle)


def _wait(handle: int, store: Path, ident: str, asker: Asker, began: float) -> bool:
    told = 0.0
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _failed(store, ident, began)
            return True
        except BlockingIOError:
            pass
        if (store / "index" / f"{ident}.json").exists():
            return False
        _failed(store, ident, began)
        asker.check()
        if time.monotonic() - told >= _TELL_S:
            told = time.monotonic()
            holder = os.pread(handle, 200, 0).decode(errors="replace") or "another job"
            done = _size(store / "parts" / ident)
            asker.say(f"waits for an image that {holder} is fetching ({done >> 20} MiB so far)")
        time.sleep(_POLL_S)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _failed(store: Path, ident: str, began: float) -> None:
    """Raise what another one met while we waited for it: the server need not be asked once more by each of us."""
    file = store / "locks" / f"{ident}.failed"
    try:
        if file.stat().st_mtime < began:
            return
        message, _, hint = file.read_text()[:_FAILURE_BYTES].partition("\n")
    except OSError:
        return
    raise SourceError(message, hint)


def _fail(store: Path, ident: str, error: OfferError) -> None:
    fresh = objects.folder(store, "locks") / f".{ident}.failed"
    fresh.write_text(f"{error.message}\n{error.hint}")
    fresh.replace(store / "locks" / f"{ident}.failed")


def _bring(config: Config, origin: Origin, asker: Asker, store: Path, ident: str) -> None:
    part = objects.folder(store, "parts") / ident
    asker.say(f"fetches {named(origin)}")
    reach("store:fetch")
    got = receive(config, origin, part, asker)
    header = look(config, origin, part)
    kind, sha512, size = header.format, got.sha512, got.size
    if header.format not in transform.NATIVE:
        asker.say(f"converts it from {header.format} to qcow2")
        sha512, size = transform.to_qcow2(config, part, header, asker.progress)
        kind = "qcow2"
    reach("store:publish")
    target = objects.publish(store, part, sha512, kind)
    objects.write(
        store,
        ident,
        Entry(
            objects.SCHEMA, named(origin), ":".join(origin.check or ()), sha512, size, kind, header.virtual_size,
            target.stat().st_mtime_ns, round(time.time(), 3), got.sha512, header.format,
        ),
    )  # fmt: skip
    (store / "locks" / f"{ident}.failed").unlink(missing_ok=True)


def receive(config: Config, origin: Origin, part: Path, asker: Asker) -> Fetched:
    """Bring a file or a URL into `part`, checked against its hash. Raises SourceError, SiteError."""
    check = Check(*origin.check) if origin.check else None
    limits = limits_of(config, origin)
    room = Room(part.parent, asker)
    if origin.kind == "url":
        return fetch(origin.source, part, person=asker.person, check=check, size=None, limits=limits, progress=room.progress)
    source = Path(origin.source)
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"cannot read {source}: {error.strerror}", f"ls -lL {source}") from None
    try:
        if config.root:
            check_trusted(source)
        return copy(handle, part, check=check, size=None, limits=limits, progress=room.progress)
    finally:
        os.close(handle)


def named(origin: Origin) -> str:
    """Spell a source for a log or a message: no password, no query."""
    return shown(origin.source) if origin.kind == "url" else printable(origin.source, 200)


def limits_of(config: Config, origin: Origin) -> Limits:
    """What a transfer may take; a user's own image has the smaller of the site's limits."""
    asked = config.fetch
    most = min(asked.max_image_mib, origin.max_mib or asked.max_image_mib)
    return Limits(
        connect_s=asked.connect_timeout_s,
        stall_s=asked.stall_timeout_s,
        total_s=asked.total_timeout_s,
        max_bytes=most << 20,
        proxy=asked.proxy or None,
        ca_file=Path(asked.ca_file) if asked.ca_file else None,
        allowed=origin.urls if origin.by_user else None,
    )


class Room:
    """Progress that also looks whether the disk has room for what is announced, and whether the job still wants it."""

    def __init__(self, folder: Path, asker: Asker) -> None:
        self.folder, self.asker, self.looked = folder, asker, False

    def progress(self, done: int, total: int | None) -> None:
        self.asker.check()
        status = os.statvfs(self.folder)
        free = status.f_bavail * status.f_frsize
        wanted = (total or 0) - done if not self.looked else 0
        self.looked = bool(total)
        if free < max(wanted, 0) + (KEPT_MIB << 20):
            raise OfferError(
                f"{self.folder} has {free >> 20} MiB free, and the image has {(total or done) >> 20} MiB",
                "vmbatch image gc, or set [paths] store and scratch to a larger file system",
            )
        self.asker.progress(done, total)


def look(config: Config, origin: Origin, file: Path) -> Header:
    """Look at an image's header before anything else reads it. SourceError where it is not to be used."""
    most = min(config.fetch.max_image_mib, origin.max_mib or config.fetch.max_image_mib)
    handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        header = inspect(handle, origin.format, most << 20)
    except UserError as error:
        file.unlink()
        raise SourceError(f"{named(origin)}: {error.message}", error.hint) from None
    finally:
        os.close(handle)
    if origin.formats and header.format not in origin.formats:
        file.unlink()
        raise SourceError(f"{named(origin)} is a {header.format} image", f"allowed here are: {', '.join(origin.formats)}")
    return header
