"""A guest that goes away under its job: at once, exit code 120, each case with its own sentence."""

import os
import pwd
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Running

from vmbatch import node

ROOT = pwd.getpwuid(0)


def ended(job: Running, script: str, act: Callable[[], None]) -> tuple[int, str, float]:
    """Run a script that says `on`, act, and return exit code, stderr and the seconds until the end."""
    child = job.popen("/bin/sh", "-c", f"echo on; {script}; sleep 600")
    assert child.stdout is not None
    assert child.stdout.readline() == b"on\n"
    began = time.monotonic()
    act()
    _, err = child.communicate(timeout=60)
    return child.returncode, err.decode(), time.monotonic() - began


def test_a_killed_qemu_ends_the_job_at_once(start: Callable[..., Running], alice: pwd.struct_passwd) -> None:
    job = start(alice, "tiny:in=none")
    code, said, seconds = ended(job, "true", lambda: os.kill(int(job.facts()["pid"]), signal.SIGKILL))
    assert code == 120
    assert "its QEMU process ended without a shutdown" in said
    assert "files that were not collected before are lost" in said
    assert seconds < 3
    later = job.shell("true")
    assert later.returncode == 120
    assert b"has ended already" in later.stderr or b"the guest was lost" in later.stderr  # QEMU may be a zombie yet


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("poweroff", "the guest was powered off from inside"),
        ("reboot -f", "the guest rebooted"),
        ("echo c > /proc/sysrq-trigger", "the guest's kernel panicked"),
    ],
)
def test_a_guest_that_goes_down_by_itself_says_how(start: Callable[..., Running], command: str, sentence: str) -> None:
    job = start(ROOT, "tiny:in=none")
    code, said, _ = ended(job, command, lambda: None)
    assert code == 120
    assert sentence in said
    assert "--- the end of the guest's console ---" in said


def test_the_console_belongs_to_the_jobs_owner(start: Callable[..., Running], alice: pwd.struct_passwd) -> None:
    job = start(alice, "tiny:in=none")
    status = Path(job.facts()["console"]).stat()
    assert (status.st_uid, status.st_mode & 0o777) == (alice.pw_uid, 0o600)
    assert node.person(alice.pw_uid).name == "vmbalice"
