"""domain-templates/*.xml -> Template: real libvirt domain XML, extended with vb tags.

The tag table below is what the parser checks against: every message names file, line, tag and what is allowed.
"""

from dataclasses import dataclass
from pathlib import Path

from lxml import etree

from vmbatch.config import Config, check_trusted
from vmbatch.errors import SiteError, nearest

PACKAGED = (Path(__file__).parent / "data" / "templates", Path(__file__).parent.parent / "domain-templates")


@dataclass(frozen=True, slots=True)
class Tag:
    """One vb tag: where it may stand, what it may hold. An attribute without values takes any text."""

    parents: tuple[str, ...]
    attributes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    required: tuple[str, ...] = ()
    values: tuple[str, ...] = ()  # allowed text; empty: no text
    help: str = ""


TAGS: dict[str, Tag] = {
    "vbconfig": Tag(("domain",), help="settings of vmbatch for the whole domain"),
    "vbpreparemethod": Tag(("vbconfig",), values=("CDROM", "CLOUDINIT"), help="how the guest is contextualized"),
    "vbhypervisor": Tag(("vbconfig",), values=("KVM", "QEMU", "AUTO"), help="KVM, software emulation, or what works"),
    "vbuserimage": Tag(("disk",), help="the image that the job asked for goes here, under an overlay of the job"),
    "vbdisksource": Tag(
        ("disk",),
        (("source", ()), ("copy_method", ("shared",))),
        required=("source", "copy_method"),
        help="an image file fixed by the site; shared: the base under an overlay of the job",
    ),
    "vbpreparecdrom": Tag(("disk",), (("source", ()),), help="the CD-ROM with the job's context goes here"),
    "vbnic": Tag(("devices",), help="the job's network card goes here"),
}


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. `root` is never changed: domain.build works on a copy."""

    name: str
    file: Path
    root: etree._Element
    context: str
    hypervisor: str

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
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    try:
        root = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        raise SiteError(f"{file}:{error.lineno}: not well-formed XML: {error.msg}") from None
    if b"<!DOCTYPE" in xml:
        raise SiteError(f"{file}: a template has no DOCTYPE", "remove it")
    if root.tag != "domain":
        raise SiteError(f"{file}:{root.sourceline}: the root element is <{root.tag}>", "it must be <domain>")
    for element in root.iter(etree.Element):
        if isinstance(element.tag, str) and element.tag.startswith("vb"):
            _check(file, element)
    _count(file, root)
    return Template(
        name,
        file,
        root,
        root.findtext("vbconfig/vbpreparemethod", "CDROM").strip(),
        root.findtext("vbconfig/vbhypervisor", "AUTO").strip(),
    )


def _check(file: Path, element: etree._Element) -> None:
    where = f"{file}:{element.sourceline}: <{element.tag}>"
    tag = TAGS.get(str(element.tag))
    if tag is None:
        raise SiteError(f"{where} is no tag of vmbatch", f"the nearest is <{nearest(str(element.tag), TAGS, 1)}>")
    parent = element.getparent()
    if parent is None or parent.tag not in tag.parents:
        raise SiteError(f"{where} stands in the wrong place", f"it belongs in <{'> or <'.join(tag.parents)}>")
    allowed = dict(tag.attributes)
    for attribute, value in element.attrib.items():
        if attribute not in allowed:
            known = ", ".join(allowed) or "none"
            raise SiteError(f"{where} has an unknown attribute {attribute!r}", f"allowed are: {known}")
        if allowed[str(attribute)] and value not in allowed[str(attribute)]:
            values = ", ".join(allowed[str(attribute)])
            raise SiteError(f"{where} has {attribute}={value!r}", f"allowed are: {values}")
    for attribute in tag.required:
        if attribute not in element.attrib:
            raise SiteError(f"{where} lacks the attribute {attribute!r}")
    text = (element.text or "").strip()
    if text not in (tag.values or ("",)):
        raise SiteError(f"{where} holds {text!r}", f"allowed are: {', '.join(tag.values) or 'nothing'}")


def _count(file: Path, root: etree._Element) -> None:
    if len(root.findall("vbconfig")) > 1:
        raise SiteError(f"{file}: more than one <vbconfig>", "keep one")
    if len(root.findall("devices/vbnic")) != 1:
        raise SiteError(f"{file}: a template has exactly one <vbnic/>", "put one into <devices>")
    if len(root.findall("devices/disk/vbuserimage")) > 1:
        raise SiteError(f"{file}: more than one <vbuserimage>", "keep one")
    if len(root.findall("devices/disk/vbpreparecdrom")) != 1:
        raise SiteError(f"{file}: a template has exactly one <vbpreparecdrom/>", "put one into a <disk device='cdrom'>")
