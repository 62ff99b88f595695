"""How far a transfer is, for a person: a line that is redrawn on a terminal, else now and then a line of its own."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from vmbatch.model import printable

REDRAW_S = 0.1
SAY_S = 10.0


@contextmanager
def reporter(
    name: str,
    say: Callable[[str], None],
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int, int | None], None]]:
    """Give a function to be called with bytes done and bytes in all (None: not known), as often as one likes.

    `stream` is standard error where it is not given. On a terminal the line is drawn there, and ended when the context
    is left. Elsewhere `say` gets a line every ten seconds, and the last one.
    """
    place = stream or sys.stderr
    drawing = place.isatty()
    began, first, shown_at, last = clock(), -1, 0.0, ""

    def show(line: str) -> None:
        if drawing:
            _draw(place, line)
        else:
            say(line)

    def report(done: int, total: int | None) -> None:
        nonlocal first, shown_at, last, began
        now = clock()
        if first < 0:  # what is there already says nothing about the speed
            first, began = done, now
            shown_at = float("-inf") if drawing else now
        last = describe(printable(name, 60), done, total, done - first, now - began)
        if now - shown_at >= (REDRAW_S if drawing else SAY_S):
            shown_at = now
            show(last)

    try:
        yield report
        if last and not drawing:
            say(last)
    finally:
        if last and drawing:
            _draw(place, last)
            place.write("\n")
            place.flush()


def describe(name: str, done: int, total: int | None, moved: int, seconds: float) -> str:
    """Spell the state of a transfer that moved `moved` bytes in `seconds`."""
    rate = moved / seconds if seconds > 0 else 0.0
    words = [amount(done)]
    if total:
        words = [f"{done * 100 // total} %", amount(done), "of", amount(total)]
    if rate:
        words.append(f"{amount(int(rate))}/s")
        if total and done < total:
            words.append(f"{duration((total - done) / rate)} left")
    return f"{name}  {' '.join(words)}"


def amount(count: int) -> str:
    """Spell a number of bytes: `310 MiB`, `1.5 GiB`."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}" if unit == "GiB" else f"{count // size} {unit}"
    return f"{count} B"


def duration(seconds: float) -> str:
    """Spell a time: `5 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _draw(stream: TextIO, line: str) -> None:
    try:
        width = os.get_terminal_size(stream.fileno()).columns - 1
    except (OSError, ValueError):
        width = 79
    width = width if width > 0 else 79
    stream.write(f"\r{line[:width]:<{width}}")
    stream.flush()
