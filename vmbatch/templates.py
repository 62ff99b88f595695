"""domain-templates/*.xml -> Template: real libvirt domain XML, extended with vb tags.

The table in tags.py is what it is checked against: every message names file, line, tag, the value and what is allowed.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from lxml import etree

from vmbatch import machine, tagschema
from vmbatch.config import Config, check_trusted
from vmbatch.errors import SiteError, nearest
from vmbatch.hashes import read_check
from vmbatch.machine import Machine
from vmbatch.tagforms import Tag
from vmbatch.tags import TAGS

PACKAGED = (Path(__file__).parent / "data" / "templates", Path(__file__).parent.parent / "domain-templates")


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. `root` is never changed: domain.build works on a copy."""

    name: str
    file: Path
    root: etree._Element
    machine: Machine

    def text(self) -> str:
        return etree.tostring(self.root, encoding="unicode")


def names(config: Config) -> list[str]:
    """Return the templates of the site and of the package."""
    found = {path.stem for folder in (config.paths.templates, *PACKAGED) for path in folder.glob("*.xml")}
    return sorted(found)


def read(config: Config, name: str) -> Template:
    """Return a template by name, the site's own before the packaged one. Raises SiteError."""
    for folder in (config.paths.templates, *PACKAGED):
        file = folder / f"{name}.xml"
        if name in names(config) and file.exists():
            if config.root:
                check_trusted(file)
            return parse(name, file, file.read_bytes())
    raise SiteError(f"there is no domain template '{name}'", f"the nearest are: {nearest(name, names(config))}")


def parse(name: str, file: Path, xml: bytes) -> Template:
    """Parse and check one template. Raises SiteError with file and line."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        raise SiteError(f"{file}:{error.lineno}: not well-formed XML: {error.msg}") from None
    if root.getroottree().docinfo.internalDTD is not None or b"<!DOCTYPE" in xml:
        raise SiteError(f"{file}: a template has no DOCTYPE", "remove it")
    if root.tag != "domain":
        raise SiteError(f"{file}:{root.sourceline}: the root element is <{root.tag}>", "it must be <domain>")
    for element in root.iter(etree.Element):
        if isinstance(element.tag, str) and element.tag.startswith("vb"):
            _check(file, element)
    rules = etree.RelaxNG(tagschema.schema())
    if not rules.validate(root):  # what the checks above do not put into better words
        fault = rules.error_log[0]
        raise SiteError(f"{file}:{fault.line}: {fault.message}", "man vmbatch-template")
    _count(file, root)
    made = machine.read(root)
    _fit(file, made)
    return Template(name, file, root, made)


def _check(file: Path, element: etree._Element) -> None:
    where = f"{file}:{element.sourceline}: <{element.tag}>"
    tag = TAGS.get(str(element.tag))
    if tag is None:
        raise SiteError(f"{where} is no tag of vmbatch", f"the nearest is <{nearest(str(element.tag), TAGS, 1)}>")
    parent = element.getparent()
    if parent is None or parent.tag not in tag.parents:
        raise SiteError(f"{where} stands in the wrong place", f"it belongs in <{'> or <'.join(tag.parents)}>")
    twin = parent.find(str(element.tag))
    if not tag.many and twin is not element:
        raise SiteError(f"{where} stands here twice, first in line {twin.sourceline if twin is not None else 0}", "keep one")
    _attributes(where, element, tag)
    text = " ".join((element.text or "").split())
    if tag.values or not tag.pattern:
        if text not in (tag.values or ("",)):
            raise SiteError(f"{where} holds {text!r}", f"allowed are: {', '.join(tag.values) or 'nothing'}")
    elif not re.fullmatch(tag.pattern, text):
        raise SiteError(f"{where} holds {text!r}", f"it must be: {tag.shape}, such as {tag.example}")


def _attributes(where: str, element: etree._Element, tag: Tag) -> None:
    given = {str(name): str(value) for name, value in element.attrib.items()}
    every = {one.name: one for one in tag.attributes()}
    for name in given:
        if name not in every:
            raise SiteError(f"{where} has an unknown attribute {name!r}", f"allowed are: {', '.join(every) or 'none'}")
    form = max(tag.forms, key=lambda form: len({one.name for one in form} & set(given)))
    if "create" in given or "size" in given:
        form = tag.forms[-1]
    example = tag.second if tag.second and form is tag.forms[-1] else tag.example
    allowed = {one.name: one for one in form}
    for name, value in given.items():
        if name not in allowed:
            raise SiteError(
                f"{where} cannot have {name!r} here", f"such as: {example}; with it go only {', '.join(allowed)}"
            )
        one = allowed[name]
        if one.values and value not in one.values:
            raise SiteError(f"{where} has {name}={value!r}", f"allowed are: {', '.join(one.values)}")
        if not one.values and not re.fullmatch(one.pattern, value):
            raise SiteError(f"{where} has {name}={value!r}", f"it must be: {one.shape}, such as: {example}")
    for one in form:
        if one.required and one.name not in given:
            raise SiteError(f"{where} lacks the attribute {one.name!r}", f"such as: {example}")


def _count(file: Path, root: etree._Element) -> None:
    if len(root.findall("vbconfig")) > 1:
        raise SiteError(f"{file}: more than one <vbconfig>", "keep one")
    if len(root.findall("devices/disk/vbpreparecdrom")) > 1:
        raise SiteError(f"{file}: more than one <vbpreparecdrom/>", "keep one")
    names = [str(one.get("name", "")) for one in root.findall("devices/disk/vbuserimage")]
    for name in names:
        if names.count(name) > 1:
            called = f"with name={name!r}" if name else "without a name"
            raise SiteError(f"{file}: more than one <vbuserimage> {called}", "give each another name")


def _fit(file: Path, made: Machine) -> None:
    """What no schema says: tags that need each other."""
    if made.context != "DISK" and (made.cdrom is None or made.cdrom.target is None):
        where = f"{file}:{made.cdrom.line}" if made.cdrom else str(file)
        raise SiteError(
            f"{where}: {made.context} needs a disk with <vbpreparecdrom/> and <target dev=.../>",
            "add the <target>" if made.cdrom else "put <vbpreparecdrom/> into a <disk device='cdrom'>",
        )
    targets = [disk.target for disk in made.disks if disk.target]
    for target in targets:
        if targets.count(target) > 1:
            raise SiteError(f"{file}: two disks have <target dev={target!r}>", "give each another name")
    for disk in made.disks:
        if disk.context and (disk.source or disk.user):
            raise SiteError(f"{file}:{disk.line}: this disk has <vbpreparecdrom/> and another source", "keep one of them")
        if disk.check:
            read_check(f"{file}:{disk.check_line}: <vbcheckhash>", *disk.check)
        if disk.check and disk["create"]:
            raise SiteError(f"{file}:{disk.line}: <vbcheckhash> of a disk that is created empty", "remove it")
