"""Progress is one line that is redrawn on a terminal, and few lines elsewhere."""

import fcntl
import io
import os
import select
import struct
import termios
from collections.abc import Iterator

import pytest

from vmbatch.images.progress import amount, duration, reporter

MIB = 1 << 20


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal() -> Iterator[tuple[int, io.TextIOWrapper]]:
    """A terminal 80 columns wide: what it shows is read from the first, and written to the second."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(slave, "w") as stream:
        yield master, stream
    os.close(master)


def shown(master: int, until: str) -> str:
    """Return what the terminal shows up to `until`: it comes in parts."""
    text = ""
    while until not in text:
        assert select.select([master], [], [], 10)[0], f"the terminal shows {text!r} only"
        text += os.read(master, 10000).decode()
    return text


def test_a_terminal_shows_one_line_that_ends_with_a_newline(terminal: tuple[int, io.TextIOWrapper]) -> None:
    master, stream = terminal
    clock, said = Clock(), []
    with reporter("debian12", said.append, stream, clock) as report:
        for second in range(6):
            clock.now = 1000.0 + second
            report(second * 100 * MIB, 1000 * MIB)
    drawn = shown(master, "\n")
    assert drawn.endswith("\r\n") and drawn.count("\n") == 1
    lines = [line.rstrip() for line in drawn.split("\r") if line.strip()]
    assert lines[0] == "debian12  0 % 0 B of 1000 MiB"
    assert lines[-1] == "debian12  50 % 500 MiB of 1000 MiB 100 MiB/s 5 s left"
    assert said == []


def test_a_terminal_is_redrawn_ten_times_a_second_and_its_width_is_kept(terminal: tuple[int, io.TextIOWrapper]) -> None:
    master, stream = terminal
    clock = Clock()
    with reporter("n" * 200, print, stream, clock) as report:
        for step in range(1001):
            clock.now = 1000.0 + step / 1000
            report(step * MIB, 123456 * MIB)
    drawn = shown(master, "\n").removesuffix("\r\n")
    assert 11 <= drawn.count("\r") <= 12  # one more at the end
    assert {len(line) for line in drawn.split("\r")[1:]} == {79}


def test_the_line_is_ended_after_a_failure_too(terminal: tuple[int, io.TextIOWrapper]) -> None:
    master, stream = terminal
    with pytest.raises(ValueError, match="enough"), reporter("x", print, stream) as report:
        report(1, 2)
        raise ValueError("enough")
    assert shown(master, "\n").endswith("\r\n")


def test_elsewhere_there_is_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    clock, said = Clock(), []
    with reporter("tiny", said.append, io.StringIO(), clock) as report:
        for second in range(26):
            clock.now = 1000.0 + second
            report(second * 10 * MIB, 250 * MIB)
    assert said == [
        "tiny  40 % 100 MiB of 250 MiB 10 MiB/s 15 s left",
        "tiny  80 % 200 MiB of 250 MiB 10 MiB/s 5 s left",
        "tiny  100 % 250 MiB of 250 MiB 10 MiB/s",
    ]


def test_what_was_there_already_says_nothing_about_the_speed_and_a_total_may_be_unknown() -> None:
    clock, said = Clock(), []
    with reporter("bad\x1b[2Jname", said.append, io.StringIO(), clock) as report:
        report(1000 * MIB, None)
        clock.now += 4
        report(1020 * MIB, None)
    assert said == ["bad?[2Jname  1020 MiB 5 MiB/s"]
    with reporter("nothing", said.append, io.StringIO()):
        pass
    assert len(said) == 1


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (4096, "4 KiB"), (310 << 20, "310 MiB"), (3 << 29, "1.5 GiB")]
)
def test_amounts(count: int, text: str) -> None:
    assert amount(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "5 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
