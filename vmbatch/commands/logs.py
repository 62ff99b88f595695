"""vmbatch logs: what vmbatch did for a job, and the console of its guest."""

import argparse
import os

from vmbatch import elsewhere, rundir
from vmbatch.config import load
from vmbatch.errors import UserError
from vmbatch.remoteshell import show_log

NAME = "logs"
HELP = "show the log of a job's guest, or its console"
EXAMPLES = """\
vmbatch logs 4711
vmbatch logs 4711 --console"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="job id; ended jobs too on the node where they ran")
    parser.add_argument("--console", action="store_true", help="the guest's console instead of vmbatch's own log")


def main(options: argparse.Namespace) -> int:
    config = load(options.config)
    ended = sorted(config.paths.state.glob(f"archive/*-{options.job}/*/vmbatch.log"), key=lambda file: file.stat().st_mtime)
    try:
        folder = elsewhere.here(config, options.job)
    except UserError:
        if not ended:
            raise
        return show_log({"log": str(ended[-1].parent)}, options.console)
    if folder is not None:
        return show_log(rundir.read_state(folder), options.console)
    if ended and os.access(ended[-1], os.R_OK):
        return show_log({"log": str(ended[-1].parent)}, options.console)
    elsewhere.overlap(options.job, "vmbatch", "logs", *(["--console"] if options.console else []))
    return 1
