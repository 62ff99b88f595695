"""What a template's tags ask for, as data: the disks, who may choose what, and how the guest is told its job."""

from dataclasses import dataclass

from lxml import etree

# How libvirt and the Xen tools name formats in <driver type=...>, and qemu-img's name for the same.
DRIVER_FORMATS = {"aio": "raw", "vhd": "vpc", "qcow": "qcow"}
_DOMAIN_TYPES = {"kvm": "AUTO", "qemu": "QEMU", "xen": "XEN4", "vbox": "VIRTUALBOX"}
Element = etree._Element


@dataclass(frozen=True, slots=True)
class UserImage:
    """<vbuserimage>: what a user may put in this disk's place. Empty paths and urls: images of the catalogue only."""

    name: str  # "": the image that the request begins with
    paths: tuple[str, ...]
    urls: tuple[str, ...]
    formats: tuple[str, ...]
    max_mib: int | None  # None: the site's
    optional: bool


@dataclass(frozen=True, slots=True)
class DiskWant:
    """A <disk> with tags of ours. `element` is its number among the template's <disk> elements."""

    element: int
    line: int
    device: str  # disk, cdrom, lun, floppy
    target: str | None
    bus: str | None
    driver: str | None  # <driver type=...>
    readonly: bool
    appears: str | None  # <source file=...>
    source: tuple[tuple[str, str], ...]  # attributes of <vbdisksource>; (): there is none
    check: tuple[str, str] | None  # (hash function, value)
    check_line: int
    user: UserImage | None
    context: bool  # <vbpreparecdrom>

    def __getitem__(self, attribute: str) -> str:
        """Return an attribute of <vbdisksource>, "" where it has none."""
        return dict(self.source).get(attribute, "")


@dataclass(frozen=True, slots=True)
class Part:
    """<vbdisk>: where a part of the guest lies. partition 0: a file system fills the disk."""

    name: str
    target: str
    partition: int
    line: int


@dataclass(frozen=True, slots=True)
class TarFile:
    source: str
    path: str
    strip: int
    cdrom: bool


@dataclass(frozen=True, slots=True)
class Option:
    """<vbuseroption>: what a key of the request may hold. maximum None: no limit here."""

    name: str
    values: tuple[str, ...]
    maximum: int | None
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """All of it."""

    context: str
    hypervisor: str
    disks: tuple[DiskWant, ...]
    layout: tuple[Part, ...]
    tarfiles: tuple[TarFile, ...]
    options: tuple[Option, ...]
    job_path: str | None
    boot_parameters: str
    addressing: str | None  # None: the site's
    shell: str
    inputs: tuple[str, ...] | None  # None: the submit directory
    network: str | None  # None: the site's
    written: tuple[str, ...]  # files and devices of disks without our tags that a guest may write to
    paravirtual: bool  # a Xen guest whose kernel comes from <bootloader> or <kernel>, not from a boot sector

    @property
    def cdrom(self) -> DiskWant | None:
        """The drive with the context."""
        return next((disk for disk in self.disks if disk.context), None)


def read(root: Element) -> Machine:
    """Read a template that has been checked."""
    nic = root.find("devices/vbnic")
    staging = root.find("vbconfig/vbstaging")
    return Machine(
        context=_text(root, "vbpreparemethod") or "CDROM",
        hypervisor=_text(root, "vbhypervisor") or _DOMAIN_TYPES.get(str(root.get("type")), "AUTO"),
        disks=tuple(want for n, disk in enumerate(root.findall("devices/disk")) if (want := _disk(n, disk))),
        layout=tuple(_part(one) for one in root.findall("devices/vbdisks/vbdisk")),
        tarfiles=tuple(_tarfile(one) for one in root.findall("vbconfig/vbtarfiles/vbtarfile")),
        options=tuple(_option(one) for one in root.findall("vbconfig/vbuseroptions/vbuseroption")),
        job_path=_text(root, "vbjobpath") or None,
        boot_parameters=_text(root, "vbbootparameters"),
        addressing=_text(root, "vbaddressing") or None,
        shell=_text(root, "vbremoteshell") or "SSH",
        inputs=() if staging is not None and staging.get("in") == "none" else None,
        network=None if nic is None else nic.get("network"),
        written=tuple(filter(None, map(_written, root.findall("devices/disk")))),
        paravirtual=root.get("type") == "xen" and (root.findtext("os/type") or "").strip() != "hvm",
    )


def _text(root: Element, tag: str) -> str:
    return " ".join((root.findtext(f"vbconfig/{tag}") or "").split())


def _line(element: Element) -> int:
    return element.sourceline if isinstance(element.sourceline, int) else 0


def _words(element: Element, attribute: str, default: str = "") -> tuple[str, ...]:
    return tuple(str(element.get(attribute, default)).split())


def _number(element: Element, attribute: str) -> int | None:
    text = element.get(attribute)
    return None if text is None else int(text)


def _disk(number: int, disk: Element) -> DiskWant | None:
    source, check, user = (disk.find(tag) for tag in ("vbdisksource", "vbcheckhash", "vbuserimage"))
    context = disk.find("vbpreparecdrom") is not None
    if source is None and user is None and not context:
        return None
    target, driver, file = disk.find("target"), disk.find("driver"), disk.find("source")
    return DiskWant(
        element=number,
        line=_line(disk),
        device=str(disk.get("device", "disk")),
        target=None if target is None else target.get("dev"),
        bus=None if target is None else target.get("bus"),
        driver=None if driver is None else driver.get("type"),
        readonly=disk.find("readonly") is not None,
        appears=None if file is None else file.get("file"),
        source=() if source is None else tuple(sorted((str(k), str(v)) for k, v in source.attrib.items())),
        check=None if check is None else (str(check.get("hashfunction")), str(check.get("hashvalue"))),
        check_line=0 if check is None else _line(check),
        user=None if user is None else _user_image(user),
        context=context,
    )


def _written(disk: Element) -> str | None:
    source = disk.find("source")
    ours = any(str(child.tag).startswith("vb") for child in disk)
    shared = disk.find("readonly") is not None or disk.find("shareable") is not None
    if ours or shared or source is None or disk.get("device", "disk") in ("cdrom", "floppy"):
        return None
    return source.get("file") or source.get("dev")


def _user_image(element: Element) -> UserImage:
    return UserImage(
        name=str(element.get("name", "")),
        paths=_words(element, "paths"),
        urls=_words(element, "urls"),
        formats=_words(element, "formats", "raw qcow2"),
        max_mib=_number(element, "maxsize"),
        optional=element.get("optional") == "yes",
    )


def _part(element: Element) -> Part:
    target, partition = str(element.get("dev")), str(element.get("partition", ""))
    digits = partition.removeprefix(target)
    return Part(
        name=str(element.get("name")),
        target=target,
        partition=int(digits) if digits.isdecimal() else 0,
        line=_line(element),
    )


def _tarfile(element: Element) -> TarFile:
    return TarFile(
        source=str(element.get("tarfile")),
        path=str(element.get("path", ".")),
        strip=int(str(element.get("strip", "0"))),
        cdrom=element.get("option") == "cdrom",
    )


def _option(element: Element) -> Option:
    return Option(
        name=str(element.get("name")),
        values=_words(element, "values"),
        maximum=_number(element, "max"),
        paths=_words(element, "paths"),
    )
