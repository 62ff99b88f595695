"""Images come over real http, https, ftp and ftps from a server that does everything wrong once."""

import hashlib
import json
import os
import pwd
import random
import resource
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fileserver import Server, authority, certificate, serving

from vmbatch.errors import OfferError, SiteError
from vmbatch.images.fetch import Check, Fetched, Limits, SourceError, copy, fetch
from vmbatch.model import Person
from vmbatch.pipes import piped

pytestmark = pytest.mark.programs

CONTENT = random.Random(1).randbytes(3_000_001)
OTHER = random.Random(2).randbytes(3_000_001)
SHA512 = hashlib.sha512(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LIMITS = Limits(connect_s=5, stall_s=5, total_s=60, max_bytes=1 << 30)


def somebody() -> Person:
    """Nobody, where we may become nobody."""
    entry = pwd.getpwuid(65534 if os.geteuid() == 0 else os.geteuid())
    return Person(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir), ((entry.pw_name, entry.pw_gid),))


class StopError(Exception):
    """What a progress function raises to end a transfer."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that everybody may enter: the one who fetches reads the certificates."""
    place = Path(tempfile.mkdtemp(prefix="vmbatch-fetch-"))
    place.chmod(0o755)
    (place / "served").mkdir()
    (place / "served" / "disk").write_bytes(CONTENT)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def ca(folder: Path) -> Path:
    return authority(folder / "tls")


@pytest.fixture(scope="module")
def http(folder: Path) -> Iterator[Server]:
    with serving(folder / "served") as server:
        yield server


@pytest.fixture(scope="module")
def https(folder: Path, ca: Path) -> Iterator[Server]:
    with serving(folder / "served", "https", certificate(ca, "good"), "localhost") as server:
        yield server


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries the tests wait a tenth of the time."""
    monkeypatch.setattr("vmbatch.images.fetch.PAUSES_S", (0.05, 0.1))


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "part"


def get(source: str, part: Path, **changes: Any) -> Fetched:
    """Fetch with the usual arguments; `changes` may hold any of them, and any of the limits."""
    limits = {name: changes.pop(name) for name in Limits.__slots__ if name in changes}
    usual: dict[str, Any] = {"check": None, "size": None, "progress": lambda done, total: None, "person": somebody()}
    return fetch(source, part, **{**usual, **changes}, limits=replace(LIMITS, **limits))


def note(part: Path) -> Path:
    return part.with_name("part.json")


def stop_at(count: int) -> Any:
    def progress(done: int, total: int | None) -> None:
        if done >= count:
            raise StopError

    return progress


def alone(*words: str) -> list[str]:
    """How to run this file as a program, which fetches: see main."""
    return [
        sys.executable,
        "-c",
        f"import sys; sys.path = {sys.path}; import test_fetch; test_fetch.main(*sys.argv[1:])",
        *words,
    ]


def children() -> set[int]:
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@contextmanager
def new_requests(server: Server) -> Iterator[list[list[Any]]]:
    """Give a list that holds the server's new requests once the block is left."""
    before, found = len(server.requests), []
    yield found
    found += server.requests[before:]


# -- what works


def test_a_file_arrives_whole_private_and_hashed(http: Server, part: Path) -> None:
    told: list[tuple[int, int | None]] = []
    got = get(
        f"{http.url}/disk",
        part,
        check=Check("sha256", SHA256),
        size=len(CONTENT),
        progress=lambda done, total: told.append((done, total)),
    )
    assert (got.sha512, got.size, got.kept) == (SHA512, len(CONTENT), 0)
    assert got.etag.startswith('"') and "GMT" in got.last_modified
    assert part.read_bytes() == CONTENT
    assert stat.S_IMODE(part.stat().st_mode) == 0o600 and part.stat().st_uid == os.geteuid()
    assert [path.name for path in part.parent.iterdir()] == ["part"]
    assert told[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("function", ["md5", "sha1", "sha256", "sha512"])
def test_every_hash_function_is_checked(http: Server, part: Path, function: str) -> None:
    value = hashlib.new(function, CONTENT).hexdigest()
    assert get(f"{http.url}/disk", part, check=Check(function, value)).sha512 == SHA512
    with pytest.raises(SourceError, match=f"its {function} is {value}, not {'0' * len(value)}"):
        get(f"{http.url}/disk", part, check=Check(function, "0" * len(value)))
    assert list(part.parent.iterdir()) == []


@pytest.mark.parametrize("query", ["length=none", "length=chunked", "hops=10", "redirect=/disk"])
def test_a_body_of_unknown_length_and_up_to_ten_redirects_are_fine(http: Server, part: Path, query: str) -> None:
    assert get(f"{http.url}/disk?{query}", part).sha512 == SHA512


def test_https_with_a_named_authority(https: Server, ca: Path, part: Path) -> None:
    assert get(f"{https.url}/disk", part, ca_file=ca).sha512 == SHA512


@pytest.mark.parametrize("login", ["", "reader:s3cret@", "reader:%733cret@"])
def test_ftp_with_and_without_a_user(folder: Path, part: Path, login: str) -> None:
    with serving(folder / "served", "ftp") as server:
        got = get(f"{server.url}/disk".replace("//", f"//{login}"), part, size=len(CONTENT))
    assert (got.sha512, got.etag, part.read_bytes()) == (SHA512, "", CONTENT)


def test_ftps_protects_commands_and_data(folder: Path, ca: Path, part: Path) -> None:
    with serving(folder / "served", "ftps", certificate(ca, "ftps"), "localhost") as server:
        assert get(f"{server.url}/disk".replace("//", "//reader:s3cret@"), part, ca_file=ca).sha512 == SHA512
        with pytest.raises(SourceError, match="signed by an authority that is not known here"):
            get(f"{server.url}/disk", part)
        with pytest.raises(SourceError, match=r"answered 5\d\d "):
            get(f"{server.url}/disk".replace("ftps", "ftp"), part)


def test_user_and_password_of_the_address_are_used(http: Server, part: Path) -> None:
    address = f"{http.url}/disk?login=me:s%2Fcret".replace("//", "//me:s%2Fcret@")
    assert get(address, part).sha512 == SHA512


def test_they_are_not_shown_to_another_server(http: Server, folder: Path, part: Path) -> None:
    with serving(folder / "served") as second:
        target = f"{second.url}/disk%3Flogin=me:s3cret"
        with pytest.raises(SourceError, match="answered 401 Unauthorized"):
            get(f"{http.url}/disk?redirect={target}".replace("//", "//me:s3cret@", 1), part)
        assert [status for *_, status in second.requests] == [401]
    same = f"{http.url}/disk?redirect=/disk%3Flogin=me:s3cret".replace("//", "//me:s3cret@", 1)
    assert get(same, part).sha512 == SHA512


def test_a_proxy_is_asked_instead_of_the_server(http: Server, part: Path) -> None:
    assert get("http://images.invalid/disk", part, proxy=http.url).sha512 == SHA512
    assert http.requests[-1][:2] == ["GET", "http://images.invalid/disk"]
    with pytest.raises(SourceError, match=r"the proxy for server images\.invalid"):
        get("https://images.invalid/disk", part, proxy=http.url)
    assert http.requests[-1][:2] == ["CONNECT", "images.invalid:443"]


def test_a_slow_server_is_not_a_dead_one(http: Server, part: Path) -> None:
    """16 KiB a second, for longer than a stall may last: nobody may wait for a full buffer."""
    http.put("small", CONTENT[:32768])
    assert get(f"{http.url}/small?drip=0.125&piece=2048", part, stall_s=0.5).size == 32768


def test_progress_is_told_twice_a_second_at_least(http: Server, part: Path) -> None:
    times = []
    with pytest.raises(SourceError, match="stalled"):
        get(f"{http.url}/disk?stop=100000", part, stall_s=1.5, progress=lambda done, total: times.append(time.monotonic()))
    assert len(times) >= 4
    assert max(after - before for before, after in pairwise(times)) < 0.5


# -- what fails

FAILURES = {
    "status=404": ({}, r"server 127\.0\.0\.1 answered 404 Not Found; correct the address"),
    "status=403": ({}, "answered 403 Forbidden"),
    "status=503": ({}, "answered 503 Service Unavailable"),
    "mute=1": ({"connect_s": 0.5, "stall_s": 0.5}, r"server 127\.0\.0\.1 did not answer within 1 s"),
    "stop=5000": ({"stall_s": 1}, "stalled: fewer than 1024 bytes came within 1 s, after 5000 bytes"),
    "drip=0.01": ({"stall_s": 1}, "stalled: fewer than 1024 bytes came within 1 s"),
    "drip=0.05&piece=2000": ({"total_s": 1, "stall_s": 0.5}, r"took longer than 1 s; \d+ bytes had come"),
    "cut=200000&etag=none": ({}, f"only 200000 of its {len(CONTENT)} bytes came"),
    "cut=200000&length=chunked": ({}, "closed the connection before the end"),
    "endless=1": ({"max_bytes": 5_000_000}, r"it has \d+ bytes at least, and 5000000 are allowed"),
    "length=9000000": ({"max_bytes": 8_000_000}, "it has 9000000 bytes at least, and 8000000 are allowed"),
    "length=9000001": ({"size": len(CONTENT)}, f"it has 9000001 bytes, not {len(CONTENT)}"),
    "length=none": ({"size": 1_000_000}, "more than its 1000000 bytes came"),
    "length=chunked": ({"size": 9_000_000}, f"it has {len(CONTENT)} bytes, not 9000000"),
    "encoding=gzip": ({}, "sends it encoded as gzip"),
    "hops=11": ({}, "redirected more than 10 times"),
    "redirect=file:///etc/passwd": ({}, r"redirected to file:\.\.\."),
    "redirect=ftp://127.0.0.1/disk": ({}, r"redirected to ftp:\.\.\."),
}  # fmt: skip


@pytest.mark.parametrize("query", FAILURES)
def test_a_failure_is_a_sentence_that_names_the_image(http: Server, part: Path, query: str) -> None:
    changes, sentence = FAILURES[query]
    began, before = time.monotonic(), children()
    with pytest.raises(SourceError, match=sentence) as caught:
        get(f"{http.url}/disk?{query}", part, **changes)
    assert str(caught.value).startswith(f"{http.url}/disk: ")
    assert isinstance(caught.value, OfferError) and isinstance(caught.value, SiteError)
    assert time.monotonic() - began < 10
    assert children() == before
    assert part.exists() == note(part).exists() == (query.partition("=")[0] in ("stop", "drip"))


def test_what_is_announced_too_large_or_of_another_size_is_not_transferred(http: Server, part: Path) -> None:
    most: list[int] = []
    for changes in ({"max_bytes": 1_000_000}, {"size": 1_000_000}):
        with pytest.raises(SourceError, match=f"it has {len(CONTENT)} bytes"):
            get(f"{http.url}/disk?stop=100000", part, progress=lambda done, total: most.append(done), **changes)
    assert max(most) == 0


@pytest.mark.parametrize(
    ("query", "count"), [("status=404", 1), ("status=503", 3), ("status=503&times=2", 3), ("mute=1", 1)]
)
def test_only_what_may_pass_is_tried_again(http: Server, part: Path, query: str, count: int) -> None:
    with new_requests(http) as requests:
        if "times" in query:
            assert get(f"{http.url}/disk?{query}", part).sha512 == SHA512
        else:
            with pytest.raises(SourceError):
                get(f"{http.url}/disk?{query}&again", part, connect_s=0.5, stall_s=0.5)
    assert len(requests) == count


def test_a_server_that_is_not_there(part: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        for scheme in ("http", "https", "ftp", "ftps"):
            with pytest.raises(SourceError, match=r"server 127\.0\.0\.1 refused the connection"):
                get(f"{scheme}://127.0.0.1:{taken.getsockname()[1]}/disk", part)
    for scheme in ("http", "ftp"):
        with pytest.raises(SourceError, match=r"the name of server no-such-host\.invalid cannot be resolved"):
            get(f"{scheme}://no-such-host.invalid/disk", part)


def test_a_server_that_takes_no_connection(part: Path) -> None:
    """A full queue of connections: the kernel leaves ours unanswered."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(deaf.getsockname())
        with pytest.raises(SourceError, match=r"server 127\.0\.0\.1 did not answer within 0\.3 s"):
            get(f"http://127.0.0.1:{deaf.getsockname()[1]}/disk", part, connect_s=0.3)


def test_certificates_that_do_not_fit(folder: Path, ca: Path, https: Server, http: Server, part: Path) -> None:
    with pytest.raises(SourceError, match=r"signed by an authority that is not known here; name a file .* ca_file in"):
        get(f"{https.url}/disk", part)
    for name, options, sentence in (
        ("old", {"days": -1}, "the certificate of server localhost has expired"),
        ("wrong", {"names": "DNS:elsewhere.org"}, "Hostname mismatch"),
    ):
        one = certificate(ca, name, **options)
        with serving(folder / "served", "https", one, "localhost") as server, pytest.raises(SourceError, match=sentence):
            get(f"{server.url}/disk", part, ca_file=ca)
    with pytest.raises(SourceError, match="no TLS connection to server"):
        get(f"{http.url}/disk".replace("http://127.0.0.1", "https://localhost"), part)
    with pytest.raises(SourceError, match=r"cannot use the certificates in /no/such\.pem: No such file"):
        get(f"{https.url}/disk", part, ca_file=Path("/no/such.pem"))


def test_https_does_not_lead_to_http(https: Server, http: Server, ca: Path, part: Path) -> None:
    with new_requests(http) as requests, pytest.raises(SourceError, match="redirected from https to http on 127"):
        get(f"{https.url}/disk?redirect={http.url}/disk", part, ca_file=ca)
    assert requests == []
    assert get(f"{http.url}/disk?redirect={https.url}/disk", part, ca_file=ca).sha512 == SHA512


def test_ftp_failures(folder: Path, part: Path) -> None:
    with serving(folder / "served", "ftp") as server:
        with pytest.raises(SourceError, match="answered 550 "):
            get(f"{server.url}/none", part)
        with pytest.raises(SourceError, match="answered 530 Authentication failed"):
            get(f"{server.url}/disk".replace("//", "//reader:wr0ng@"), part)
        with pytest.raises(SourceError, match=f"it has {len(CONTENT)} bytes, not 17"):
            get(f"{server.url}/disk", part, size=17)


NO_SERVERS = (
    "file:///etc/passwd",
    "/etc/passwd",
    "gopher://x/y",
    "http:///d",
    "http://[::1/d",
    "http://x:y/",
    "http://x/a b",
)


@pytest.mark.parametrize("source", NO_SERVERS)
def test_only_addresses_of_servers_are_taken(part: Path, source: str) -> None:
    with pytest.raises(SourceError, match="address"):
        get(source, part)
    assert not part.exists()


@pytest.mark.parametrize(
    "address",
    [
        "http://me:s3cret@127.0.0.1:1/disk",
        "ftp://me:s3cret@127.0.0.1:1/disk",
        "http://me:s3cret@no-such-host.invalid/disk",
        "http://me:s3cret@x:y/disk",
        "http://me:s3cret@[::1/disk",
        "file://me:s3cret@x/disk",
        "HTTP/disk?echo=s3cret",
        "HTTP/disk?login=me:other",
        "HTTP/disk?redirect=//[s3cret",
        "HTTP/disk?drip=0.01",
        "PROXY/disk",
    ],
)
def test_no_password_is_shown(http: Server, part: Path, address: str, capfd: pytest.CaptureFixture[str]) -> None:
    proxy = "http://me:s3cret@127.0.0.1:1" if "PROXY" in address else None
    mine = http.url.replace("//", "//me:s3cret@")
    with pytest.raises(SourceError) as caught:
        get(address.replace("HTTP", mine).replace("PROXY", http.url), part, stall_s=0.5, proxy=proxy)
    left = note(part).read_text() if note(part).exists() else ""
    assert "s3cret" not in repr((caught.value, caught.value.hint, caught.value.__cause__, *capfd.readouterr(), left))


# -- what was there already


def interrupted(http: Server, part: Path, query: str = "") -> str:
    """Leave a third of the file in `part`. Returns the URL."""
    url = f"{http.url}/disk?stop=1000000&times=1&who={part.parent.name}{query}"
    with pytest.raises(StopError):
        get(url, part, progress=stop_at(1_000_000))
    return url


def test_only_the_missing_bytes_are_asked_for(http: Server, part: Path) -> None:
    url = interrupted(http, part)
    assert (part.stat().st_size, note(part).stat().st_mode & 0o777) == (1_000_000, 0o600)
    with new_requests(http) as requests:
        got = get(url, part, check=Check("sha256", SHA256))
    assert [one[2:] for one in requests] == [["bytes=1000000-", 206]]
    assert (got.kept, got.sha512, part.read_bytes() == CONTENT, note(part).exists()) == (1_000_000, SHA512, True, False)


@pytest.mark.parametrize(("query", "answers"), [("", [200]), ("&careless=1", [206, 200])])
def test_a_changed_file_is_fetched_from_the_start(
    folder: Path, http: Server, part: Path, query: str, answers: list[int]
) -> None:
    """Also where the server sends a rest that nobody can want."""
    url = interrupted(http, part, query)
    (folder / "served" / "disk").write_bytes(OTHER)
    try:
        with new_requests(http) as requests:
            got = get(url, part)
    finally:
        (folder / "served" / "disk").write_bytes(CONTENT)
    assert [status for *_, status in requests] == answers
    assert requests[0][2] == "bytes=1000000-"
    assert (got.kept, got.sha512, part.read_bytes() == OTHER) == (0, hashlib.sha512(OTHER).hexdigest(), True)


@pytest.mark.parametrize("etag", ["weak", "none"])
def test_without_a_strong_etag_it_is_fetched_from_the_start(http: Server, part: Path, etag: str) -> None:
    url = interrupted(http, part, f"&etag={etag}")
    assert list(part.parent.iterdir()) == []
    with new_requests(http) as requests:
        assert get(url, part).kept == 0
    assert [one[2:] for one in requests] == [["", 200]]


@pytest.mark.parametrize(
    "change", [{"boot_id": "an earlier one"}, {"url": "http://elsewhere/disk"}, {"etag": 'W/"x"'}, {"x": 1}]
)
def test_a_part_that_may_be_something_else_is_not_used(http: Server, part: Path, change: dict[str, Any]) -> None:
    url = interrupted(http, part)
    note(part).write_text(json.dumps({**json.loads(note(part).read_text()), **change}))
    with new_requests(http) as requests:
        assert (get(url, part).sha512, requests) == (SHA512, [])
    assert [one[2:] for one in requests] == [["", 200]]


def test_nothing_of_an_earlier_file_stays_behind_the_beginning_of_a_later_one(http: Server, part: Path) -> None:
    interrupted(http, part)
    with pytest.raises(StopError):
        get(f"{http.url}/disk?stop=1000", part, progress=stop_at(1000))
    assert part.stat().st_size == 1000


def test_another_size_under_the_same_etag_is_fetched_from_the_start(http: Server, part: Path) -> None:
    url = interrupted(http, part)
    note(part).write_text(json.dumps({**json.loads(note(part).read_text()), "total": 5_000_000}))
    with new_requests(http) as requests:
        got = get(url, part)
    assert [one[2:] for one in requests] == [["bytes=1000000-", 206], ["", 200]]
    assert (got.kept, part.read_bytes() == CONTENT) == (0, True)


def test_a_part_that_only_lacked_its_end_is_soon_done(http: Server, part: Path) -> None:
    with pytest.raises(StopError):
        get(f"{http.url}/disk", part, progress=stop_at(len(CONTENT)))
    assert part.stat().st_size == len(CONTENT)
    with new_requests(http) as requests:
        assert get(f"{http.url}/disk", part).sha512 == SHA512
    assert [one[2:] for one in requests] == [[f"bytes={len(CONTENT) - 1}-", 206]]


def test_a_broken_connection_is_taken_up_where_it_broke(http: Server, part: Path) -> None:
    with new_requests(http) as requests:
        assert get(f"{http.url}/disk?cut=1000000&times=1", part).sha512 == SHA512
    assert [one[2:] for one in requests] == [["", 200], ["bytes=1000000-", 206]]
    with new_requests(http) as requests:
        assert get(f"{http.url}/disk?cut=1000000&times=1&etag=weak", part).sha512 == SHA512
    assert [one[2:] for one in requests] == [["", 200], ["", 200]]


def test_nothing_is_kept_of_a_file_with_a_wrong_hash(http: Server, part: Path) -> None:
    url = interrupted(http, part)
    with pytest.raises(SourceError, match=f"its sha512 is {SHA512}, not {'0' * 128}"):
        get(url, part, check=Check("sha512", "0" * 128))
    assert list(part.parent.iterdir()) == []


# -- processes


def test_the_one_who_speaks_to_servers_is_the_person_and_holds_only_pipes() -> None:
    def look(body: int, words: int) -> None:
        files = []
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the list itself
                files.append(os.readlink(f"/proc/self/fd/{name}"))
        os.write(body, json.dumps([os.getresuid(), os.getresgid(), os.getgroups(), files]).encode())
        os.write(words, b"done")

    person = somebody()
    extra = os.open("/dev/zero", os.O_RDONLY)
    with piped(person, look) as (body, words):
        assert select.select([words], [], [], 10)[0] and os.read(words, 100) == b"done"
        uids, gids, groups, files = json.loads(os.read(body, 10000))
    os.close(extra)
    assert (uids, gids) == ([person.uid] * 3, [person.gid] * 3)
    if os.geteuid() == 0:
        assert groups == [gid for _, gid in person.groups]
    assert sorted(name.partition(":")[0] for name in files) == ["/dev/null"] * 3 + ["pipe"] * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_without_root_the_one_who_fetches_is_whoever_we_are(http: Server, folder: Path) -> None:
    place = folder / "own"
    place.mkdir()
    os.chown(place, 65534, 65534)
    words = alone(f"{http.url}/disk", str(place / "part"), "daemon")
    subprocess.run(words, check=True, user=65534, group=65534, extra_groups=[], cwd="/", timeout=60)
    assert (place / "part").read_bytes() == CONTENT


def test_a_progress_that_raises_ends_the_child(http: Server, part: Path) -> None:
    before = children()
    seen: set[int] = set()

    def progress(done: int, total: int | None) -> None:
        seen.update(children() - before)
        if done:
            raise StopError

    with pytest.raises(StopError):
        get(f"{http.url}/disk?stop=100000", part, progress=progress)
    assert len(seen) == 1 and children() == before
    assert part.stat().st_size == 100_000


@pytest.mark.parametrize("query", ["stop=1000&times=1&parent", "mute=1", "endless=1"])
def test_the_child_ends_with_a_parent_that_is_killed(http: Server, part: Path, query: str) -> None:
    """Whatever the child does meanwhile: reading, waiting for an answer, writing into a full pipe."""
    with subprocess.Popen(alone(f"{http.url}/disk?{query}", str(part)), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        descriptor = os.pidfd_open(pid)
        try:
            if query == "endless=1":
                process.send_signal(signal.SIGSTOP)
            assert select.select([descriptor], [], [], 0.3)[0] == []
            process.kill()
            assert select.select([descriptor], [], [], 5)[0] == [descriptor]
        finally:
            os.close(descriptor)
    if "parent" in query:  # and the next one goes on from there
        assert get(f"{http.url}/disk?{query}", part).kept == 1000


def test_a_child_that_is_killed_is_replaced(http: Server, part: Path) -> None:
    before, killed = children(), set()

    def progress(done: int, total: int | None) -> None:
        if done and not killed:
            killed.update(children() - before)
            os.kill(max(killed), signal.SIGKILL)

    with new_requests(http) as requests:
        assert get(f"{http.url}/disk?stop=100000&times=1&killed", part, progress=progress).sha512 == SHA512
    assert [one[2:] for one in requests] == [["", 200], ["bytes=100000-", 206]]


def test_what_the_child_says_is_not_believed(http: Server, part: Path) -> None:
    """The same parent, and a child that says what a conquered one could say."""
    from vmbatch.images.fetch import _head, _lines

    for said in (
        b"[]\n",
        b"no json\n",
        b'{"head": {"offset": "x"}}\n',
        b'{"failure": 1}\n',
        b"x" * (1 << 17),
        b"[" * 60000 + b"\n",
    ):

        def say(body: int, words: int, said: bytes = said) -> None:
            os.write(words, said)
            signal.pause()

        with piped(somebody(), say) as (_, words), pytest.raises(SourceError, match="went wrong"):
            _head(_lines(words, 10, lambda: None), "http://x/")


def test_memory_does_not_grow_with_the_image(http: Server, tmp_path: Path) -> None:
    peaks = []
    for mib in (8, 256):
        with (http.folder / "zeros").open("wb") as file:
            file.truncate(mib << 20)
        argv = alone(f"{http.url}/zeros", str(tmp_path / f"part{mib}"), "peak")
        peaks.append(int(subprocess.run(argv, capture_output=True, check=True, timeout=120).stdout.split()[-1]))
    (http.folder / "zeros").unlink()
    assert peaks[1] - peaks[0] < 40 << 10, f"{peaks} KiB"


# -- the part file


def test_nothing_but_a_file_of_our_own_is_written(http: Server, part: Path) -> None:
    victim = part.with_name("victim")
    victim.write_text("precious")
    for place in (part.symlink_to, part.hardlink_to):
        place(victim)
        with pytest.raises(SiteError, match=r"part") as caught:
            get(f"{http.url}/disk", part)
        assert not isinstance(caught.value, SourceError)
        part.unlink()
    assert victim.read_text() == "precious"


def test_a_disk_that_takes_no_more_is_the_nodes_fault_and_gets_its_room_back(http: Server, part: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(SiteError, match=r"cannot write .*part: File too large") as caught:
            get(f"{http.url}/disk", part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not isinstance(caught.value, OfferError)
    assert list(part.parent.iterdir()) == []


# -- open files


def taken(path: Path, part: Path, **changes: Any) -> Fetched:
    usual: dict[str, Any] = {"check": None, "size": None, "limits": LIMITS, "progress": lambda done, total: None}
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return copy(descriptor, part, **{**usual, **changes})
    finally:
        os.close(descriptor)


def test_a_copy_has_the_same_content_and_holes(tmp_path: Path, part: Path) -> None:
    source = tmp_path / "disk"
    with source.open("wb") as file:
        file.seek(5 << 20)
        file.write(CONTENT)
        file.truncate(50 << 20)
    whole = hashlib.sha512(source.read_bytes()).hexdigest()
    told: list[tuple[int, int | None]] = []
    got = taken(source, part, check=Check("sha512", whole), progress=lambda done, total: told.append((done, total)))
    assert (got.sha512, got.size) == (whole, 50 << 20)
    assert part.read_bytes() == source.read_bytes()
    assert part.stat().st_blocks * 512 < 5 << 20
    assert told[-1] == (50 << 20, 50 << 20) and stat.S_IMODE(part.stat().st_mode) == 0o600


def test_a_copy_is_checked_like_a_download(tmp_path: Path, part: Path) -> None:
    source = tmp_path / "disk"
    source.write_bytes(CONTENT)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"check": Check("md5", "0" * 32)}, f"{source}: its md5 is {hashlib.md5(CONTENT).hexdigest()}, not 0000"),
        ({"size": 5}, f"it has {len(CONTENT)} bytes, not 5"),
        ({"limits": replace(LIMITS, max_bytes=1000)}, "and 1000 are allowed"),
    ]
    for changes, sentence in cases:
        with pytest.raises(SourceError, match=sentence):
            taken(source, part, **changes)
        assert not part.exists()
    with pytest.raises(SourceError, match="/dev/zero is not a file"):
        taken(Path("/dev/zero"), part)


def test_a_copy_ends_where_progress_raises_or_the_file_shrinks(tmp_path: Path, part: Path) -> None:
    source = tmp_path / "disk"
    source.write_bytes(bytes(64 << 20))
    with pytest.raises(StopError):
        taken(source, part, progress=stop_at(0))
    assert not part.exists()

    def shrink(done: int, total: int | None) -> None:
        os.truncate(source, 1 << 20)

    with pytest.raises(SourceError, match=f"became shorter than {64 << 20} bytes"):
        taken(source, part, progress=shrink)


def main(source: str, part: str, *words: str) -> None:
    """Fetch in a process of its own: print the child's pid as soon as there is one, or the peak memory at the end."""
    told: list[int] = []

    def progress(done: int, total: int | None) -> None:
        if not words and not told and children() and (done or "mute" in source):
            told.extend(children())
            print(told[0], flush=True)

    person = Person("daemon", 1, 1, Path("/"), (("daemon", 1),)) if "daemon" in words else somebody()
    get(source, Path(part), progress=progress, person=person)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
