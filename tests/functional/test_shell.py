"""The job's shell, through a real guest: streams, any bytes, exit codes, signals, terminals, shared connection."""

import os
import pty
import pwd
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

WORDS = st.binary(min_size=0, max_size=80).map(lambda raw: raw.replace(b"\0", b"-"))


@pytest.fixture(scope="module")
def job(start: Callable[..., Running], alice: pwd.struct_passwd) -> Running:
    return start(alice, "tiny:in=none")


def in_guest(job: Running, script: str) -> str:
    return job.shell("/bin/sh", "-c", script).stdout.decode()


def until(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_job_runs_in_the_guest_as_its_owner(job: Running, alice: pwd.struct_passwd) -> None:
    seen = in_guest(job, "hostname; id -u; id -g; id -un; pwd; echo $HOME; ls -ld . | cut -c1-10").splitlines()
    assert seen[0] == job.guest.hostname != os.uname().nodename
    assert seen[1:4] == [str(alice.pw_uid), str(alice.pw_gid), "vmbalice"]
    assert seen[4:] == [str(job.workdir), alice.pw_dir, "drwxr-xr-x"]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(args=st.lists(WORDS, max_size=5), values=st.lists(WORDS, max_size=5), text=st.binary(max_size=3000))
def test_any_bytes_arrive_unchanged(job: Running, args: list[bytes], values: list[bytes], text: bytes) -> None:
    env = {b"T%d" % i: value for i, value in enumerate(values)}
    show = b'printf "%s\\0" "$@"; cat; env -0 >&2'
    done = job.shell("/bin/bash", "-c", show, "x", *args, input=text, env=env)
    assert done.returncode == 0
    assert done.stdout == b"".join(arg + b"\0" for arg in args or [b""]) + text
    got = dict(one.partition(b"=")[::2] for one in done.stderr.split(b"\0"))
    assert {name: got[name] for name in env} == env


def test_200_kib_of_environment_arrive(job: Running) -> None:
    env = {b"BIG%d" % i: os.urandom(1000).hex().encode() for i in range(100)}
    done = job.shell("/usr/bin/env", "-0", env=env)
    got = dict(one.partition(b"=")[::2] for one in done.stdout.split(b"\0"))
    assert {name: got.get(name) for name in env} == env


def test_variables_of_the_host_stay_there(job: Running) -> None:
    env = {b"TMPDIR": b"/host", b"SSH_AUTH_SOCK": b"/host", b"SLURM_JWT": b"x", b"KEPT": b"y"}
    names = {one.partition(b"=")[0] for one in job.shell("/usr/bin/env", "-0", env=env).stdout.split(b"\0")}
    assert b"KEPT" in names
    assert not names & {b"TMPDIR", b"SSH_AUTH_SOCK", b"SLURM_JWT", b"VMBATCH_GUEST"}


@pytest.mark.parametrize("code", [0, 1, 3, 120, 125, 137, 254, 255])
def test_the_exit_code_is_the_jobs(job: Running, code: int) -> None:
    assert job.shell("/bin/sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("number", [9, 11, 15])
def test_a_death_by_signal_is_128_and_its_number(job: Running, number: int) -> None:
    assert job.shell("/bin/sh", "-c", f"kill -{number} $$").returncode == 128 + number


def test_a_missing_command_is_127_and_said(job: Running) -> None:
    done = job.shell("nosuch-command")
    assert (done.returncode, b"cannot run nosuch-command in the guest" in done.stderr) == (127, True)


def test_streams_are_kept_apart_and_megabytes_pass(job: Running) -> None:
    data = os.urandom(3_000_000)
    done = job.shell("/bin/sh", "-c", "tee /dev/stderr", input=data)
    assert done.stdout == data
    assert done.stderr == data


def test_output_arrives_while_the_job_runs(job: Running) -> None:
    child = job.popen("/bin/sh", "-c", "echo first; read x; echo got $x", stdin=subprocess.PIPE)
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == b"first\n"
    child.stdin.write(b"second\n")
    child.stdin.flush()
    assert child.stdout.readline() == b"got second\n"
    assert child.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_jobs_processes_in_the_guest(job: Running, number: int) -> None:
    child = job.popen("/bin/sh", "-c", f"trap 'echo caught; exit 7' {number}; echo on; while :; do sleep 0.1; done")
    assert child.stdout is not None
    assert child.stdout.readline() == b"on\n"
    child.send_signal(number)
    assert (child.communicate(timeout=30)[0], child.returncode) == (b"caught\n", 7)


def test_stop_and_continue_reach_the_job(job: Running) -> None:
    child = job.popen("/bin/sh", "-c", "while :; do echo x >> ticks; sleep 0.1; done")

    def ticks() -> int:
        return int(in_guest(job, "wc -l < ticks") or 0)

    until(lambda: ticks() > 2)
    child.send_signal(signal.SIGTSTP)
    until(lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    before = ticks()
    time.sleep(1)
    assert ticks() - before <= 1
    child.send_signal(signal.SIGCONT)
    until(lambda: ticks() > before + 3)
    child.terminate()
    assert child.wait(20) == 143


def test_nothing_of_the_job_lives_on_after_it(job: Running) -> None:
    script = "setsid sleep 4242 & (setsid sleep 4242 &); nohup sleep 4242 > /dev/null 2>&1 & exit 5"
    assert job.shell("/bin/sh", "-c", script).returncode == 5
    assert "sleep 4242" not in in_guest(job, "ps")


def test_nothing_of_the_job_lives_on_after_its_shell_was_killed(job: Running) -> None:
    child = job.popen("/bin/sh", "-c", "setsid sleep 4343 & echo on; sleep 4343")
    assert child.stdout is not None
    assert child.stdout.readline() == b"on\n"
    child.kill()
    child.wait()
    until(lambda: "sleep 4343" not in in_guest(job, "ps"))


def test_first_and_later_calls_share_one_connection(job: Running) -> None:
    job.shell("true")
    started = [in_guest(job, "ps | grep -c '[d]ropbear'") for _ in range(3)]
    assert len(set(started)) == 1
    masters = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(job.guest.run_dir).encode() in path.read_bytes() and path.read_bytes().startswith(b"ssh: ")
    ]
    assert len(masters) == 1
    status = Path(f"/proc/{masters[0]}/status").read_text()
    assert f"Uid:\t{job.owner.pw_uid}\t" in status


def test_a_terminal_in_the_guest(job: Running) -> None:
    master, slave = pty.openpty()
    child = job.popen(
        "/bin/sh", "-c", "tty; stty size; read x; echo got $x; exit 6", stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    text = b""
    os.write(master, b"hello\n")
    while select.select([master], [], [], 20)[0]:
        try:
            part = os.read(master, 1000)
        except OSError:
            break
        if not part:
            break
        text += part
    assert child.wait(20) == 6
    assert re.search(rb"/dev/pts/\d", text)
    assert b"got hello" in text


def test_ctrl_c_on_a_terminal_is_the_jobs(job: Running) -> None:
    master, slave = pty.openpty()
    script = "trap 'echo interrupted; exit 8' INT; echo on; while :; do sleep 0.1; done"
    child = job.popen("/bin/sh", "-c", script, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    text = b""
    while b"on\r\n" not in text:
        text += os.read(master, 100)
    os.write(master, b"\x03")
    assert child.wait(20) == 8


def test_a_script_of_the_users_is_carried_along(job: Running, alice: pwd.struct_passwd, tmp_path: Path) -> None:
    script = Path(alice.pw_dir) / "carried.sh"
    script.write_text('#!/bin/bash\necho "carried ${BASH_VERSION:+by bash} $1"\n')
    os.chown(script, alice.pw_uid, alice.pw_gid)
    assert job.shell(script.as_posix(), "x y").stdout == b"carried by bash x y\n"


def test_another_user_cannot_enter(job: Running, bob: pwd.struct_passwd) -> None:
    done = job.shell("id", user=bob.pw_uid)
    assert done.returncode != 0
    assert b"uid=" not in done.stdout


def test_the_folder_of_the_guest_holds_no_secret_for_others(job: Running, bob: pwd.struct_passwd) -> None:
    modes = {path.name: (path.stat().st_mode & 0o777, path.stat().st_uid) for path in job.guest.run_dir.iterdir()}
    assert modes["id"] == (0o400, job.owner.pw_uid)
    assert modes["mux"] == (0o700, job.owner.pw_uid)
    assert modes["state"] == modes["ssh_config"] == modes["known_hosts"] == (0o644, 0)
    assert job.guest.run_dir.stat().st_mode & 0o777 == 0o711
    for name in ("state", "ssh_config", "known_hosts"):
        assert b"PRIVATE" not in (job.guest.run_dir / name).read_bytes()


def test_the_context_disk_is_gone_from_node_and_guest(job: Running) -> None:
    assert not job.guest.iso.exists()
    drive = subprocess.run(
        ["virsh", "-c", "qemu:///system", "domblklist", job.guest.name], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"^ hdc +-$", drive, re.MULTILINE), drive


def test_a_host_key_that_is_not_the_pinned_one_is_refused(job: Running) -> None:
    known = job.guest.run_dir / "known_hosts"
    kept = known.read_text()
    subprocess.run(["ssh", "-F", job.guest.run_dir / "ssh_config", "-O", "exit", "guest"], capture_output=True, check=False)
    try:
        known.write_text(kept.replace("AAAAC3NzaC1lZDI1NTE5AAAAI", "AAAAC3NzaC1lZDI1NTE5AAAAJ", 1)[:-9] + "AAAAAAAA\n")
        done = job.shell("id")
        assert done.returncode == 120
        assert b"uid=" not in done.stdout
    finally:
        known.write_text(kept)
    assert job.shell("id").returncode == 0
