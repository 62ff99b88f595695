"""vmbatch config: the configuration in force, and what each key means."""

import argparse
from dataclasses import fields

from vmbatch.config import Config, load
from vmbatch.settings import CHOICES, SECTIONS, documented, toml

NAME = "config"
HELP = "show the configuration in force"
EXAMPLES = """\
vmbatch config
vmbatch config --explain"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--explain", action="store_true", help="with the meaning of every key")


def main(options: argparse.Namespace) -> int:
    config = load(options.config)
    print(f"# {config.file or 'no configuration file: all defaults'}")
    print(explained(config) if options.explain else "\n".join(_lines(config, {})))
    return 0


def explained(config: Config) -> str:
    """Return a vmbatch.toml that says what every key means, with the values in force."""
    return "\n".join(_lines(config, {f"{section}.{one.name}": one.metadata["help"] for section, one in documented()}))


def _lines(config: Config, help: dict[str, str]) -> list[str]:
    lines = []
    for section, kind in SECTIONS.items():
        lines.append(f"\n[{section}]")
        for one in fields(kind):
            name = f"{section}.{one.name}"
            if name in help:
                choices = f" ({', '.join(CHOICES[name])})" if name in CHOICES else ""
                lines.append(f"# {help[name]}{choices}")
            lines.append(f"{one.name} = {toml(getattr(getattr(config, section), one.name))}")
    return lines
