"""Programs have deadlines; a pid is verified before a kill; root becomes a user for good."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import things

from vmbatch.errors import SiteError
from vmbatch.process import Identity, call_as, find, hear, identify, kill, run

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
