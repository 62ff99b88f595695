"""vmbatch template: list the domain templates, convert a domain file for Xen, print the schema of the tags."""

import argparse
import difflib
import sys
from pathlib import Path

from lxml import etree

from vmbatch import convert, tagschema, templates
from vmbatch.config import Config, load
from vmbatch.errors import SiteError, UserError

NAME = "template"
HELP = "list domain templates and convert domain files for Xen"
EXAMPLES = """\
vmbatch template list
vmbatch template convert cernvm3-xen.xml -o cernvm3.xml
vmbatch template convert -q cernvm3-xen.xml > cernvm3.xml
vmbatch template schema > vmbatch.rng"""


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="list the templates of the site and of the package, with their files")
    change = actions.add_parser("convert", help="turn a VmBatch domain file for Xen into one for KVM; changes are shown")
    change.add_argument("file", type=Path, metavar="FILE", help="libvirt domain XML, with or without vb tags")
    change.add_argument("-o", "--output", type=Path, metavar="OUT", help="new file (default: standard output)")
    actions.add_parser("schema", help="print the RELAX NG schema of the tags, for editors")
    change.add_argument("-q", "--quiet", action="store_true", help="show neither the changes nor notes")


def main(options: argparse.Namespace) -> int:
    if options.action == "convert":
        return _convert(options.file, options.output, options.quiet)
    if options.action == "schema":
        print(etree.tostring(tagschema.schema(), pretty_print=True, encoding="unicode"), end="")
        return 0
    config = load(options.config)
    for name in templates.names(config):
        print(f"{name:20} {_file(config, name)}")
    return 0


def _file(config: Config, name: str) -> Path:
    """The first that templates.read would find; it is not parsed, so that a broken one is listed too."""
    files = [folder / f"{name}.xml" for folder in (config.paths.templates, *templates.PACKAGED)]
    return next(file for file in files if file.exists())


def _convert(file: Path, output: Path | None, quiet: bool) -> int:
    try:
        old = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    if output and output.exists() and output.samefile(file):
        raise UserError(f"{output} is the file to convert", "name a new file with -o; the old one may still be needed")
    new, notes = convert.convert(old, file)
    if output is None:
        sys.stdout.write(new)
    else:
        try:
            output.write_bytes(new.encode())
        except OSError as error:
            raise SiteError(f"cannot write {output}: {error.strerror}") from None
    if not quiet:
        _show(old.decode(), new, str(file), notes)
    return 0


def _show(old: str, new: str, name: str, notes: list[str]) -> None:
    before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    for line in difflib.unified_diff(before, after, name, f"{name} for KVM"):
        print(line.rstrip("\r\n"), file=sys.stderr)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
