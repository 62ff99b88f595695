"""Other processes: the only place that starts a program.

Programs get an argv list, a built environment, a deadline and no descriptor of ours.
"""

import fcntl
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vmbatch.errors import SiteError
from vmbatch.model import Person, printable

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BEAT_S = 0.5
ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Completed:
    """A program's end: its exit status (128+n for a signal) and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    stdin: bytes = b"",
    person: Person | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | Path = "/",
    check: bool = True,
    descriptors: Sequence[int] = (),
    beat: Callable[[], None] | None = None,
) -> Completed:
    """Run a program to its end, in its own session, as `person` where given. It gets `descriptors` under their numbers.

    `beat` is called twice a second meanwhile; what it raises ends the program.
    Raises SiteError when it is not installed, does not end in time (the whole session is killed) or, with `check`,
    fails: the sentence holds the program's own words.
    """
    words = [str(word) for word in argv]
    other = person if os.geteuid() == 0 else None
    try:
        child = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env={**ENVIRONMENT, **(env or {})},
            start_new_session=True,
            pass_fds=descriptors,
            user=other.uid if other else None,
            group=other.gid if other else None,
            extra_groups=[gid for _, gid in other.groups] if other else None,
        )
    except OSError as error:
        raise SiteError(f"cannot run {words[0]}: {error.strerror}", "install it, then run: vmbatch doctor") from error
    try:
        stdout, stderr = _output(child, stdin, timeout_s, beat)
    except subprocess.TimeoutExpired:
        raise SiteError(f"{words[0]} did not end within {timeout_s:g} s") from None
    finally:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    status = child.returncode if child.returncode >= 0 else 128 - child.returncode
    if check and status:
        words_said = printable(stderr.decode(errors="replace").strip() or stdout.decode(errors="replace").strip())
        raise SiteError(f"{' '.join(words[:2])} failed with {status}: {words_said}")
    return Completed(status, stdout, stderr)


def _output(
    child: "subprocess.Popen[bytes]", stdin: bytes, timeout_s: float, beat: Callable[[], None] | None
) -> tuple[bytes, bytes]:
    deadline = time.monotonic() + timeout_s
    while beat is not None and time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            return child.communicate(stdin, timeout=_BEAT_S)
        beat()
    return child.communicate(stdin, timeout=max(0.0, deadline - time.monotonic()))


def hear(argv: Sequence[str | Path], until: bytes, timeout_s: float, limit: int = 1 << 20) -> bytes:
    """Run a program until it has printed `until`, at most `timeout_s`, and kill it. Returns what it printed.

    Raises SiteError where it cannot be run.
    """
    child = _talker(argv, subprocess.DEVNULL)
    try:
        return _listen(child, until, timeout_s, limit)
    finally:
        _end_talker(child)


@contextmanager
def serving(argv: Sequence[str | Path], *, name: str, until: bytes, timeout_s: float) -> Iterator[int]:
    """Keep a program running for a with block, which begins once it has printed `until`. Yields its pid.

    It is ended by SIGTERM; after `timeout_s` in all it is killed, whatever the block does: that may hang on its server.
    Raises SiteError, with `name` and its own words, where it cannot be run, does not print `until` or does not end with 0.
    """
    child = _talker(argv, subprocess.PIPE)
    killer = threading.Timer(timeout_s, _kill_session, [child])
    killer.start()
    try:
        said = _listen(child, until, timeout_s, 1 << 20)
        if until in said:
            yield child.pid
            os.kill(child.pid, signal.SIGTERM)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its pid stays its own, and so does its session
            _kill_session(child)
            said, _ = child.communicate()
            if child.returncode == 0:
                return
        raise SiteError(f"{name} failed: {printable(said.decode(errors='replace').strip()) or 'it said nothing'}")
    finally:
        _end_talker(child)
        killer.cancel()


def _talker(argv: Sequence[str | Path], stdin: int) -> subprocess.Popen[bytes]:
    out, err = subprocess.PIPE, subprocess.STDOUT
    try:
        return subprocess.Popen(
            [str(word) for word in argv], stdin=stdin, stdout=out, stderr=err, env=ENVIRONMENT, start_new_session=True
        )
    except OSError as error:
        raise SiteError(f"cannot run {argv[0]}: {error.strerror}") from error


def _listen(child: subprocess.Popen[bytes], until: bytes, timeout_s: float, limit: int) -> bytes:
    assert child.stdout is not None
    said, deadline = b"", time.monotonic() + timeout_s
    while until not in said and len(said) < limit:
        ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(child.stdout.fileno(), 4096) if ready else b""
        if not part:
            break
        said += part
    return said


def _kill_session(child: subprocess.Popen[bytes]) -> None:
    if child.returncode is None:  # not waited for, so the pid is still its own
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _end_talker(child: subprocess.Popen[bytes]) -> None:
    _kill_session(child)
    child.wait()
    for stream in filter(None, (child.stdin, child.stdout)):
        stream.close()


def become(person: Person) -> None:
    """Give up root for good: groups, gid, uid; then make sure of it. Does nothing where we are that person already."""
    if os.geteuid() == person.uid and person.uid != 0:
        return
    os.setgroups([gid for _, gid in person.groups])
    os.setresgid(person.gid, person.gid, person.gid)
    os.setresuid(person.uid, person.uid, person.uid)
    if os.getresuid() != (person.uid,) * 3 or os.getresgid() != (person.gid,) * 3:
        raise SiteError(f"could not become user {person.name}")


def close_others(*keep: int) -> None:
    """Close every descriptor above 2 but `keep`: a child must not hold what its parent's end should free."""
    edge = 3
    for descriptor in sorted({fd for fd in keep if fd > 2}):
        os.closerange(edge, descriptor)
        edge = descriptor + 1
    os.closerange(edge, os.sysconf("SC_OPEN_MAX"))


def call_as(person: Person, function: Callable[[], None], timeout_s: float) -> int | None:
    """Run a function of ours in a child with the person's ids. Returns its exit status; None: killed at the deadline.

    The child shares nothing with us but the standard streams. An exception is its status 1, printed to stderr.
    """
    return end_child(fork_as(person, function), timeout_s)


def fork_as(person: Person, function: Callable[[], None], pipes: tuple[int, ...] = ()) -> int:
    """Start a child of ours that runs the function with the person's ids. Returns its pid, for end_child.

    Where `pipes` are given, they are all that the child keeps of ours: its standard streams are /dev/null.
    """
    pid = os.fork()
    if pid == 0:
        _child(person, function, pipes)
    return pid


def end_child(pid: int, timeout_s: float) -> int | None:
    """Wait for a child of ours; kill its session at the deadline. Returns its exit status; None: it was killed."""
    descriptor = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([descriptor], [], [], timeout_s)
        if not ready:
            for kill_it in (os.killpg, os.kill):  # it may not have made its session yet
                with suppress(ProcessLookupError):
                    kill_it(pid, signal.SIGKILL)
            ended, _, _ = select.select([descriptor], [], [], 2)
            if not ended:  # it hangs in the kernel (a dead file server): leave it behind
                return None
        _, wait_status = os.waitpid(pid, 0)
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(wait_status) if ready else None


def _child(person: Person, function: Callable[[], None], pipes: tuple[int, ...]) -> None:
    status = 1
    try:
        os.setsid()
        if pipes:
            null = os.open("/dev/null", os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
        close_others(*pipes)
        become(person)
        os.umask(0o077)
        function()
        status = 0
    except BaseException as error:  # the child ends here whatever happened; its parent reads the status
        with suppress(OSError):
            os.write(2, f"vmbatch: {error}\n".encode(errors="replace"))
    finally:
        os._exit(status)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the one lock of a folder, for a short change in it. The folder is made where it is missing."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
