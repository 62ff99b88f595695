"""vmbatch shell: an interactive shell in a job's guest, beside the job."""

import argparse
import os
import sys

from vmbatch import elsewhere
from vmbatch.config import load

NAME = "shell"
HELP = "open a shell in a job's guest, or run a command in it"
EXAMPLES = """\
vmbatch shell 4711
vmbatch shell 4711 -- ps aux"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="job id")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="command and arguments, after --")


def main(options: argparse.Namespace) -> int:
    """Becomes the job's shell, so the exit code is the command's."""
    folder = elsewhere.here(load(options.config), options.job)
    if folder is None:
        command = options.command or [os.environ.get("SHELL", "/bin/sh"), "-l"]
        elsewhere.overlap(options.job, *command, terminal=sys.stdin.isatty())
    environment = {**os.environ, "VMBATCH_GUEST": str(folder)}
    os.execve(sys.executable, [sys.executable, "-I", "-m", "vmbatch.remoteshell", *options.command], environment)
