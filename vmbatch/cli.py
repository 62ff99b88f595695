"""vmbatch: the command. Each subcommand is a file in vmbatch/commands, imported when it is used."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from vmbatch import __version__
from vmbatch.errors import GuestError, OfferError, SiteError, UserError, VMBatchError

COMMANDS = (
    "run",
    "check",
    "status",
    "shell",
    "logs",
    "console",
    "image",
    "template",
    "doctor",
    "reap",
    "config",
    "install",
    "completion",
)


def parser(names: tuple[str, ...] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser, with the subcommands of these names."""
    top = argparse.ArgumentParser(prog="vmbatch", description="Run batch jobs inside virtual machines.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"vmbatch {__version__}")
    top.add_argument("--config", type=Path, metavar="FILE", help="configuration instead of the default one")
    subs = top.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    for name in names:
        module = import_module(f"vmbatch.commands.{name}")
        sub = subs.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            epilog="examples:\n" + "".join(f"  {line}\n" for line in module.EXAMPLES.splitlines()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.arguments(sub)
    return top


def main(argv: list[str] | None = None) -> int:
    """Returns 0 done, 1 refused or failed, 2 usage, 3 this node cannot run VMs; `run` returns its command's code."""
    words = sys.argv[1:] if argv is None else argv
    named = next((word for word in words if word in COMMANDS), None)
    options = parser((named,) if named else COMMANDS).parse_args(words)
    try:
        return int(import_module(f"vmbatch.commands.{options.subcommand}").main(options))
    except (UserError, GuestError, SiteError, VMBatchError) as error:
        print(f"vmbatch: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  try: {error.hint}", file=sys.stderr)
        return 125 if options.subcommand == "run" else _code(error)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"vmbatch: {place}{error.strerror or error}", file=sys.stderr)
        print("  try: the same as root, or with --config and a configuration of your own", file=sys.stderr)
        return 125 if options.subcommand == "run" else 1
    except KeyboardInterrupt:
        return 130


def _code(error: VMBatchError) -> int:
    return 3 if isinstance(error, SiteError) and not isinstance(error, OfferError) else 1


if __name__ == "__main__":
    sys.exit(main())
