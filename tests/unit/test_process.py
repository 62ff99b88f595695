"""Programs have deadlines; a pid is verified before a kill; root becomes a user for good."""

import os
import select
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import things

from vmbatch.errors import SiteError
from vmbatch.pids import Identity, find, identify, kill
from vmbatch.process import call_as, hear, run, serving

pytestmark = pytest.mark.programs


def test_a_program_that_hangs_is_killed_with_its_children() -> None:
    began = time.monotonic()
    with pytest.raises(SiteError, match=r"did not end within 0\.5 s"):
        run(["/bin/sh", "-c", "sleep 98765 & sleep 98765"], timeout_s=0.5)
    assert time.monotonic() - began < 5
    assert find("sleep", "98765") == []


def test_a_failure_holds_the_programs_own_words() -> None:
    with pytest.raises(SiteError, match="failed with 3: no luck"):
        run(["/bin/sh", "-c", "echo no luck >&2; exit 3"], timeout_s=5)


def test_a_missing_program_is_named() -> None:
    with pytest.raises(SiteError, match="cannot run /no/such"):
        run(["/no/such"], timeout_s=5)


def test_programs_get_a_built_environment_and_no_descriptor_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    extra = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(extra, True)
    result = run(["/bin/sh", "-c", "env; ls /proc/self/fd"], timeout_s=5)
    os.close(extra)
    assert "SECRET" not in result.text
    assert str(extra) not in result.text.split()


def test_hear_ends_as_soon_as_the_words_were_said() -> None:
    began = time.monotonic()
    assert b"ready" in hear(["/bin/sh", "-c", "echo ready; sleep 60"], b"ready", 20)
    assert time.monotonic() - began < 5


def server(script: str, timeout_s: float = 20) -> AbstractContextManager[int]:
    return serving(["/bin/sh", "-c", script], name="the server", until=b"ready", timeout_s=timeout_s)


def test_a_server_is_ready_for_the_block_and_gone_after_it_with_its_children() -> None:
    began = time.monotonic()
    with server("trap 'exit 0' TERM; sleep 98764 & echo ready; wait") as pid:
        assert identify(pid)
    assert time.monotonic() - began < 5
    assert identify(pid) is None
    assert find("sleep", "98764") == []


def test_a_server_that_does_not_get_ready_is_named_with_its_words() -> None:
    with pytest.raises(SiteError, match="the server failed: no luck"), server("echo no luck >&2"):
        raise AssertionError("the block began")


def test_a_server_that_fails_at_its_end_is_an_error() -> None:
    script = "trap 'echo lost; exit 1' TERM; sleep 98764 & echo ready; wait"
    with pytest.raises(SiteError, match="the server failed: lost"), server(script):
        pass


def test_a_server_is_killed_at_its_deadline_while_the_block_waits_for_it() -> None:
    with pytest.raises(SiteError, match="the server failed"), server("trap '' TERM; echo ready; sleep 98764", 0.5) as pid:
        descriptor = os.pidfd_open(pid)
        ended, _, _ = select.select([descriptor], [], [], 20)
        os.close(descriptor)
        assert ended
    assert find("sleep", "98764") == []


def test_only_the_very_process_is_killed() -> None:
    child = subprocess.Popen(["sleep", "60"])
    who = identify(child.pid)
    assert who is not None
    assert kill(Identity(who.pid, who.start - 1))
    assert child.poll() is None
    assert kill(who)
    assert child.wait(5) == -signal.SIGKILL
    assert kill(who)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another; make test runs as root")
def test_a_child_becomes_the_user_for_good(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for folder in list(tmp_path.parents)[:3]:
        folder.chmod(0o755)

    def look() -> None:
        (tmp_path / "out").write_text(Path("/proc/self/status").read_text())
        try:
            os.setuid(0)
        except PermissionError:
            (tmp_path / "kept").touch()

    assert call_as(things.PERSON, look, 10) == 0
    status = (tmp_path / "out").read_text()
    assert "Uid:\t1000\t1000\t1000\t1000" in status and "Gid:\t1000\t1000\t1000\t1000" in status
    assert "Groups:\t1000 2000" in status
    assert (tmp_path / "kept").stat().st_uid == 1000


def test_a_child_that_hangs_is_left_behind_at_the_deadline() -> None:
    began = time.monotonic()
    assert call_as(things.PERSON, signal.pause, 0.3) is None
    assert time.monotonic() - began < 5


def test_an_exception_in_the_child_is_status_1(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    assert call_as(things.PERSON, fail, 10) == 1
    assert "no such thing" in capfd.readouterr().err
