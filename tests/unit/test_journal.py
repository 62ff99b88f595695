"""The journal: written before the thing, torn lines passed over, a stopped child keeps nobody waiting."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmbatch.errors import CancelledError
from vmbatch.journal import Journal, Thing


def test_a_line_is_on_disk_before_the_thing_is_made(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, "k")
    journal.will("file", "/x", note=1)
    last = json.loads((journal.directory / "journal.jsonl").read_text().splitlines()[-1])
    assert (last["do"], last["kind"], last["name"], last["data"]) == ("will", "file", "/x", {"note": 1})
    assert json.loads((journal.directory / "journal.jsonl").read_text().splitlines()[0])["schema"] == 1


def test_what_stands_comes_newest_first(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, "k")
    for name in "abc":
        journal.will("file", name)
    journal.gone(Thing("file", "b"))
    journal.will("file", "a")
    assert [thing.name for thing in journal.standing()] == ["a", "c"]


@pytest.mark.parametrize("length", range(1, 60, 7))
def test_a_torn_last_line_is_passed_over_and_the_next_one_kept(tmp_path: Path, length: int) -> None:
    journal = Journal.begin(tmp_path, "k")
    journal.will("file", "a")
    file = journal.directory / "journal.jsonl"
    whole = file.read_bytes()
    journal.will("file", "torn")
    line = file.read_bytes()[len(whole) :]
    file.write_bytes(whole + line[: min(length, len(line) - 2)])
    assert [thing.name for thing in journal.standing()] == ["a"]
    journal.will("file", "b")
    assert [thing.name for thing in journal.standing()] == ["b", "a"]


def test_n_counts_up_and_is_never_used_twice(tmp_path: Path) -> None:
    numbers = []
    for _ in range(3):
        journal = Journal.begin(tmp_path, "k")
        numbers.append(journal.n)
        journal.archive(tmp_path)
    assert numbers == [1, 2, 3]
    assert not (tmp_path / "jobs" / "k").exists()
    assert [one.n for one in Journal.unended(tmp_path, "k")] == []


def test_a_start_sees_that_it_was_cancelled_and_a_stop_does_not(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, "k")
    with journal.held(start=True):
        journal.will("file", "a")
        Journal(journal.directory).cancel()
        with pytest.raises(CancelledError):
            journal.will("file", "b")
    with journal.held(start=False):
        journal.will("file", "c")


HOLD = """
import sys, os, signal, time
from pathlib import Path
from vmbatch.journal import Journal
with Journal(Path(sys.argv[1])).held(start=True):
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        signal.pause()
    if sys.argv[2] == "leave":
        os.read(0, 1)
        os._exit(1)
    signal.pause()
"""


def holder(journal: Journal, what: str) -> tuple["subprocess.Popen[str]", int]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", HOLD, str(journal.directory), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.programs
def test_a_stopped_child_of_a_dead_start_does_not_keep_the_stop_waiting(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, "k")
    process, child = holder(journal, "leave")
    os.kill(child, signal.SIGSTOP)
    assert process.stdin is not None
    process.stdin.write("x")
    process.stdin.close()
    assert process.wait(10) == 1
    began = time.monotonic()
    with journal.held(start=False, grace_s=30):
        assert time.monotonic() - began < 5
    os.kill(child, signal.SIGKILL)


@pytest.mark.programs
def test_a_start_that_does_not_end_is_killed_after_the_grace(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, "k")
    process, child = holder(journal, "stay")
    os.kill(process.pid, signal.SIGSTOP)  # not even a stopped one holds the lock for ever
    assert journal.busy
    with journal.held(start=False, grace_s=0.2):
        assert process.wait(5) == -signal.SIGKILL
    os.kill(child, signal.SIGKILL)


@pytest.mark.programs
def test_ten_starts_at_once_get_ten_numbers(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from vmbatch.journal import Journal; "
        "print(Journal.begin(Path(sys.argv[1]), 'k').n)"
    )
    running = [
        subprocess.Popen([sys.executable, "-I", "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    assert sorted(int(one.communicate()[0]) for one in running) == list(range(1, 11))
