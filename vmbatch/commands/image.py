"""vmbatch image: the site's images and the store."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmbatch import catalogue, node
from vmbatch.config import Config, load
from vmbatch.errors import UserError
from vmbatch.images import build, evict, library
from vmbatch.images.acquire import Asker
from vmbatch.images.inspect import FORMATS
from vmbatch.images.progress import amount, reporter
from vmbatch.quantities import memory_mib, mib_text

NAME = "image"
HELP = "build, import, list, check and remove images"
EXAMPLES = """\
vmbatch image build tiny
vmbatch image build tiny --name tiny-python --package python3-minimal
vmbatch image import https://images.example.org/el9.qcow2 --checksum sha256:HEX --name el9
vmbatch image import old.vmdk --name old
vmbatch image list --store
vmbatch image show el9
vmbatch image verify
vmbatch image gc --dry-run"""


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser("build", help="make an image from Debian packages and register it")
    make.add_argument("recipe", choices=build.RECIPES, help="tiny: seconds; debian12: a minute or two")
    make.add_argument("--name", help="name in the catalogue (default: the recipe's)")
    make.add_argument("--package", action="append", default=[], help="further Debian package; may be repeated")
    make.add_argument("--kernel", choices=["cloud", "generic"], default="cloud", help="generic has drivers for old hardware")
    make.add_argument("--size", metavar="SIZE", help="size of its disk, such as 8G (default: 4G)")
    make.add_argument("-q", "--quiet", action="store_true", help="no progress")
    bring = actions.add_parser("import", help="put a file or a URL into the store, and into the catalogue")
    bring.add_argument("source", help="file, or http, https, ftp, ftps address")
    bring.add_argument("--name", help="name in the catalogue; without it the image is only in the store")
    bring.add_argument("--format", choices=FORMATS, help="what it must be (default: what its content says)")
    bring.add_argument("--checksum", metavar="FUNCTION:HEX", help="hash that it must have, such as sha256:...")
    bring.add_argument("-q", "--quiet", action="store_true", help="no progress")
    shown = actions.add_parser("list", help="list the images of the catalogue")
    shown.add_argument("--store", action="store_true", help="list what the store holds")
    one = actions.add_parser("show", help="show all that is known of an image")
    one.add_argument("image", help="name in the catalogue, or the beginning of a hash in the store")
    check = actions.add_parser("verify", help="hash images anew and compare")
    check.add_argument("images", nargs="*", help="names (default: all of the store and the catalogue)")
    away = actions.add_parser("remove", help="take an image out of the catalogue, and its file away")
    away.add_argument("images", nargs="+", help="names in the catalogue")
    clean = actions.add_parser("gc", help="remove what the limits of [store] leave no place for")
    clean.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    clean.add_argument("--unused", action="store_true", help="remove every image that no job uses and no entry names")


def main(options: argparse.Namespace) -> int:
    """Returns 0, or 1 where verify found a damaged image."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # on the way out things are removed
    action: Callable[[Config, argparse.Namespace], int] = _ACTIONS[options.action]
    return action(load(options.config), options)


def _build(config: Config, options: argparse.Namespace) -> int:
    began = time.monotonic()

    def say(text: str) -> None:
        if not options.quiet:
            print(f"[{time.monotonic() - began:5.1f} s] {text}", file=sys.stderr, flush=True)

    name = options.name or options.recipe
    try:
        size = memory_mib(options.size) if options.size else None
    except ValueError as error:
        raise UserError(f"--size {options.size}: {error}") from None
    file = build.build(
        config, options.recipe, name=name, extra=options.package, kernel=options.kernel, size_mib=size, say=say
    )
    say(f"done: image {name} is in the catalogue ({file})")
    return 0


def _import(config: Config, options: argparse.Namespace) -> int:
    with _asking(config, options) as asker:
        entry = library.bring(config, options.source, options.format, options.checksum, asker)
    if options.name:
        file = library.register(config, options.name, entry)
        print(f"image {options.name} is in the catalogue ({file})")
    print(f"sha512:{entry.sha512}")
    return 0


@contextmanager
def _asking(config: Config, options: argparse.Namespace) -> Iterator[Asker]:
    def say(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr, flush=True)

    person = node.named(config.fetch.user) if config.root else node.person(os.geteuid())
    with reporter(Path(options.source).name or "image", say) as progress:
        yield Asker(f"vmbatch image import ({os.getpid()})", person, say, _quiet if options.quiet else progress, _carry_on)


def _quiet(done: int, total: int | None) -> None:
    """No progress."""


def _carry_on() -> None:
    """Nobody but a signal ends an import."""


def _list(config: Config, options: argparse.Namespace) -> int:
    if not options.store:
        for image in catalogue.read(config).values():
            print(f"{image.name:20} {image.format:6} {mib_text(image.memory_mib):>9}  {image.description}")
        return 0
    for kept in reversed(evict.contents(config)):
        what = ", ".join(kept.sources) or "?"
        name, mark = kept.path.name[:12], "pinned" if kept.pinned else ""
        print(f"{name} {kept.path.suffix[1:]:6} {amount(kept.size):>9} {library.stamp(kept.used)} {mark:6} {what}")
    return 0


def _show(config: Config, options: argparse.Namespace) -> int:
    for word, value in library.facts(config, options.image):
        print(f"{word:16} {value}")
    return 0


def _verify(config: Config, options: argparse.Namespace) -> int:
    worst = 0
    for name, wrong in library.verify(config, options.images):
        print(f"{name}: {wrong or 'ok'}", flush=True)
        worst |= bool(wrong)
    return worst


def _remove(config: Config, options: argparse.Namespace) -> int:
    for name in options.images:
        for path in library.remove(config, name):
            print(f"removed {path}")
    return 0


def _gc(config: Config, options: argparse.Namespace) -> int:
    for kept, why in evict.gc(config, dry=options.dry_run, unused=options.unused):
        said = "would be removed" if options.dry_run else "removed"
        print(f"{kept.path.name[:16]}... {said} ({amount(kept.size)}): {why}")
    if not options.dry_run:
        evict.sweep(config)
    return 0


_ACTIONS = {
    "build": _build,
    "import": _import,
    "list": _list,
    "show": _show,
    "verify": _verify,
    "remove": _remove,
    "gc": _gc,
}
