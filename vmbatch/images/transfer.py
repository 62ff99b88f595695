"""What every transfer of an image has to keep to, wherever it comes from: limits of time and size, and progress."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmbatch.errors import OfferError
from vmbatch.images.part import Part, Piece, length

STALL_BYTES = 1024
TICK_S = 0.25  # how often progress is told, and how late a limit of time may be noticed
_SAMPLE_S = 0.05

Progress = Callable[[int, int | None], None]  # bytes there, bytes in all (None: nobody knows)


class SourceError(OfferError):
    """An image cannot be had. `again`: another try may help."""

    def __init__(self, message: str, hint: str = "", *, again: bool = False) -> None:
        super().__init__(message, hint)
        self.again = again


class ContentError(SourceError):
    """What the source has is not what was asked for, so nothing of it is kept."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a transfer may take. In `stall_s` at least 1 KiB must come; `proxy` is an HTTP proxy's URL, for http(s) only."""

    connect_s: float
    stall_s: float
    total_s: float
    max_bytes: int
    proxy: str | None = None  # None: none
    ca_file: Path | None = None  # None: the system's certificates
    allowed: tuple[str, ...] | None = None  # where a redirect may lead to; None: anywhere


class Watch:
    """Raises SourceError as soon as a transfer leaves its limits; calls `progress`, which may raise to end it."""

    def __init__(self, limits: Limits, size: int | None, progress: Progress) -> None:
        self.limits, self.total = limits, size
        self._size, self._progress = size, progress
        self._deadline, self._told = time.monotonic() + limits.total_s, 0.0
        self._waited = 0.0
        self._samples = deque([(0.0, 0)])

    def announce(self, total: int | None, done: int) -> None:
        """Hear what the source says it has in all, when `done` bytes of that are there."""
        if total is not None:
            if self._size is not None and total != self._size:
                raise ContentError(f"it has {total} bytes, not {self._size}", "correct the size that the image must have")
            self._fits(total)
        self.total = self._size if total is None else total
        self._samples = deque([(self._waited, done)])

    def admit(self, done: int) -> None:
        """Hear that there will be `done` bytes; refuse them before they are written."""
        if self.total is not None and done > self.total:
            raise ContentError(f"more than its {self.total} bytes came")
        self._fits(done)

    def tick(self, done: int) -> None:
        """Look at the clock, and tell the progress from time to time."""
        now = time.monotonic()
        if now > self._deadline:
            raise SourceError(
                f"it took longer than {self.limits.total_s:g} s; {done} bytes had come", "see total_timeout_s in [fetch]"
            )
        if now - self._told >= TICK_S:
            self._told = now
            self._progress(done, self.total)

    def waited(self, seconds: float, done: int) -> None:
        """Hear how long the source let us wait. Time that we spend on writing and hashing is not the source's fault."""
        self._waited += seconds
        edge = self._waited - self.limits.stall_s
        if self._waited - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((self._waited, done))
        while len(self._samples) > 1 and self._samples[1][0] <= edge:
            self._samples.popleft()
        since, before = self._samples[0]
        if since <= edge and done - before < STALL_BYTES:
            raise SourceError(
                f"it stalled: fewer than {STALL_BYTES} bytes came within {self.limits.stall_s:g} s, after {before} bytes",
                "try again later, or see stall_timeout_s in [fetch]",
            )

    def pause(self, seconds: float, done: int) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.tick(done)
            time.sleep(min(TICK_S, left))

    def end(self, done: int) -> None:
        """Hear that this is all."""
        if self._size is not None and done != self._size:
            raise ContentError(f"it has {done} bytes, not {self._size}", "correct the size that the image must have")
        self._progress(done, done)

    def _fits(self, count: int) -> None:
        if count > (most := self.limits.max_bytes):
            raise ContentError(f"it has {count} bytes at least, and {most} are allowed", "see max_image_mib in vmbatch.toml")


def receive(read: Callable[[float], Piece | None], part: Part, watch: Watch) -> None:
    """Append to `part` what `read(timeout_s)` gives (None: nothing in that time) until it is b"", under watch."""
    with part.growing() as take:
        while True:
            began = time.monotonic()
            piece = read(TICK_S)
            waited = time.monotonic() - began
            if piece == b"":
                return
            if piece is not None:
                watch.admit(part.size + length(piece))
                take(piece)
            watch.waited(waited, part.size)
            watch.tick(part.size)
