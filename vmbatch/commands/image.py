"""vmbatch image: build images, list the catalogue."""

import argparse
import signal
import sys
import time

from vmbatch import catalogue
from vmbatch.config import load
from vmbatch.images import build
from vmbatch.quantities import mib_text

NAME = "image"
HELP = "build images and list the catalogue"
EXAMPLES = """\
vmbatch image build tiny
vmbatch image build tiny --name tiny-python --package python3-minimal
vmbatch image build debian12
vmbatch image list"""


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser("build", help="make an image from Debian packages and register it")
    make.add_argument("recipe", choices=build.RECIPES, help="tiny: seconds; debian12: a minute or two")
    make.add_argument("--name", help="name in the catalogue (default: the recipe's)")
    make.add_argument("--package", action="append", default=[], help="further Debian package; may be repeated")
    make.add_argument("--kernel", choices=["cloud", "generic"], default="cloud", help="generic has drivers for old hardware")
    make.add_argument("-q", "--quiet", action="store_true", help="no progress")
    actions.add_parser("list", help="list the images of the catalogue")


def main(options: argparse.Namespace) -> int:
    config = load(options.config)
    if options.action == "list":
        for image in catalogue.read(config).values():
            print(f"{image.name:20} {image.format:6} {mib_text(image.memory_mib):>9}  {image.description}")
        return 0
    began = time.monotonic()

    def say(text: str) -> None:
        if not options.quiet:
            print(f"[{time.monotonic() - began:5.1f} s] {text}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # on the way out the build is removed
    name = options.name or options.recipe
    file = build.build(config, options.recipe, name=name, extra=options.package, kernel=options.kernel, say=say)
    say(f"done: image {name} is in the catalogue ({file})")
    return 0
