"""The channel and the guest's helper, here without a guest: the helper runs on this machine in place of ssh."""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import things
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbatch import channel
from vmbatch.channel import Channel, Command, LostError

pytestmark = pytest.mark.programs
WORDS = st.binary(min_size=0, max_size=60).map(lambda raw: raw.replace(b"\0", b"-"))


@pytest.fixture(scope="module")
def helper_home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        guest = things.ROOT / "vmbatch" / "guest"
        place = f'-DHOME_OF_HELPER="{home}/home"'
        sources = [guest / "runjob.c", guest / "collect.c"]
        subprocess.run(["cc", "-std=gnu11", "-g", place, *sources, "-o", home / "runjob"], check=True)
        (home / "home").mkdir()
        (home / "ssh").write_text(f"#!/bin/sh\nexec {home}/runjob\n")
        (home / "ssh").chmod(0o755)
        yield home


@pytest.fixture
def connect(helper_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Channel]]:
    monkeypatch.setattr(channel, "SSH", str(helper_home / "ssh"))
    opened: list[Channel] = []

    def make(**options: int) -> Channel:
        opened.append(Channel("/dev/null", **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def run(
    link: Channel, *argv: bytes, stdin: bytes = b"", env: list[bytes] | None = None, cwd: bytes = b"/", **more: object
) -> tuple[tuple[int, int], bytes, bytes]:
    """Run a command over the channel; returns ((kind, code), stdout, stderr)."""
    command = Command(list(argv), [b"PATH=/usr/bin:/bin"] if env is None else env, cwd)
    for name, value in more.items():
        setattr(command, name, value)
    with tempfile.TemporaryFile() as given_, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given_.write(stdin)
        given_.seek(0)
        status = link.run(command, given_.fileno(), out.fileno(), err.fileno())
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS, max_size=6), st.lists(WORDS.filter(lambda raw: b"=" not in raw and raw), max_size=6), WORDS)
def test_any_bytes_arrive_in_arguments_environment_and_input(args: list[bytes], names: list[bytes], text: bytes) -> None:
    env = [name + b"=" + text for name in dict.fromkeys(names)]
    show = b'printf "%s\\0" "$@"; cat; cat /proc/self/environ >&2'
    status, out, err = run(CONNECT(), b"/bin/bash", b"-c", show, b"x", *args, stdin=text * 50, env=env)
    assert status == (0, 0)
    assert out == b"".join(arg + b"\0" for arg in args or [b""]) + text * 50
    got = set(err.split(b"\0"))
    assert all(one in got for one in env if b"=" in one and not one.startswith((b"_=", b"PWD=", b"SHLVL=", b"OLDPWD=")))


def test_200_kib_of_environment_arrive(connect: Callable[..., Channel]) -> None:
    env = [b"V%d=" % i + bytes([65 + i % 26]) * 2000 for i in range(100)]
    status, out, _ = run(connect(), b"/usr/bin/env", b"-0", env=env)
    assert (status, sorted(out.strip(b"\0").split(b"\0"))) == ((0, 0), sorted(env))


@pytest.mark.parametrize("code", [0, 1, 2, 3, 125, 126, 127, 128, 137, 254, 255])
def test_every_exit_code_comes_through(connect: Callable[..., Channel], code: int) -> None:
    assert run(connect(), b"/bin/sh", b"-c", b"exit %d" % code)[0] == (0, code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_a_death_by_signal_comes_through(connect: Callable[..., Channel], number: int) -> None:
    assert run(connect(), b"/bin/sh", b"-c", b"kill -%d $$" % number)[0] == (1, number)


def test_a_missing_command_is_127_and_a_closed_one_126(connect: Callable[..., Channel], tmp_path: Path) -> None:
    link = connect()
    status, _, err = run(link, b"nosuch-command")
    assert (status, b"cannot run nosuch-command in the guest: No such file" in err) == ((0, 127), True)
    closed = tmp_path / "closed"
    closed.write_text("x")
    assert run(link, os.fsencode(closed))[0] == (0, 126)


def test_a_script_runs_with_its_own_interpreter_or_sh(connect: Callable[..., Channel]) -> None:
    link = connect()
    script = (0, b"/spool/job1/slurm_script", b"#!/bin/bash\necho ${BASH_VERSION:+bash} $0 $1\n")
    status, out, _ = run(link, b"x", b"arg", script=script)
    assert status == (0, 0)
    assert out.startswith(b"bash ") and out.endswith(b"/slurm_script arg\n")
    assert run(link, b"x", b"arg", script=(0, b"plain", b"echo $1\n"))[1] == b"arg\n"
    status, _, err = run(link, b"x", script=(0, b"s", b"#!/no/such\n"))
    assert (status, b"names an interpreter that the guest has not" in err) == ((0, 127), True)


def test_streams_are_kept_apart_and_large_ones_pass(connect: Callable[..., Channel]) -> None:
    data = os.urandom(5_000_000)
    status, out, err = run(connect(), b"/bin/sh", b"-c", b"tee /dev/stderr", stdin=data)
    assert status == (0, 0)
    assert out == data
    assert err == data


def test_a_job_that_does_not_read_still_gets_signals(connect: Callable[..., Channel]) -> None:
    reader, writer = os.pipe()
    link = connect(signals=reader)
    threading.Timer(1.0, lambda: os.write(writer, bytes([signal.SIGTERM]))).start()
    began = time.monotonic()
    status, _, _ = run(link, b"/bin/sleep", b"60", stdin=b"x" * 3_000_000)
    assert (status, time.monotonic() - began < 10) == ((1, signal.SIGTERM), True)


def test_signals_reach_children_that_left_the_session(connect: Callable[..., Channel], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    link = connect(signals=reader)
    threading.Timer(1.0, lambda: os.write(writer, bytes([signal.SIGTERM]))).start()
    mark = os.fsencode(tmp_path / "mark")
    script = b"setsid sh -c 'trap \"echo got > %s; exit\" TERM; while :; do sleep 0.1; done' & wait" % mark
    script = b"trap 'sleep 1; exit 9' TERM; " + script
    status, _, _ = run(link, b"/bin/sh", b"-c", script)
    assert status == (0, 9)
    assert not alive(mark)
    assert (tmp_path / "mark").read_text() == "got\n"


def alive(text: bytes) -> bool:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if text in (entry / "cmdline").read_bytes() and (entry / "stat").read_text().rpartition(")")[2][1] not in "ZX":
                return True
        except OSError:
            continue
    return False


def test_stop_and_continue(connect: Callable[..., Channel], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    link = connect(signals=reader)
    file = tmp_path / "count"
    sizes: list[int] = []

    def act() -> None:
        time.sleep(1)
        os.write(writer, bytes([signal.SIGTSTP]))
        time.sleep(0.5)
        sizes.append(file.stat().st_size)
        time.sleep(0.7)
        sizes.append(file.stat().st_size)
        os.write(writer, bytes([signal.SIGCONT]))
        time.sleep(0.7)
        sizes.append(file.stat().st_size)
        os.write(writer, bytes([signal.SIGTERM]))

    acting = threading.Thread(target=act)
    acting.start()
    run(link, b"/bin/sh", b"-c", b"while :; do echo x >> %s; sleep 0.05; done" % os.fsencode(file))
    acting.join()
    assert 0 < sizes[0] == sizes[1] < sizes[2]


def test_nothing_lives_on_after_the_command(connect: Callable[..., Channel], tmp_path: Path) -> None:
    mark = b"sleep 1234567"
    link = connect()
    script = b"setsid sleep 1234567 & (setsid sleep 1234567 &) ; nohup sleep 1234567 > /dev/null 2>&1 & exit 4"
    status, _, _ = run(link, b"/bin/sh", b"-c", script)
    assert status == (0, 4)
    assert not alive(mark.replace(b" ", b"\0"))


def test_nothing_lives_on_after_the_host_went_away(connect: Callable[..., Channel]) -> None:
    link = connect()
    pid = os.fork()
    if pid == 0:
        run(link, b"/bin/sh", b"-c", b"setsid sleep 7654321 & sleep 7654321")
        os._exit(0)
    time.sleep(1)
    assert alive(b"sleep\x007654321")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    link.close()
    deadline = time.monotonic() + 10
    while alive(b"sleep\x007654321"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_terminal_is_one(connect: Callable[..., Channel]) -> None:
    status, out, _ = run(connect(), b"/bin/sh", b"-c", b"tty && stty size; exit 3", terminal=(33, 99))
    assert status == (0, 3)
    assert out.startswith(b"/dev/pts/")
    assert b"33 99" in out


def test_a_missing_directory_is_said_and_the_job_still_runs(connect: Callable[..., Channel]) -> None:
    status, out, err = run(connect(), b"/bin/pwd", cwd=b"/no/such", env=[b"HOME=/no/home"])
    assert (status, out) == ((0, 0), b"/tmp\n")
    assert b"cannot enter /no/such in the guest" in err


def test_a_lost_connection_is_an_error_with_what_ssh_said(helper_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = helper_home / "broken"
    broken.write_text("#!/bin/sh\necho Host key verification failed. >&2\nexit 255\n")
    broken.chmod(0o755)
    monkeypatch.setattr(channel, "SSH", str(broken))
    link = Channel("/dev/null")
    with pytest.raises(LostError, match="Host key verification failed"):
        run(link, b"true")
    link.send(b"Y")
    link.close()  # takes no notice of what is still queued


def test_a_hostile_guest_cannot_make_us_hold_a_gigabyte(helper_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = helper_home / "hostile"
    hostile.write_text("#!/bin/sh\nprintf 'O\\177\\377\\377\\377'; exec cat /dev/zero\n")
    hostile.chmod(0o755)
    monkeypatch.setattr(channel, "SSH", str(hostile))
    link = Channel("/dev/null")
    with pytest.raises(LostError, match="nonsense"):
        run(link, b"true")
    os.kill(link._pid, signal.SIGKILL)
    link.close()


@pytest.fixture(autouse=True)
def _connect(connect: Callable[..., Channel]) -> None:
    global CONNECT
    CONNECT = connect
