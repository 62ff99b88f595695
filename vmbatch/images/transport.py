"""Readers of http(s) and ftp(s). They run in a child with a person's ids: see fetch.py.

The child tells in JSON lines what it is doing: {"asking": server}, {"head": ...} before the first byte of the body, and
at last {"end": true} or {"failure": [message, hint, again]}.
"""

import base64
import ftplib
import http.client
import json
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import urllib3

from vmbatch import __version__
from vmbatch.choices import fits_url
from vmbatch.images.failures import explain
from vmbatch.images.transfer import Limits, SourceError

USER_AGENT = f"vmbatch/{__version__}"
MOST_REDIRECTS = 10
_CHUNK = 1 << 18
_REDIRECTS = (301, 302, 303, 307, 308)
_ADVICE = {
    401: "write user and password into the address, if the server wants them",
    403: "ask who runs the server for the right to read it",
    404: "correct the address of the image",
    407: "write user and password into proxy in [fetch]",
    410: "correct the address of the image",
}
_Said = TypeVar("_Said")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted: all from `offset` on, where that is of the file with this ETag and this size; else the whole file."""

    offset: int
    etag: str
    total: int | None


class Line:
    """The two pipes to the parent."""

    def __init__(self, body: int, words: int) -> None:
        self._body, self._words = body, words
        self.server = "the server"

    def tell(self, **said: Any) -> None:
        _write(self._words, json.dumps(said).encode() + b"\n")

    def ask(self, server: str) -> None:
        self.server = server
        self.tell(asking=server)

    def head(self, offset: int, total: int | None, etag: str = "", last_modified: str = "") -> None:
        self.tell(head={"offset": offset, "total": total, "etag": etag, "last_modified": last_modified})

    def give(self, data: bytes) -> None:
        _write(self._body, data)


def serve(source: str, wanted: Wanted, limits: Limits, body: int, words: int) -> None:
    """Write what `source` has into the pipe `body`, and what there is to say into `words`."""
    line, parts = Line(body, words), urlsplit(source)
    try:
        (_http if parts.scheme in ("http", "https") else _ftp)(source, wanted, limits, line)
        line.tell(end=True)
    except Exception as error:  # whatever it is, the parent makes a sentence of it
        failure = error if isinstance(error, SourceError) else explain(error, line.server, limits)
        words_of_it = (_without(text, parts) for text in (failure.message, failure.hint))
        line.tell(failure=[*words_of_it, failure.again])


def _without(text: str, parts: SplitResult) -> str:
    """Take the password out: a server may repeat it."""
    for secret in {parts.password or "", unquote(parts.password or "")} - {""}:
        text = text.replace(secret, "***")
    return text


def _write(pipe: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def _tls(limits: Limits) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=limits.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise SourceError(
            f"cannot use the certificates in {limits.ca_file}: {error.strerror}", "see [fetch] ca_file"
        ) from error


# -- http and https


def _http(source: str, wanted: Wanted, limits: Limits, line: Line) -> None:
    pool, url, redirects = _pool(limits), source, 0
    while True:
        parts = urlsplit(url)
        line.ask(f"server {parts.hostname}")
        login = _login(urlsplit(source)) if _origin(parts) == _origin(urlsplit(source)) else {}
        response: Any = pool.request(
            "GET",
            parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl(),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **login, **_range(wanted)},
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
            enforce_content_length=False,  # the parent counts
        )
        if response.status in _REDIRECTS:
            redirects += 1
            if redirects > MOST_REDIRECTS:
                raise SourceError(f"{line.server} redirected more than {MOST_REDIRECTS} times", _ADVICE[404])
            url = _redirected(url, response.headers.get("Location", ""), line.server)
            if limits.allowed is not None and not fits_url(url, limits.allowed):
                raise SourceError(f"{line.server} redirected to where no images may come from", "name that address itself")
        elif wanted.offset and response.status in (206, 416) and not _continues(response, wanted):
            wanted = Wanted(0, "", None)
        else:
            return _take(response, wanted, line)
        response.close()


def _pool(limits: Limits) -> urllib3.PoolManager:
    # No limit for reading here: the parent measures what comes.
    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=limits.connect_s, read=None),
        "ssl_context": _tls(limits),
    }
    if not limits.proxy:
        return urllib3.PoolManager(**options)
    parts = urlsplit(limits.proxy)
    login = {f"proxy-{name.lower()}": value for name, value in _login(parts).items()}
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return urllib3.ProxyManager(plain, proxy_headers=login, **options)


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _login(parts: SplitResult) -> dict[str, str]:
    """Basic authentication (RFC 7617), where the URL holds a user."""
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _range(wanted: Wanted) -> dict[str, str]:
    """Ask for the rest if it is of the same file (RFC 9110, 13.1.5)."""
    return {"Range": f"bytes={wanted.offset}-", "If-Range": wanted.etag} if wanted.offset else {}


def _continues(response: Any, wanted: Wanted) -> bool:
    if response.status != 206 or wanted.total is None or response.headers.get("ETag", "") != wanted.etag:
        return False
    place = f"bytes {wanted.offset}-{wanted.total - 1}/{wanted.total}"
    return bool(response.headers.get("Content-Range", "").strip().lower() == place)


def _redirected(url: str, location: str, server: str) -> str:
    if not location:
        raise SourceError(f"{server} redirected to nowhere", _ADVICE[404])
    target = urljoin(url, location)
    before, after = urlsplit(url), urlsplit(target)
    if after.scheme not in ("http", "https") or not after.hostname:
        raise SourceError(f"{server} redirected to {after.scheme}:...; only http and https are followed")
    if before.scheme == "https" and after.scheme == "http":
        raise SourceError(
            f"{server} redirected from https to http on {after.hostname}, which anybody on the way could change"
        )
    return target


def _take(response: Any, wanted: Wanted, line: Line) -> None:
    status, headers = response.status, response.headers
    if status not in (200, 206) or (status == 206 and not wanted.offset):
        reason = f"{status} {response.reason or http.client.responses.get(status, '')}".strip()
        raise SourceError(f"{line.server} answered {reason}", _ADVICE.get(status, ""), again=status >= 500)
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise SourceError(
            f"{line.server} sends it encoded as {encoding}, which was not asked for", "offer it as a plain file"
        )
    sent = headers.get("Content-Length", "").strip()
    measured = sent.isascii() and sent.isdigit() and "Transfer-Encoding" not in headers
    offset = wanted.offset if status == 206 else 0
    total = wanted.total if offset else int(sent[:20]) if measured else None
    line.head(offset, total, headers.get("ETag", ""), headers.get("Last-Modified", ""))
    for data in _pieces(response):
        line.give(data)


def _pieces(response: Any) -> Iterator[bytes]:
    """Yield what has come, as soon as it has: a slow server must not look like a dead one. urllib3 1 has no read1."""
    read1: Callable[[int], bytes] = response.read1 if hasattr(response, "read1") else response._fp.read1
    while data := read1(_CHUNK):
        yield data


# -- ftp and ftps


def _ftp(source: str, wanted: Wanted, limits: Limits, line: Line) -> None:
    """Binary mode, passive; ftps is FTP with TLS for commands and data (RFC 4217). FTP has no ETag: always all of it."""
    parts = urlsplit(source)
    line.ask(f"server {parts.hostname}")
    ftp = ftplib.FTP_TLS(context=_tls(limits)) if parts.scheme == "ftps" else ftplib.FTP()  # noqa: S321
    ftp.connect(parts.hostname or "", parts.port or ftplib.FTP_PORT, limits.connect_s)
    ftp.login(unquote(parts.username or ""), unquote(parts.password or ""))
    if isinstance(ftp, ftplib.FTP_TLS):
        ftp.prot_p()
    path = unquote(parts.path).removeprefix("/")
    ftp.voidcmd("TYPE I")
    total = _told(lambda: ftp.size(path))
    modified = _told(lambda: ftp.sendcmd(f"MDTM {path}").partition(" ")[2])
    with ftp.transfercmd(f"RETR {path}") as data:
        data.settimeout(None)  # the parent measures what comes
        line.head(0, total, last_modified=modified or "")
        came = 0
        while piece := data.recv(_CHUNK):
            line.give(piece)
            came += len(piece)
        with suppress(OSError):
            if isinstance(data, ssl.SSLSocket):
                data.unwrap()
    try:
        ftp.voidresp()
    except (OSError, EOFError):  # a firewall has forgotten the idle connection meanwhile
        if came != total:
            raise


def _told(ask: Callable[[], _Said]) -> _Said | None:
    """Return what a server says that need not know this command."""
    try:
        return ask()
    except (ftplib.Error, ValueError):
        return None
