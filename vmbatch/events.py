"""Steps of a job's life: a line in the job's log, its seconds, and a line in the journal, in one."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from vmbatch.failpoints import reach
from vmbatch.journal import Journal
from vmbatch.model import printable

Listener = Callable[[str, float | None], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Have `listener(step, seconds)` called when a step begins (None) and ends: for progress displays."""
    _listeners.append(listener)


def watched() -> bool:
    """Whether somebody watches on a terminal."""
    return bool(_listeners)


@contextlib.contextmanager
def step(journal: Journal, name: str) -> Iterator[None]:
    """Run one step. A stop that was asked for ends the start here, before anything more is made."""
    journal.check()
    reach(f"step:{name}")
    began = time.monotonic()
    _tell(name, None)
    try:
        yield
    except BaseException as error:
        log(journal, f"{name} failed after {time.monotonic() - began:.3f} s: {error or type(error).__name__}")
        raise
    seconds = time.monotonic() - began
    journal.note("step", name=name, seconds=round(seconds, 3))
    log(journal, f"{name} {seconds:.3f} s")
    _tell(name, seconds)


def _tell(name: str, seconds: float | None) -> None:
    for listener in _listeners:
        listener(name, seconds)


def say(journal: Journal, text: str) -> None:
    """Tell the job's log, and whoever watches, what goes on within a step."""
    log(journal, text)
    _tell(text, None)


def log(journal: Journal, text: str) -> None:
    """Write a line to the job's log, vmbatch.log beside the journal. A full disk does not stop the job."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    with contextlib.suppress(OSError):
        file = os.open(
            journal.directory / "vmbatch.log",
            # not blocking: the log's owner may hold a lease on it (fcntl(2))
            os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK,
            0o600,
        )
        try:
            os.write(file, f"{stamp} {printable(text, 20000)}\n".encode())
        finally:
            os.close(file)


def phases(journal: Journal) -> dict[str, float]:
    """Return the seconds of each finished step, in order."""
    return {str(line["name"]): float(line["seconds"]) for line in journal.lines() if line.get("do") == "step"}
