"""The disks of a Xen domain file, changed for KVM: drivers, buses, names, the boot disk, the CD-ROM. See convert.py.

A disk keeps the letters of its name (xvdaa becomes vdaa), so libvirt's order stays and with it the boot disk. A guest
on KVM does not see these names: it names virtio disks in the order of their PCI slots, which is libvirt's order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice, product
from string import ascii_lowercase

from vmbatch import xmltext
from vmbatch.deviceorder import guest_order, libvirt_order, split
from vmbatch.errors import SiteError
from vmbatch.xmltext import Edit, Element

XEN_DRIVERS = ("tap", "tap2", "file", "phy")
_FORMATS = {"aio": "raw", "vhd": "qcow2", "qcow": "qcow2"}  # Xen's images are made anew as QEMU's own format
_CREATED = {"vhd-util-vhd": "qcow2", "vhd": "qcow2", "qcow": "qcow2"}  # values of <vbdisksource format=...>
_BUSES = {"xvd": "xen", "vd": "virtio", "hd": "ide", "sd": "scsi", "fd": "fdc", "ubd": "uml"}  # libvirt's, from the name
_PREFIXES = {bus: prefix for prefix, bus in _BUSES.items()}
_DRIVES = ("hdc", "hdd", "hda", "hdb")
_QEMU_NAMES = {"vhd": "vpc", "qcow": "qcow"}


@dataclass(frozen=True, slots=True)
class Note:
    """What a person should know about a change, or do by hand. `line` is the original file's."""

    line: int
    text: str


Change = Edit | Note


@dataclass(frozen=True, slots=True)
class _Disk:
    element: Element
    target: Element
    dev: str
    bus: str
    cdrom: bool

    @property
    def letters(self) -> str:
        return self.dev.removeprefix(split(self.dev)[0]).rstrip("0123456789")


def changes(root: Element, mark_boot: bool) -> Iterator[Change]:
    """Yield what changes in all disks; with `mark_boot` the disk that Xen boots from gets its mark.

    Raises SiteError for a target that is no disk name, and for more CD-ROMs than drives.
    """
    elements = root.findall("devices/disk")
    disks = []
    for element in elements:
        yield from _format(element)
        target = element.find("target")
        if target is None or not target.get("dev"):
            yield Note(element.line, "a <disk> without <target dev=...> was left as it is")
        else:
            disks.append(_read(element, target, target.attributes["dev"]))
    names = _names(disks)
    for disk in disks:
        yield from _place(disk, names[disk.dev])
    if mark_boot:
        yield from _boot(disks)
    yield from _layout(root, names)
    yield from _seen_by_the_guest(disks, names)


def _read(element: Element, target: Element, dev: str) -> _Disk:
    cdrom = element.get("device") == "cdrom" or element.find("vbpreparecdrom") is not None
    return _Disk(element, target, dev, target.get("bus") or _BUSES[split(dev)[0]], cdrom)


def _sorted(disks: Sequence[_Disk]) -> list[_Disk]:
    """The disks in libvirt's order. A bus may differ from what the name says, and digits do not count: they tell apart."""
    keys = {f"{_PREFIXES.get(disk.bus, 'sd')}{disk.letters}{number}": disk for number, disk in enumerate(disks)}
    return [keys[key] for key in libvirt_order(tuple(keys))]


def _names(disks: Sequence[_Disk]) -> dict[str, str]:
    """Return {old target: new target} of all disks. CD-ROMs leave the Xen bus for an IDE drive that is free."""
    names = {disk.dev: disk.dev for disk in disks}
    moved = [disk for disk in _sorted(disks) if disk.bus == "xen" and not disk.cdrom]
    discs = [disk.dev for disk in disks if disk.cdrom and disk.bus in ("xen", "virtio")]
    taken = set(names) - {disk.dev for disk in moved} - set(discs)
    kept = ["vd" + disk.letters for disk in moved]
    if len(set(kept) - taken) < len(kept):  # xvda1 and xvda2: KVM has no partitions as disks
        kept = list(islice((name for name in _whole_disks() if name not in taken), len(moved)))
    drives = [drive for drive in _DRIVES if drive not in taken]
    if len(discs) > len(drives):
        raise SiteError(f"there are more CD-ROMs than IDE drives: {', '.join(discs)}", "leave one out")
    return names | dict(zip((disk.dev for disk in moved), kept, strict=True)) | dict(zip(discs, drives, strict=False))


def _whole_disks() -> Iterator[str]:
    return ("vd" + "".join(letters) for size in count(1) for letters in product(ascii_lowercase, repeat=size))


def _format(element: Element) -> Iterator[Change]:
    driver, source = element.find("driver"), element.find("vbdisksource")
    created = source is not None and source.get("create") is not None
    if source is not None and source.get("format") in _CREATED:
        yield xmltext.set_attribute(source, "format", _CREATED[source.attributes["format"]])
    if driver is None:
        return
    kind = driver.get("type")
    if driver.get("name") in XEN_DRIVERS:
        yield xmltext.set_attribute(driver, "name", "qemu")
        if kind is None:
            yield xmltext.set_attribute(driver, "type", "raw")
    if kind in _FORMATS:
        context = element.find("vbpreparecdrom")
        yield xmltext.set_attribute(driver, "type", "raw" if context else _FORMATS[kind])
    if kind in _QEMU_NAMES and not created and not any(element.find(tag) for tag in ("vbuserimage", "vbpreparecdrom")):
        file = element.find("source")
        name = source.attributes.get("source") if source else file and (file.get("file") or file.get("dev"))
        old = _QEMU_NAMES[kind]
        how = f"make it anew with qemu-img convert -f {old} -O qcow2 OLD NEW"
        how += f", or give its <vbdisksource> format='{old}'" if source else ""
        yield Note(driver.line, f"the image {name or 'of this disk'} is in Xen's format {kind}: {how}")


def _place(disk: _Disk, name: str) -> Iterator[Change]:
    """The target's name and bus. KVM takes no address of another bus."""
    bus = _BUSES[split(name)[0]] if name != disk.dev else disk.bus
    if disk.cdrom and disk.element.get("device") != "cdrom":
        yield xmltext.set_attribute(disk.element, "device", "cdrom")
    if name == disk.dev:
        return
    yield xmltext.set_attribute(disk.target, "dev", name)
    if disk.target.get("bus"):
        yield xmltext.set_attribute(disk.target, "bus", bus)
    yield from map(xmltext.remove, disk.element.findall("address"))
    if disk.dev[-1].isdigit():
        yield Note(disk.target.line, f"{disk.dev} was a partition; {name} is a whole disk without a partition table")


def _boot(disks: Sequence[_Disk]) -> Iterator[Change]:
    """libvirt's first disk is what a paravirtual guest boots from on Xen, whatever the boot tags say."""
    if any(disk.element.find("boot") for disk in disks):
        return
    order = [disk for disk in _sorted(disks) if disk.element.get("device") != "floppy"]
    first = next((disk for disk in order if not disk.cdrom), None)
    if first:
        yield xmltext.insert_after(first.target, "<boot order='1'/>")
        if order[0] is not first:
            yield Note(first.target.line, f"on Xen {order[0].dev} comes first, a CD-ROM; the boot disk is now {first.dev}")


def _layout(root: Element, names: Mapping[str, str]) -> Iterator[Change]:
    """<vbdisk> names disks and partitions as the targets do."""
    for part in root.findall("devices/vbdisks/vbdisk"):
        dev, partition = part.get("dev"), part.get("partition")
        for attribute, value in (("dev", dev), ("partition", partition)):
            if value is None:
                continue
            disk = value if value in names else dev or value
            new = names.get(disk) or disk.replace("xvd", "vd", 1)
            if value.startswith(disk) and new != disk:
                yield xmltext.set_attribute(part, attribute, new + value.removeprefix(disk))


def _seen_by_the_guest(disks: Sequence[_Disk], names: Mapping[str, str]) -> Iterator[Change]:
    """A note where a guest on KVM will not find its disks under the names of the file."""
    virtio = [disk for disk in disks if names[disk.dev].startswith("vd")]
    order = libvirt_order([names[disk.dev] for disk in virtio])
    seen = dict(zip(order, _whole_disks(), strict=False))
    if not any(disk.bus == "xen" for disk in disks) or all(name == there for name, there in seen.items()):
        return
    first = names[guest_order([disk.dev for disk in virtio])[0]]
    text = "; ".join(f"{name} is /dev/{there}" for name, there in seen.items())
    text = f"a guest on KVM names its disks in the order of their PCI slots: {text}"
    if first != order[0]:
        text += f". What took the first disk by name on Xen (CernVM3's cache) took {first}, and would now take {order[0]}"
    yield Note(virtio[0].target.line, text)
