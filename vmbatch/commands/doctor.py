"""vmbatch doctor: is this node fit to run guests, and if not, what mends it."""

import argparse

from vmbatch.config import load
from vmbatch.diagnosis import FAILURE, OK, examine

NAME = "doctor"
HELP = "look whether this node is fit to run guests, and say what mends it"
EXAMPLES = "vmbatch doctor"


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def main(options: argparse.Namespace) -> int:
    """Returns 0, or 3 where anything fails."""
    failed = False
    for finding in examine(load(options.config)):
        failed |= finding.level == FAILURE
        print(f"{finding.level:8} {finding.what}: {finding.text}")
        if finding.mend and finding.level != OK:
            print(f"         mend: {finding.mend}")
    return 3 if failed else 0
