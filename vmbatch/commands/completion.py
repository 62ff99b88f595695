"""vmbatch completion: completion for bash, made from the command line's own tables."""

import argparse

from vmbatch.manual import bash_completion

NAME = "completion"
HELP = "print completion for bash"
EXAMPLES = "vmbatch completion > /etc/bash_completion.d/vmbatch"


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def main(options: argparse.Namespace) -> int:
    print(bash_completion(), end="")
    return 0
