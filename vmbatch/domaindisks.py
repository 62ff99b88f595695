"""The disks of a domain: each <disk> of the template with tags of ours gets what was planned for it. Pure."""

from pathlib import Path

from lxml import etree

from vmbatch.disk import Disk
from vmbatch.hypervisors import EMULATED
from vmbatch.model import Guest

Element = etree._Element
_MARKS = ("vbuserimage", "vbdisksource", "vbcheckhash", "vbpreparecdrom")


def place(root: Element, devices: Element, guest: Guest) -> None:
    """Put the guest's disks, its CD-ROM and its boot order into the domain."""
    planned = {disk.element: disk for disk in guest.disks}
    for number, element in enumerate(devices.findall("disk")):
        marks = [child for child in element if child.tag in _MARKS]
        context = any(mark.tag == "vbpreparecdrom" for mark in marks)
        for mark in marks:
            element.remove(mark)
        if number in planned:
            _disk(element, planned[number], guest.hypervisor in EMULATED)
        elif context and guest.context != "DISK":
            source(element, guest.iso)
        elif marks:
            devices.remove(element)
    for layout in devices.findall("vbdisks"):
        devices.remove(layout)
    if guest.own_cdrom:
        _own_cdrom(devices, guest)
    _boot(root, devices, guest)


def _disk(element: Element, disk: Disk, emulated: bool) -> None:
    driver = child(element, "driver")
    if emulated:
        driver.set("name", "qemu")
    driver.set("type", "aio" if driver.get("type") == "aio" and disk.format == "raw" else str(disk.format))
    if disk.origin.kind == "empty" and disk.origin.method == "once" and driver.get("cache") == "unsafe":
        driver.set("cache", "writeback")  # what it holds outlives the job
    for old in element.findall("backingStore"):
        element.remove(old)
    place = source(element, (disk.base or disk.file) if disk.use == "readonly" else disk.file)
    if disk.use == "readonly":
        child(element, "readonly")
    if emulated and disk.use == "readonly" and disk.base:
        _own_name(place, disk)
    if emulated and disk.use == "overlay":
        _backing(element, disk)
    elif emulated and disk.format != "raw":
        etree.SubElement(element, "backingStore")
    target = child(element, "target")
    target.set("dev", disk.target)
    target.set("bus", disk.bus)


def _backing(element: Element, disk: Disk) -> None:
    """A base that ends the chain, so that neither libvirt nor QEMU guesses a format."""
    backing = etree.SubElement(element, "backingStore", type="file")
    etree.SubElement(backing, "format", type=str(disk.base_format))
    base = etree.SubElement(backing, "source", file=xml_safe(str(disk.base)))
    _own_name(base, disk)
    etree.SubElement(backing, "backingStore")


def _own_name(element: Element, disk: Disk) -> None:
    """What is not the job's own is left as it is, and a user's file is used by the descriptor that the user opened."""
    if disk.group:
        element.set("fdgroup", disk.group)
    etree.SubElement(element, "seclabel", model="dac", relabel="no")


def _own_cdrom(devices: Element, guest: Guest) -> None:
    """A second drive, beside the one with the context where there is one."""
    assert guest.own_cdrom is not None, "asked before"
    targets = {str(one.get("dev")): str(one.get("bus", "ide")) for one in devices.findall("disk/target")}
    bus = targets.get(guest.cdrom or "", "ide")
    prefix = (guest.cdrom or "hd")[:2]
    free = next(f"{prefix}{chr(97 + n)}" for n in range(26) if f"{prefix}{chr(97 + n)}" not in targets)
    disk = etree.SubElement(devices, "disk", type="file", device="cdrom")
    etree.SubElement(disk, "driver", name="qemu", type="raw")
    place = source(disk, Path(guest.own_cdrom.path))
    place.set("fdgroup", "cdrom")
    etree.SubElement(place, "seclabel", model="dac", relabel="no")
    etree.SubElement(disk, "target", dev=free, bus=bus)
    etree.SubElement(disk, "readonly")


def _boot(root: Element, devices: Element, guest: Guest) -> None:
    """With several disks the machine boots from the first image, whatever the order of names and elements."""
    if len(guest.disks) < 2 or devices.find("*/boot") is not None or guest.hypervisor not in EMULATED:
        return
    for old in root.findall("os/boot"):
        old.getparent().remove(old)  # type: ignore[union-attr]
    boot = next(disk for disk in guest.disks if disk.boot)
    for element in devices.findall("disk"):
        target = element.find("target")
        if target is not None and target.get("dev") == boot.target:
            etree.SubElement(element, "boot", order="1")


def source(element: Element, path: Path) -> Element:
    """Give a <disk> its file; returns the <source> element."""
    place = child(element, "source")
    place.clear()
    place.set("file", xml_safe(str(path)))
    return place


def child(parent: Element, tag: str) -> Element:
    """Return the child of that name, made where it is missing."""
    found = parent.find(tag)
    return found if found is not None else etree.SubElement(parent, tag)


def xml_safe(text: str) -> str:
    """XML cannot hold control characters or lone surrogates; nothing that we look up contains them."""
    return "".join(c if c >= " " and not 0xD800 <= ord(c) <= 0xDFFF and ord(c) < 0xFFFE else "?" for c in text)
