"""Frames over ssh to guest/runjob, which runs commands in the guest. See the head of guest/runjob.c for the protocol.

Imports what is quick to import: the job's shell is built on this, and its start-up is felt by every task.
"""

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing machinery would take longer to import than all the rest
    from collections.abc import Callable

WINDOW = 256 * 1024  # standard input under way; the guest's helper counts the same
CHUNK = 32 * 1024
SSH = "/usr/bin/ssh"
HELPER = "/var/lib/vmbatch/runjob"
# Signal numbers of Linux on x86-64 (the module that names them takes long to import): HUP INT QUIT USR1 USR2 TERM TSTP
_NOT_FOR_SSH = (1, 2, 3, 10, 12, 15, 20)


class LostError(Exception):
    """The connection ended before the command did. The text is what ssh said."""


class Command:
    """A command for the guest. Bytes all over: arguments and environment arrive unchanged."""

    def __init__(self, argv: list[bytes], environment: list[bytes], cwd: bytes, umask: int = 0o022) -> None:
        self.argv = argv
        self.environment = environment
        self.cwd = cwd
        self.umask = umask
        self.script: tuple[int, bytes, bytes] | None = None  # index of the argument, name, text
        self.terminal: tuple[int, int] | None = None  # rows, columns

    def frames(self) -> bytes:
        parts = [
            frame(b"E", b"".join(word + b"\0" for word in self.environment)),
            frame(b"A", b"".join(word + b"\0" for word in self.argv)),
            frame(b"D", self.cwd + b"\0"),
            frame(b"U", b"%o" % self.umask),
        ]
        if self.script:
            index, name, text = self.script
            parts.append(frame(b"S", bytes([index]) + name + b"\0" + text))
        if self.terminal:
            parts.append(frame(b"T", size(*self.terminal)))
        return b"".join(parts) + frame(b"G")


def frame(kind: bytes, data: bytes = b"") -> bytes:
    return kind + len(data).to_bytes(4, "big") + data


def size(rows: int, columns: int) -> bytes:
    return rows.to_bytes(2, "big") + columns.to_bytes(2, "big")


class Channel:
    """One ssh connection to the helper. `signals` is a descriptor that yields signal numbers, one byte each."""

    def __init__(
        self, ssh_config: str, options: tuple[str, ...] = (), signals: int = -1, qemu: int = -1, alone: bool = True
    ) -> None:
        self.alone = alone  # False: ssh stays in our process group, and does not outlive close()
        self.signals = signals
        self.qemu = qemu  # a pidfd: readable once QEMU has ended
        self.guest_ended = False
        self.on_signal = self._pass_on
        self.on_marked: Callable[[], None] = lambda: None  # the job's start is marked in the guest
        self._to_guest = bytearray()
        self._from_guest = bytearray()
        self._complaints = bytearray()
        self._pid, self._in, self._out, self._err = _spawn(ssh_config, options, alone)

    def _pass_on(self, number: int) -> None:
        self.send(b"K", bytes([number]))

    def send(self, kind: bytes, data: bytes = b"") -> None:
        self._to_guest += frame(kind, data)

    def run(self, command: Command, stdin: int, stdout: int, stderr: int) -> tuple[int, int]:
        """Run one command, streaming. Returns (0, status) or (1, signal). Raises LostError."""
        self._to_guest += command.frames()
        sinks = {b"O": _Sink(stdout), b"R": _Sink(stderr), b"!": _Sink(stderr)}
        return self._pump(stdin, sinks, b"X")

    def collect(self, directory: bytes, archive: "Callable[[], int]", stderr: int) -> bool:
        """Write a tar stream of what changed below `directory` to the descriptor that `archive()` returns.

        It is asked for only when something changed. False: something is missing.
        """
        self.send(b"Q", directory + b"\0")
        sinks = {b"F": _Sink(-1, archive), b"!": _Sink(stderr)}
        return self._pump(None, sinks, b"Z")[0] == 0

    def close(self) -> None:
        """End the connection; the helper ends whatever is left of the job."""
        if self._pid:
            self._flush()
            for descriptor in (self._in, self._out, self._err):
                os.close(descriptor)
            self._end_ssh()
            self._pid = 0

    def _end_ssh(self) -> None:
        """ssh ends by itself once the helper has; nobody waits for it. One that waits for a guest that is gone is killed."""
        now = self.guest_ended or not self.alone
        if now:
            os.kill(self._pid, 9)
        os.waitpid(self._pid, 0 if now else os.WNOHANG)

    def _flush(self) -> None:
        """Send what is queued (a confirmation); give up when the guest does not take it."""
        for _ in range(20):
            if not self._to_guest:
                return
            select.select([], [self._in], [], 0.1)
            try:
                self.push()
            except LostError:  # said before, or of no matter at the end
                return

    # --- the loop ---

    def _pump(self, stdin: int | None, sinks: "dict[bytes, _Sink]", last: bytes) -> tuple[int, int]:
        credit, end = WINDOW, b""
        while True:
            end = end or self._take(sinks, last)
            if end and not any(sink.waiting for sink in sinks.values()):
                return (end[0], end[1] if len(end) > 1 else 0)
            reading = credit > 0 and stdin is not None and len(self._to_guest) < WINDOW and not end
            events = self._poll(stdin if reading and stdin is not None else -1, sinks, reading_ssh=not end)
            if reading and stdin is not None and events.get(stdin):
                data = _read(stdin, min(credit, CHUNK))
                self.send(b"I" if data else b"C", data)
                credit -= len(data)
                stdin = stdin if data else None
            credit += sinks.pop(b"taken", _Sink(-1)).count
            for sink in sinks.values():
                sink.drain(events)
            self._handle(events)

    def _poll(self, stdin: int, sinks: "dict[bytes, _Sink]", reading_ssh: bool) -> dict[int, int]:
        poll = select.poll()
        blocked = any(len(sink.waiting) > WINDOW for sink in sinks.values())
        if reading_ssh and not blocked:
            poll.register(self._out, select.POLLIN)
        poll.register(self._err, select.POLLIN)
        for descriptor, wanted in ((stdin, select.POLLIN), (self.signals, select.POLLIN), (self.qemu, select.POLLIN)):
            if descriptor >= 0:
                poll.register(descriptor, wanted)
        if self._to_guest:
            poll.register(self._in, select.POLLOUT)
        for sink in sinks.values():
            if sink.waiting:
                poll.register(sink.descriptor, select.POLLOUT)
        return dict(poll.poll())

    def _handle(self, events: dict[int, int]) -> None:
        if self.qemu >= 0 and events.get(self.qemu):
            self.guest_ended = True
            raise LostError(self._said())
        if events.get(self.signals):
            for number in os.read(self.signals, 64):
                self.on_signal(number)
        if events.get(self._in):
            self.push()
        if events.get(self._err):
            self._complaints += _read(self._err, CHUNK)[: 64 * 1024 - len(self._complaints)]
        if events.get(self._out):
            try:
                data = os.read(self._out, 2 * CHUNK)
            except BlockingIOError:
                return
            if not data:
                raise LostError(self._said())
            self._from_guest += data

    def _said(self) -> str:
        rest = _read(self._err, CHUNK) if select.select([self._err], [], [], 0.2)[0] else b""
        return bytes(self._complaints + rest).decode(errors="replace").strip()

    def push(self) -> None:
        try:
            sent = os.write(self._in, self._to_guest[: 2 * CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:
            raise LostError(self._said()) from None
        del self._to_guest[:sent]

    def _take(self, sinks: "dict[bytes, _Sink]", last: bytes) -> bytes:
        """Hand whole frames on. Returns the data of the last one of this command, empty where it has not come."""
        while len(self._from_guest) >= 5:
            length = int.from_bytes(self._from_guest[1:5], "big")
            if length > 1 << 20:
                raise LostError("the guest sends nonsense")
            if len(self._from_guest) < 5 + length:
                break
            kind, data = bytes(self._from_guest[:1]), bytes(self._from_guest[5 : 5 + length])
            del self._from_guest[: 5 + length]
            if kind == last:
                return data or b"\1"
            if kind == b"a":
                sinks.setdefault(b"taken", _Sink(-1)).count += int.from_bytes(data[:4], "big")
            elif kind == b"m":
                self.on_marked()
            elif kind == b"!" and b"!" in sinks:
                sinks[b"!"].add(b"vmbatch: " + bytes(c for c in data if 32 <= c < 127) + b"\n")
            elif kind in sinks:
                sinks[kind].add(data)
        return b""


class _Sink:
    """A descriptor that we write to without ever blocking in the write. Closed at the other end: swallow."""

    def __init__(self, descriptor: int, opener: "Callable[[], int] | None" = None) -> None:
        self.descriptor = descriptor
        self.opener = opener  # gives the descriptor when there is something to write
        self.waiting = bytearray()
        self.count = 0
        regular = descriptor >= 0 and os.fstat(descriptor).st_mode & 0o170000 == 0o100000
        self.atomic = 1 << 20 if regular else select.PIPE_BUF  # what a write takes whole once poll said so

    def add(self, data: bytes) -> None:
        if self.opener:
            self.descriptor, self.opener = self.opener(), None
        if self.descriptor >= 0:
            self.waiting += data

    def drain(self, events: dict[int, int]) -> None:
        if not self.waiting or not events.get(self.descriptor):
            return
        try:
            sent = os.write(self.descriptor, self.waiting[: self.atomic])
            del self.waiting[:sent]
        except BlockingIOError:
            return
        except OSError:
            self.waiting.clear()
            self.descriptor = -1


def _read(descriptor: int, count: int) -> bytes:
    try:
        return os.read(descriptor, count)
    except BlockingIOError:
        return b""
    except OSError:
        return b""


def _spawn(ssh_config: str, options: tuple[str, ...], alone: bool) -> tuple[int, int, int, int]:
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()
    ours_err, theirs_err = os.pipe()
    argv = [SSH, "-F", ssh_config, "-T", *options, "guest", "exec", HELPER]
    moves = [
        (os.POSIX_SPAWN_DUP2, theirs_in, 0),
        (os.POSIX_SPAWN_DUP2, theirs_out, 1),
        (os.POSIX_SPAWN_DUP2, theirs_err, 2),
    ]
    # Signals are ours to pass on, not ssh's to die of. Batch systems send them to every process of a job, a terminal to a
    # process group; blocked ones stay blocked in ssh, while ignored ones would be handled again by a shared connection.
    environment = {"PATH": "/usr/bin:/bin"}
    group = 0 if alone else os.getpgrp()
    pid = os.posix_spawn(SSH, argv, environment, file_actions=moves, setpgroup=group, setsigmask=_NOT_FOR_SSH)
    for descriptor in (theirs_in, theirs_out, theirs_err):
        os.close(descriptor)
    for descriptor in (ours_in, ours_out, ours_err):
        os.set_blocking(descriptor, False)
    return pid, ours_in, ours_out, ours_err
