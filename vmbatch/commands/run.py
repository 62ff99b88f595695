"""vmbatch run: a command in a guest, without any scheduler."""

import argparse
import os
import signal
import sys
from pathlib import Path

from vmbatch import events, lifecycle
from vmbatch.config import load
from vmbatch.errors import GuestError
from vmbatch.request import FIELDS
from vmbatch.schedulers import local

NAME = "run"
HELP = "run a command in a guest, without a scheduler"
EXAMPLES = """\
vmbatch run --image tiny -- uname -a
vmbatch run --image tiny --in data -- ./analyse.sh data
vmbatch run --image debian12 --memory 2G -- python3 job.py"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, metavar="REQUEST", help="image, or a whole VM request")
    for field in FIELDS:
        action = "append" if field.many else "store"
        parser.add_argument(
            f"--{field.name}",
            dest=f"vm_{field.attribute}",
            action=action,
            metavar=field.name.upper(),
            help=field.help.replace("%", "%%"),
        )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress display")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="command and arguments, after --")


def main(options: argparse.Namespace) -> int:
    """Start a guest, run the command in it, stop it. Returns the command's exit code, or 125 where there is no guest."""
    config = load(options.config)
    job = local.job(config, _request(options), Path.cwd())
    progress = not options.quiet and sys.stderr.isatty()
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the guest is taken away on the way out
        signal.signal(number, lambda got, frame: sys.exit(128 + got))
    if progress:
        events.listen(_show)
    try:
        guest = lifecycle.start(config, job)
        if progress:
            _show("", None)
        return _shell(config, guest.run_dir, options.command)
    except GuestError as error:
        if error.console:
            sys.stderr.write(f"--- the end of the guest's console ---\n{error.console}\n")
        raise
    finally:
        _without_interrupts(lambda: lifecycle.stop(config, job.key))
        if progress:
            _show("", None)


def _request(options: argparse.Namespace) -> str:
    parts = [options.image]
    for field in FIELDS:
        given = getattr(options, f"vm_{field.attribute}")
        parts += [f"{field.name}={value}" for value in (given if field.many else [given]) if value] if given else []
    return ":".join(parts)


def _shell(config: object, run_dir: Path, command: list[str]) -> int:
    """Run the job's shell as a scheduler would: a process of its own. Ctrl-C is its business while it runs."""
    environment = {**os.environ, "VMBATCH_GUEST": str(run_dir)}
    argv = [sys.executable, "-I", "-m", "vmbatch.remoteshell", *command]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminate = signal.signal(signal.SIGTERM, lambda number, frame: os.kill(pid, number))
    try:
        pid = os.posix_spawn(sys.executable, argv, environment, setsigdef=[signal.SIGINT])
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, terminate)


def _without_interrupts(function: "object") -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        function()  # type: ignore[operator]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _show(step: str, seconds: float | None) -> None:
    """One line on the terminal that is rewritten: what is going on."""
    text = f"vmbatch: {step}" + (f" {seconds:.1f} s" if seconds is not None else " ...") if step else ""
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()
