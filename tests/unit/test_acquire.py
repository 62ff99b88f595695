"""One transfer for all who want an image: who waits, who takes over, who may use it, and what is evicted."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import daemons
import fileserver
import pytest
import things

from vmbatch import node
from vmbatch.config import Config
from vmbatch.disk import Origin
from vmbatch.errors import SiteError
from vmbatch.images import acquire, evict, objects, store
from vmbatch.images.acquire import Asker
from vmbatch.images.fetch import SourceError
from vmbatch.journal import Journal

pytestmark = pytest.mark.programs
PERSON = node.named("nobody") if os.geteuid() == 0 else node.person(os.geteuid())
CHILD = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from vmbatch import config
from vmbatch.disk import Origin
from vmbatch.images import acquire
from vmbatch.images.acquire import Asker
from vmbatch.node import named, person
import os
say = lambda text: print(text, flush=True)
who = named("nobody") if os.geteuid() == 0 else person(os.geteuid())
asker = Asker(sys.argv[3], who, say, lambda done, total: None, lambda: None)
check = ("md5", sys.argv[4]) if sys.argv[4] else None
origin = Origin("url", sys.argv[2], "shared", "raw", check=check)
entry = acquire.get(config.load(Path(sys.argv[1])), origin, asker, Path.is_file)
print("got", entry.sha512, time.time(), flush=True)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[fileserver.Server]:
    folder = tmp_path / "www"
    folder.mkdir()
    with fileserver.serving(folder) as running:
        yield running


@pytest.fixture
def conf(tmp_path: Path) -> Config:
    made = things.site(tmp_path, f'store = "{tmp_path}/store"\n')
    made.paths.catalogue.mkdir()
    return made


def asker(name: str = "test", told: list[str] | None = None) -> Asker:
    lines = told if told is not None else []
    return Asker(name, PERSON, lines.append, lambda done, total: None, lambda: None)


def child(conf: Config, url: str, name: str, md5: str = "") -> "subprocess.Popen[str]":
    text = CHILD.format(path=[str(things.ROOT), *sys.path])
    argv = [sys.executable, "-c", text, str(conf.file), url, name, md5]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/")


def get(conf: Config, origin: Origin, told: list[str] | None = None) -> objects.Entry:
    return acquire.get(conf, origin, asker(told=told), Path.is_file)


def url_of(url: str, **keys: object) -> Origin:
    return replace(Origin("url", url, "shared", "raw"), **keys)  # type: ignore[arg-type]


def image(size: int = 1 << 20) -> bytes:
    return b"image".ljust(size, b"\0")


def test_sixteen_that_want_one_image_make_one_get_and_all_start_at_once(conf: Config, server: fileserver.Server) -> None:
    url = server.put("a.raw", image()) + "?drip=0.1&piece=65536"
    jobs = [child(conf, url, f"job{n}") for n in range(16)]
    said = [job.communicate(timeout=120)[0] for job in jobs]
    assert all("got " in text for text in said), said
    assert server.gets == 1
    ends = [float(text.split()[-1]) for text in said]
    assert max(ends) - min(ends) < 5  # the exact figure is the benchmark's (P11)
    assert sum("waits for an image that job" in text for text in said) >= 1


def test_when_the_holder_is_killed_the_next_one_goes_on_with_its_bytes(conf: Config, server: fileserver.Server) -> None:
    url = server.put("a.raw", image(8 << 20)) + "?drip=0.05&piece=131072"
    first = child(conf, url, "first")
    part = conf.paths.store / "parts"
    daemons.wait_for(lambda: part.is_dir() and any(p.stat().st_size > 1 << 20 for p in part.iterdir()), 60, "some bytes")
    second = child(conf, url, "second")
    assert second.stdout is not None and "first" in second.stdout.readline()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    out = second.communicate(timeout=120)[0]
    assert hashlib.sha512(image(8 << 20)).hexdigest() in out
    asked = [request[2] for request in server.requests if request[0] == "GET"]
    assert len(asked) == 2 and str(asked[1]).startswith("bytes=")


def test_those_that_waited_get_the_same_error_and_the_server_is_asked_once(conf: Config, server: fileserver.Server) -> None:
    url = server.put("a.raw", image()) + "?drip=0.1&piece=131072"
    jobs = [child(conf, url, f"job{n}", "0" * 32) for n in range(4)]
    said = [job.communicate(timeout=120)[0] for job in jobs]
    assert all("SourceError" in text and "its md5 is" in text for text in said), said
    assert server.gets == 1
    late = child(conf, url, "late", "0" * 32)  # who comes later asks anew
    assert "its md5 is" in late.communicate(timeout=60)[0]
    assert server.gets == 2


def test_what_is_there_is_used_without_asking_the_server(conf: Config, server: fileserver.Server) -> None:
    url = server.put("a.raw", image())
    assert get(conf, url_of(url)) == get(conf, url_of(url))
    assert server.gets == 1


def test_another_hash_of_the_same_address_is_another_image(conf: Config, server: fileserver.Server) -> None:
    url = server.put("a.raw", image())
    get(conf, url_of(url))
    with pytest.raises(SourceError, match="its sha256 is"):
        get(conf, url_of(url, check=("sha256", "0" * 64)))
    assert len(list((conf.paths.store / "objects").iterdir())) == 1


def test_an_image_of_another_format_than_declared_never_gets_into_the_store(conf: Config, server: fileserver.Server) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", server.folder / "x", "1M"], check=True)
    with pytest.raises(SourceError, match="qcow2"):
        get(conf, url_of(f"{server.url}/x"))
    assert not (conf.paths.store / "objects").exists() and not list((conf.paths.store / "parts").iterdir())


@pytest.mark.parametrize("format", ["vmdk", "vdi", "vpc", "vhdx"])
def test_other_formats_are_converted_once_and_say_what_they_were(conf: Config, tmp_path: Path, format: str) -> None:
    raw, made = tmp_path / "a.raw", tmp_path / f"a.{format}"
    raw.write_bytes(image(4 << 20))
    exact = ["-o", "force_size=on"] if format == "vpc" else []
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, *exact, raw, made], check=True)
    entry = get(conf, Origin("file", str(made), "shared", None))
    assert (entry.format, entry.original_format, entry.virtual_size) == ("qcow2", format, 4 << 20)
    back = tmp_path / "back.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", entry.path(conf.paths.store), back], check=True)
    assert back.read_bytes() == raw.read_bytes()
    assert [path.name for path in (conf.paths.store / "parts").iterdir()] == []


def test_no_room_is_said_before_the_transfer(conf: Config, server: fileserver.Server) -> None:
    free = os.statvfs(conf.paths.store.parent)
    (server.folder / "huge.raw").touch()
    os.truncate(server.folder / "huge.raw", free.f_bavail * free.f_frsize + (1 << 30))
    roomy = replace(conf, fetch=replace(conf.fetch, max_image_mib=1 << 30))
    with pytest.raises(SiteError, match="MiB free, and the image has"):
        get(roomy, url_of(f"{server.url}/huge.raw"))


# --- the store ---


def fill(conf: Config, server: fileserver.Server, names: str, size: int = 1 << 20) -> list[Path]:
    paths = []
    for age, name in enumerate(reversed(names)):
        url = server.put(f"{name}.raw", b"\1" + name.encode() * (size - 1))
        entry = get(conf, url_of(url))
        used = time.time() - 86400 * age
        os.utime(conf.paths.store / "index" / f"{objects.identify(url_of(url))}.json", (used, used))
        paths.append(entry.path(conf.paths.store))
    return list(reversed(paths))


def limits(conf: Config, **keys: int) -> Config:
    return replace(conf, store=replace(conf.store, **keys))


def test_too_full_a_store_loses_the_longest_unused_down_to_the_low_mark(conf: Config, server: fileserver.Server) -> None:
    oldest, second, *newer = fill(conf, server, "abcd")
    gone = [kept.path for kept, _ in evict.gc(limits(conf, high_mib=3, low_mib=2))]
    assert gone == [oldest, second]
    assert all(path.exists() for path in newer)
    assert list(evict.gc(limits(conf, high_mib=3, low_mib=2))) == []


def test_what_was_not_used_for_long_goes_and_a_use_keeps_it(conf: Config, server: fileserver.Server) -> None:
    oldest, second, newest = fill(conf, server, "abc")
    get(conf, url_of(f"{server.url}/a.raw"))
    assert [kept.path for kept, _ in evict.gc(limits(conf, keep_days=1))] == [second]
    assert oldest.exists() and newest.exists()


def test_an_image_in_use_is_never_evicted(conf: Config, server: fileserver.Server) -> None:
    (path,) = fill(conf, server, "a")
    journal = Journal.begin(conf.paths.state, "slurm-prod-n-1-1")
    assert store.lease(conf, path, journal)
    assert list(evict.gc(conf, unused=True)) == []
    assert not evict.remove(conf, path) and path.exists()
    Path(journal.standing()[0].name).unlink()
    assert [kept.path for kept, _ in evict.gc(conf, unused=True)] == [path]
    assert not path.exists() and not list((conf.paths.store / "index").iterdir())


def test_an_image_that_the_catalogue_names_is_never_evicted(conf: Config, server: fileserver.Server) -> None:
    (path,) = fill(conf, server, "a")
    (conf.paths.catalogue / "a.toml").write_text(f'source = "sha512:{path.stem}"\nformat = "raw"\n')
    (conf.paths.catalogue / "a.toml").chmod(0o644)
    assert list(evict.gc(conf, unused=True)) == [] and path.exists()


def test_a_start_that_loses_the_race_with_an_eviction_fetches_again(conf: Config, server: fileserver.Server) -> None:
    (path,) = fill(conf, server, "a")
    tries = []

    def lease(base: Path) -> bool:
        tries.append(base)
        if len(tries) == 1:
            assert evict.remove(conf, base)  # between the look into the index and the lease
        return base.is_file()

    entry = acquire.get(conf, url_of(f"{server.url}/a.raw"), asker(), lease)
    assert entry.path(conf.paths.store) == path and path.exists()
    assert server.gets == 2


def test_an_object_that_was_written_to_is_not_used(conf: Config, server: fileserver.Server) -> None:
    (path,) = fill(conf, server, "a")
    path.chmod(0o644)
    path.write_bytes(b"changed")
    with pytest.raises(SiteError, match="has been changed since it was fetched"):
        get(conf, url_of(f"{server.url}/a.raw"))


def test_transfers_that_nobody_went_on_with_are_swept_after_a_day(conf: Config) -> None:
    parts = objects.folder(conf.paths.store, "parts")
    for name, age in (("old", 2), ("new", 0)):
        (parts / name).write_text("x")
        os.utime(parts / name, (time.time() - 86400 * age,) * 2)
    (parts / "work").mkdir()
    os.utime(parts / "work", (0, 0))
    evict.sweep(conf)
    assert [path.name for path in parts.iterdir()] == ["new"]
