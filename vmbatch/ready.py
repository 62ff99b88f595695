"""Waiting for the guest: it pushes lines over its channel; nothing is polled but the deadline and the cancel mark.

Lines: `stage context|network|ssh`, `ready`, `error TEXT`. A guest is not trusted: what it says is bounded and only shown.
"""

import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from vmbatch.errors import GuestError
from vmbatch.model import Guest, printable
from vmbatch.pids import Identity, identify

STAGES = ("firmware", "kernel", "context", "network", "ssh")
_LIMIT = 64 * 1024
_CONSOLE_TAIL = 2000
_MEANING = {
    "firmware": "its firmware found nothing to boot, or its kernel says nothing on the first serial port",
    "kernel": "its kernel started, but nothing read the context disk",
    "context": "it read the context disk, but has no network",
    "network": "it has a network, but no ssh server answers",
    "ssh": "its ssh server answers, but it did not say that it is ready",
}


def wait(guest: Guest, channel: Path, qemu: Identity | None, check: Callable[[], None]) -> None:
    """Return when the guest says `ready`. `check` is called now and then, and may raise.

    Raises GuestError with the stage that was reached and the end of the console, when the guest says `error`, when
    QEMU ends, or at guest.boot_timeout_s.
    """
    deadline = time.monotonic() + guest.boot_timeout_s
    stage = ""
    with _connect(channel) as line:
        pending, total = b"", 0
        while time.monotonic() < deadline:
            check()
            readable, _, _ = select.select([line], [], [], 0.1)
            if qemu and identify(qemu.pid) != qemu:
                raise _failure(guest, stage, "ended by itself")
            if not readable:
                continue
            part = line.recv(4096)
            total += len(part)
            if not part or total > _LIMIT:
                raise _failure(guest, stage, "ended by itself" if not part else "talks without end")
            *lines, pending = (pending + part).split(b"\n")
            for text in (raw.decode("ascii", "replace").strip() for raw in lines):
                word, _, rest = text.partition(" ")
                if word == "ready":
                    return
                if word == "stage" and rest in STAGES:
                    stage = rest
                if word == "error":
                    raise _failure(guest, stage, f"reports: {printable(rest, 300)}")
    raise _failure(guest, stage, f"was not ready after {guest.boot_timeout_s} s")


def _connect(channel: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    handle = -1
    try:  # by way of the folder's descriptor: a socket's path has 107 bytes only
        handle = os.open(channel.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        connection.settimeout(10)
        connection.connect(f"/proc/self/fd/{handle}/{channel.name}")
    except OSError as error:
        connection.close()
        raise GuestError(f"the guest's channel {channel} does not answer: {error}") from error
    finally:
        if handle >= 0:
            os.close(handle)
    return connection


def console_tail(console: Path, size: int = _CONSOLE_TAIL) -> str:
    """Return the end of the console log, made printable."""
    try:
        with console.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return printable(file.read(size).decode("ascii", "replace").replace("\r", ""), size)
    except OSError:
        return ""


def _failure(guest: Guest, stage: str, what: str) -> GuestError:
    reached = stage
    if not reached:
        try:
            with guest.console.open("rb") as file:  # the user's own file, of any size
                reached = "kernel" if b"Linux version" in file.read(1 << 20) else "firmware"
        except OSError:
            reached = "firmware"
    return GuestError(
        f"the guest of image {guest.image} {what}; it got as far as: {reached} ({_MEANING[reached]})",
        f"vmbatch logs {guest.job_id} shows its console",
        console_tail(guest.console),
    )
