"""Other processes: the only place that starts a program, and the only one that kills by pid.

Programs get an argv list, a built environment, a deadline and no descriptor of ours. A pid is never kept alone: it is
kept with its start time, and verified through a pidfd before a signal is sent.
"""

import fcntl
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vmbatch.errors import SiteError
from vmbatch.model import Person, printable

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
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
) -> Completed:
    """Run a program to its end, in its own session, as `person` where given.

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
            user=other.uid if other else None,
            group=other.gid if other else None,
            extra_groups=[gid for _, gid in other.groups] if other else None,
        )
    except OSError as error:
        raise SiteError(f"cannot run {words[0]}: {error.strerror}", "install it, then run: vmbatch doctor") from error
    try:
        stdout, stderr = child.communicate(stdin, timeout=timeout_s)
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


def hear(argv: Sequence[str | Path], until: bytes, timeout_s: float, limit: int = 1 << 20) -> bytes:
    """Run a program until it has printed `until`, at most `timeout_s`, and kill it. Returns what it printed.

    Raises SiteError where it cannot be run.
    """
    try:
        child = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as error:
        raise SiteError(f"cannot run {argv[0]}: {error.strerror}") from error
    assert child.stdout is not None
    said, deadline = b"", time.monotonic() + timeout_s
    try:
        while until not in said and len(said) < limit:
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(child.stdout.fileno(), 4096) if ready else b""
            if not part:
                break
            said += part
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    return said


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
    pid = os.fork()
    if pid == 0:
        _child(person, function)
    descriptor = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([descriptor], [], [], timeout_s)
        if not ready:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            ended, _, _ = select.select([descriptor], [], [], 2)
            if not ended:  # it hangs in the kernel (a dead file server): leave it behind
                return None
        _, wait_status = os.waitpid(pid, 0)
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(wait_status) if ready else None


def _child(person: Person, function: Callable[[], None]) -> None:
    status = 1
    try:
        os.setsid()
        close_others()
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


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same pid. `start` is in clock ticks since boot."""

    pid: int
    start: int


def identify(pid: int) -> Identity | None:
    """Return the identity of a living process (a zombie is not one), None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else Identity(pid, int(fields[19]))


def kill(who: Identity, number: signal.Signals = signal.SIGKILL, wait_s: float = 2.0) -> bool:
    """Send a signal to exactly that process; after SIGKILL wait for its end. True: it is gone (or never was)."""
    try:
        descriptor = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return True
    try:
        if identify(who.pid) != who:
            return True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
        if number != signal.SIGKILL:
            return False
        select.select([descriptor], [], [], wait_s)
    finally:
        os.close(descriptor)
    return identify(who.pid) != who


def find(*words: str) -> list[Identity]:
    """Return the processes whose argument list holds all `words`, as whole arguments."""
    wanted = {word.encode() for word in words}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            if wanted <= set((entry / "cmdline").read_bytes().split(b"\0")):
                who = identify(int(entry.name))
                found += [who] if who else []
    return found
