"""vmbatch reap: stop guests whose job is gone."""

import argparse
import sys

from vmbatch.config import load
from vmbatch.reap import reap

NAME = "reap"
HELP = "stop guests whose job is gone, and put old journals away (a timer calls this)"
EXAMPLES = "vmbatch reap"


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def main(options: argparse.Namespace) -> int:
    """Returns 1 where something could not be removed."""
    stopped, failures = reap(load(options.config))
    for line in stopped:
        print(f"stopped {line}")
    for line in failures:
        print(f"vmbatch: {line}", file=sys.stderr)
    return 1 if failures else 0
