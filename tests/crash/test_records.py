"""Start and stop, stopped at every point: here with everything that needs no hypervisor, torn lines, failing removals."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import things

from vmbatch import events, lifecycle, rundir, slots
from vmbatch.config import Config
from vmbatch.errors import SiteError
from vmbatch.hypervisor import Hypervisor
from vmbatch.images import store
from vmbatch.journal import Journal
from vmbatch.model import Size
from vmbatch.pids import find
from vmbatch.teardown import UNDO, Tools, qemu, teardown


class Stopped(BaseException):
    """The process dies here."""


def make(conf: Config, key: str = "slurm-prod-n-1-4711") -> Iterator[str]:
    """Make one of everything, yielding before and after each step, as a process could die there."""
    journal = Journal.begin(conf.paths.state, key)
    yield "begin"
    folder = rundir.make(conf, journal, things.JOB)
    yield "run dir and link"
    rundir.write_state(folder, "starting")
    slots.take(conf, journal, Size(1, 100, 200))
    yield "slot"
    base = conf.paths.images / "base.qcow2"
    base.parent.mkdir(exist_ok=True)
    base.touch(mode=0o644)
    assert store.lease(conf, base, journal)
    yield "lease"
    scratch = conf.paths.scratch / journal.name
    journal.will("dir", scratch)
    yield "will dir"
    scratch.mkdir(parents=True)
    (scratch / "disk0.qcow2").write_text("x")
    yield "dir"
    journal.will("file", scratch / "context.iso")
    yield "will file"
    (scratch / "context.iso").write_text("x")
    yield "file"


POINTS = ["begin", "run dir and link", "slot", "lease", "will dir", "dir", "will file", "file"]


def standing(conf: Config) -> list[str]:
    """Everything that is on the disk and should be gone after a stop."""
    found = [path for name in ("scratch", "run") for path in Path(getattr(conf.paths, name)).rglob("*")]
    for name in ("slots", "leases", "jobs"):
        found += (conf.paths.state / name).rglob("*")
    return sorted(str(path) for path in found if path.name not in (".lock", "by-job"))


def start_until(conf: Config, point: str) -> None:
    for reached in make(conf):
        if reached == point:
            return


@pytest.fixture
def conf(tmp_path: Path) -> Config:
    return things.site(tmp_path, '[libvirt]\nuri = "test:///default"\n')


@pytest.fixture
def stop(conf: Config) -> Callable[[], None]:
    return lambda: lifecycle.stop(conf, things.JOB.key)


@pytest.mark.programs
@pytest.mark.parametrize("point", POINTS)
def test_after_a_start_that_died_anywhere_one_stop_leaves_nothing(
    point: str, conf: Config, stop: Callable[[], None]
) -> None:
    start_until(conf, point)
    stop()
    assert standing(conf) == []
    stop()


@pytest.mark.programs
@pytest.mark.parametrize("at", range(12))
def test_after_a_stop_that_died_anywhere_one_more_stop_leaves_nothing(
    at: int, conf: Config, stop: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start_until(conf, "file")
    count = iter(range(1000))

    def die(name: str) -> None:
        if next(count) == at:
            raise Stopped(name)

    for module in ("journal", "lifecycle"):
        monkeypatch.setattr(f"vmbatch.{module}.reach", die)
    try:
        stop()
        died = False
    except Stopped:
        died = True
    monkeypatch.undo()
    stop()
    assert standing(conf) == []
    assert died == (at < 9), "the number of points of a stop has changed"


@pytest.mark.programs
@pytest.mark.parametrize("cut", range(1, 120, 11))
def test_a_torn_last_line_hides_nothing_that_was_made(cut: int, conf: Config, stop: Callable[[], None]) -> None:
    start_until(conf, "will file")
    file = next(conf.paths.state.glob("jobs/*/1/journal.jsonl"))
    lines = file.read_bytes()
    last = lines.rstrip(b"\n").rpartition(b"\n")[2]
    file.write_bytes(lines[: len(lines) - min(cut, len(last))])
    stop()
    assert standing(conf) == []


@pytest.mark.programs
def test_a_removal_that_fails_is_said_kept_and_tried_again(
    conf: Config, stop: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start_until(conf, "file")
    kept = UNDO["slot"]

    def fail(*_: object) -> None:
        raise OSError("the disk is on fire")

    monkeypatch.setitem(UNDO, "slot", fail)
    with pytest.raises(SiteError, match=r"slot slurm-prod-n-1-4711\.1 still stands: the disk is on fire"):
        stop()
    assert not list(conf.paths.scratch.rglob("*.iso")), "one failure does not keep the others"
    assert len(list((conf.paths.state / "slots").glob("[!.]*"))) == 1
    monkeypatch.setitem(UNDO, "slot", kept)
    stop()
    assert standing(conf) == []


@pytest.mark.programs
def test_a_new_start_takes_the_old_one_of_the_same_job_away_and_keeps_its_own_link(conf: Config) -> None:
    start_until(conf, "file")
    old = Journal.unended(conf.paths.state, things.JOB.key)
    new = Journal.begin(conf.paths.state, things.JOB.key)
    rundir.make(conf, new, things.JOB)
    with Hypervisor(conf.libvirt.uri, 10) as hypervisor:
        assert teardown(old[0], Tools(conf, hypervisor)) == []
    link = conf.paths.run / "by-job" / "slurm-prod-n-1-4711"
    assert os.readlink(link) == f"../{things.JOB.key}.2"


def test_every_kind_that_is_written_down_can_be_undone() -> None:
    import re

    kinds = set()
    for path in (things.ROOT / "vmbatch").rglob("*.py"):
        kinds |= set(re.findall(r'\.will\(\s*"(\w+)"', path.read_text()))
    assert kinds == set(UNDO)


@pytest.mark.programs
def test_a_folder_that_became_a_link_is_left_alone(conf: Config, stop: Callable[[], None], tmp_path: Path) -> None:
    start_until(conf, "file")
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").touch()
    scratch = next(conf.paths.scratch.iterdir())
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()
    scratch.symlink_to(treasure)
    with pytest.raises(SiteError, match="has become a symbolic link"):
        stop()
    assert (treasure / "gold").exists()
    scratch.unlink()
    stop()


@pytest.mark.programs
def test_the_archive_keeps_the_journal_and_a_record(conf: Config, stop: Callable[[], None]) -> None:
    start_until(conf, "file")
    stop()
    folder = conf.paths.state / "archive" / things.JOB.key / "1"
    assert json.loads((folder / "record.json").read_text())["schema"] == 1
    assert (folder / "journal.jsonl").exists()


def test_folders_nested_deeper_than_python_can_follow_are_removed(conf: Config, stop: Callable[[], None]) -> None:
    start_until(conf, "run dir and link")
    (place,) = [path for path in conf.paths.run.iterdir() if path.name != "by-job"]
    script = "for i in $(seq 1500); do mkdir d && cd d || exit 1; done"
    subprocess.run(["bash", "-c", script], cwd=place, check=True)
    stop()
    assert standing(conf) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root; make test runs as root")
def test_a_full_disk_does_not_keep_a_stop_from_making_room(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], check=True)
    try:
        journal = Journal.begin(tmp_path, "local-a-b-1")
        thing = tmp_path / "thing"
        journal.will("file", thing)
        with suppress(OSError), open(thing, "wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        with journal.held(start=False), events.step(journal, "collect"):
            pass
        assert thing.exists()
        assert teardown(journal, None) == []  # type: ignore[arg-type]
        assert not thing.exists()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another; make test runs as root")
def test_a_users_process_that_looks_like_qemu_is_none() -> None:
    uuid = "a9e4c0eb-0000-521c-a916-677b9bb4e6d2"
    argv = ["bash", "-c", "read x", "x", "-uuid", uuid]
    decoys = [subprocess.Popen(argv, stdin=subprocess.PIPE, user=uid, group=uid, extra_groups=[]) for uid in (65534, 0)]
    try:
        deadline = time.monotonic() + 10
        while len(find("-uuid", uuid)) < 2:
            assert time.monotonic() < deadline
        assert [who.pid for who in qemu(uuid)] == [decoys[1].pid]
    finally:
        for one in decoys:
            one.kill()
            one.communicate()
