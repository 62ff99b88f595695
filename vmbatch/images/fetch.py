"""Images from http(s) and ftp(s) servers, and from open files: into a part file, hashed while they arrive.

Network protocols are spoken by a child with a person's ids, which writes what it gets into a pipe; we only copy bytes,
hash and count them. The code that speaks them is not even loaded here. What the child says is checked like a server's.
"""

import json
import os
import re
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vmbatch.errors import SiteError
from vmbatch.hashes import Check, read_check
from vmbatch.images import openfile
from vmbatch.images.part import CHUNK, Part, Version
from vmbatch.images.transfer import TICK_S, ContentError, Limits, Progress, SourceError, Watch, receive
from vmbatch.model import Person, printable
from vmbatch.pipes import piped

__all__ = ["Check", "Fetched", "Limits", "SourceError", "copy", "fetch", "read_check", "shown"]

SCHEMES = ("http", "https", "ftp", "ftps")
PAUSES_S = (0.5, 1.0)  # between the tries
_LINE_BYTES = 1 << 16
_WRONG = "the process that fetches it went wrong"
_ENDED = "the process that fetches it ended early"
_Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is in the part file now. etag and last_modified are empty where the server does not say them."""

    sha512: str
    size: int
    etag: str = ""
    last_modified: str = ""
    kept: int = 0  # so many bytes were there from an earlier transfer


def fetch(
    source: str,
    part: Path,
    *,
    person: Person,
    check: Check | None,
    size: int | None,
    limits: Limits,
    progress: Progress,
) -> Fetched:
    """Download a URL into `part`, on the disk when this returns; the caller holds a lock and renames it.

    `person` uses the network; without root that is whoever we are. An earlier part of the same URL is gone on with where
    the server still has the same file: same strong ETag, same size. `progress` is called at least every half second and
    may raise: the child is then killed, and the part stays if it can be gone on with. ftps is explicit TLS (RFC 4217),
    and ftp always starts anew. Raises SourceError where the image cannot be had or is not the wanted one (nothing is
    kept then), SiteError where `part` cannot be written.
    """
    name = shown(source)
    who = person if os.geteuid() == 0 else replace(person, uid=os.geteuid(), gid=os.getegid())
    try:
        watch = Watch(limits, size, progress)
        with Part(part, _functions(check)) as file:
            with _kept_if_useful(file):
                file.take_up(_bare(source), watch.tick)
                _download(source, file, who, limits, watch)
                _verify(file, check, watch)
                file.settle()
            return Fetched(file.digest("sha512"), file.size, file.version.etag, file.version.last_modified, file.kept)
    except SourceError as error:
        raise SourceError(f"{name}: {error.message}", error.hint) from None


def copy(
    descriptor: int, part: Path, *, check: Check | None, size: int | None, limits: Limits, progress: Progress
) -> Fetched:
    """Copy an open file into `part`, holes as holes; the hash is of the full content. Always from the start.

    Raises as fetch does. The descriptor's file offset is changed.
    """
    status = os.fstat(descriptor)
    name = printable(os.readlink(f"/proc/self/fd/{descriptor}"), 200)
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{name} is not a file", "name a disk image")
    try:
        watch = Watch(limits, size, progress)
        with Part(part, _functions(check)) as file, _kept_if_useful(file):
            watch.announce(status.st_size, 0)
            file.begin(Version(name, total=status.st_size))
            with openfile.pieces(descriptor, status.st_size) as read:
                receive(read, file, watch)
            _verify(file, check, watch)
            file.settle()
            return Fetched(file.digest("sha512"), file.size)
    except SourceError as error:
        raise SourceError(f"{name}: {error.message}", error.hint) from None


def shown(source: str) -> str:
    """Spell a URL for a message: no user, no password, no query. Raises SourceError where it is no URL that we fetch."""
    try:
        parts = urlsplit(source)
        host, port = parts.hostname, parts.port
    except ValueError:  # its words may hold the password
        raise SourceError("an image's address is not valid", "write it as https://SERVER/PATH") from None
    if parts.scheme not in SCHEMES or not host:
        start = printable(parts.scheme or source.partition(":")[0], 40)
        raise SourceError(f"'{start}:...' is no address of a server", f"write {', '.join(SCHEMES)}://SERVER/PATH")
    if not re.fullmatch(r"[\x21-\x7e]+", source):
        raise SourceError(f"the address of an image on {printable(host, 200)} holds a space or the like", "write %20")
    place = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{place}{f':{port}' if port else ''}{parts.path}"[:500]


def _bare(source: str) -> str:
    """The URL without user and password, to know it again."""
    parts = urlsplit(source)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


def _functions(check: Check | None) -> tuple[str, ...]:
    return ("sha512", check.function) if check else ("sha512",)


def _verify(file: Part, check: Check | None, watch: Watch) -> None:
    watch.end(file.size)
    if check and (found := file.digest(check.function)) != check.value:
        raise ContentError(
            f"its {check.function} is {found}, not {check.value}",
            "the file was changed or damaged: correct the hash, or ask who offers it",
        )


@contextmanager
def _kept_if_useful(file: Part) -> Iterator[None]:
    """Remove the part after a failure, except where a later transfer can go on with it."""
    try:
        yield
    except BaseException as error:
        no_room = isinstance(error, SiteError) and not isinstance(error, SourceError)
        if no_room or isinstance(error, ContentError) or not file.version.certain:
            file.remove()
        raise


def _download(source: str, file: Part, person: Person, limits: Limits, watch: Watch) -> None:
    """Three tries where the connection or the server fails; a later one goes on where that is certain."""
    for pause in PAUSES_S:
        try:
            _attempt(source, file, person, limits, watch)
            return
        except SourceError as error:
            if not error.again:
                raise
            watch.pause(pause, file.size)
    _attempt(source, file, person, limits, watch)


def _attempt(source: str, file: Part, person: Person, limits: Limits, watch: Watch) -> None:
    version = file.version
    offset = file.size if version.certain and file.size < (version.total or 0) else 0

    def child(body: int, words: int) -> None:
        try:
            from vmbatch.images import transport
        except ImportError as error:
            hint = f"the user {person.name} must be able to read vmbatch and its libraries: vmbatch doctor"
            os.write(words, json.dumps({"failure": [f"cannot load a library: {error}", hint, False]}).encode() + b"\n")
            return
        transport.serve(source, transport.Wanted(offset, version.etag, version.total), limits, body, words)

    with piped(person, child) as (body, words):
        told = _lines(words, limits.connect_s + limits.stall_s, lambda: watch.tick(file.size))
        begins, found = _head(told, _bare(source))
        if begins not in (0, offset):
            raise SourceError(_WRONG)
        if begins == 0:
            file.begin(found)
        watch.announce(found.total, file.size)
        receive(lambda timeout_s: _read(body, timeout_s), file, watch)
        if not any("end" in line for line in told):
            raise SourceError(_ENDED, again=True)
    if found.total is not None and file.size < found.total:
        raise SourceError(f"only {file.size} of its {found.total} bytes came", "try again later", again=True)


def _lines(words: int, quiet_s: float, tick: Callable[[], None]) -> Iterator[_Line]:
    """Yield what the child says, a JSON object a line. Its failure is raised, and so is too long a silence of a server."""
    pending, server, since = b"", "the server", time.monotonic()
    while True:
        line, newline, rest = pending.partition(b"\n")
        if newline:
            said, pending = _parsed(line), rest
            server = _sentence(said.get("asking", server))
            yield said
            since = time.monotonic()
        elif select.select([words], [], [], TICK_S)[0]:
            data = os.read(words, _LINE_BYTES)
            if not data:
                return
            pending += data
        tick()
        if len(pending) > _LINE_BYTES:
            raise SourceError(_WRONG)
        if time.monotonic() - since > quiet_s:
            raise SourceError(f"{server} did not answer within {quiet_s:g} s", "see the timeouts in [fetch]")


def _parsed(line: bytes) -> _Line:
    try:
        said = json.loads(line)
        failure = said.get("failure")
        if failure is not None:
            message, hint, again = failure
            raise SourceError(_sentence(message), _sentence(hint), again=again is True)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise SourceError(_WRONG) from None
    return dict(said)


def _sentence(text: object) -> str:
    return printable(" ".join(str(text).split()), 500)


def _head(told: Iterator[_Line], url: str) -> tuple[int, Version]:
    """Return where the body begins, and what the server says about the file."""
    for line in told:
        if "head" in line:
            head = line["head"]
            try:
                offset, total = int(head["offset"]), None if head["total"] is None else int(head["total"])
                etag, modified = str(head["etag"])[:1000], str(head["last_modified"])[:100]
            except (KeyError, TypeError, ValueError):
                raise SourceError(_WRONG) from None
            return offset, Version(url, etag, modified, total if total is None else max(0, total))
    raise SourceError(_ENDED, again=True)


def _read(pipe: int, timeout_s: float) -> bytes | None:
    return os.read(pipe, CHUNK) if select.select([pipe], [], [], timeout_s)[0] else None
