"""Processes that are not our children: the only place that kills by pid.

A pid is never kept alone: it is kept with its start time, and verified through a pidfd before a signal is sent.
"""

import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


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


def ended(who: Identity, wait_s: float) -> bool:
    """Wait for a process to end by itself. False: it has not."""
    try:
        descriptor = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return True
    try:
        if identify(who.pid) == who:
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
