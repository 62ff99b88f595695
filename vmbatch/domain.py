"""Template + Guest -> libvirt domain XML. Pure: values enter the tree after parsing, so no text can change its structure.

Every vb tag is replaced or removed; one that is left over is a SiteError. validate() holds the result against
libvirt's own schema.
"""

from copy import deepcopy
from pathlib import Path

from lxml import etree

from vmbatch import backends
from vmbatch.errors import SiteError
from vmbatch.model import Disk, Guest
from vmbatch.templates import Template

NAMESPACE = "urn:x-vmbatch:job:1"
READY_CHANNEL = "org.vmbatch.ready"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
Element = etree._Element


def build(template: Template, guest: Guest) -> str:
    """Return the domain's XML. Raises SiteError where the template does not fit the guest."""
    root = deepcopy(template.root)
    for config in root.findall("vbconfig"):
        root.remove(config)
    root.set("type", guest.hypervisor)
    _identity(root, guest)
    _machine(root, guest)
    devices = _child(root, "devices")
    _disks(devices, guest)
    for number, mark in enumerate(devices.findall("vbnic")):
        nic = guest.nics[number]
        devices.replace(mark, backends.load("networks", nic.network).element(nic))
    _channels(devices, guest)
    left = [element for element in root.iter(etree.Element) if str(element.tag).startswith("vb")]
    if left:
        raise SiteError(f"{template.file}:{left[0].sourceline}: <{left[0].tag}> does not fit this guest")
    etree.indent(root)
    return etree.tostring(root, encoding="unicode") + "\n"


def validate(xml: str, schema: Path = SCHEMA) -> None:
    """Hold the XML against libvirt's schema. Raises SiteError with libvirt's view of the first fault."""
    try:
        rules = etree.RelaxNG(file=str(schema))
    except (etree.RelaxNGParseError, OSError) as error:
        raise SiteError(f"cannot read libvirt's schema {schema}: {error}", "apt-get install libvirt0") from None
    if not rules.validate(etree.fromstring(xml)):
        fault = rules.error_log[0] if len(rules.error_log) else None
        raise SiteError(f"libvirt would not take the domain: {fault.message if fault else 'no reason given'}")


def _identity(root: Element, guest: Guest) -> None:
    for name, text in (("name", guest.name), ("uuid", guest.uuid)):
        _child(root, name).text = text
    _number(root, "memory", guest.memory_mib, unit="MiB")
    _number(root, "currentMemory", guest.memory_mib, unit="MiB")
    _number(root, "vcpu", guest.cpus)
    metadata = _child(root, "metadata")
    job = etree.SubElement(metadata, f"{{{NAMESPACE}}}job", nsmap={"vmbatch": NAMESPACE})
    facts = {
        "key": guest.key,
        "n": str(guest.n),
        "scheduler": guest.scheduler,
        "cluster": guest.cluster,
        "node": guest.node,
        "job": guest.job_id,
        "uid": str(guest.person.uid),
        "bootid": guest.boot_id,
        "image": guest.image,
        "state": str(guest.state),
    }
    for word, value in facts.items():
        job.set(word, _xml_safe(value))


def _xml_safe(text: str) -> str:
    """XML cannot hold control characters or lone surrogates; nothing that we look up contains them."""
    return "".join(c if c >= " " and not 0xD800 <= ord(c) <= 0xDFFF and ord(c) < 0xFFFE else "?" for c in text)


def _number(root: Element, tag: str, value: int, **attributes: str) -> None:
    element = _child(root, tag)
    element.attrib.clear()
    for name, text in attributes.items():
        element.set(name, text)
    element.text = str(value)


def _machine(root: Element, guest: Guest) -> None:
    os = _child(root, "os")
    if guest.firmware == "efi":
        os.set("firmware", "efi")
    if guest.kernel:
        for tag, value in (("kernel", guest.own_kernel), ("initrd", guest.own_initrd), ("cmdline", guest.kernel_args)):
            if value:
                _child(os, tag).text = _xml_safe(str(value))
    _child(root, "clock").set("offset", guest.clock)
    devices = _child(root, "devices")
    if guest.video != "none" or devices.find("video") is None:
        video = _child(devices, "video")
        video.clear()
        etree.SubElement(video, "model", type=guest.video)
    if guest.input:
        etree.SubElement(devices, "input", type=guest.input, bus="usb")
    if guest.context == "CLOUDINIT":
        os.append(etree.Element("smbios", mode="sysinfo"))
        system = etree.SubElement(etree.SubElement(root, "sysinfo", type="smbios"), "system")
        etree.SubElement(system, "entry", name="serial").text = "ds=nocloud"


def _disks(devices: Element, guest: Guest) -> None:
    overlays = iter(guest.disks)
    for disk in devices.findall("disk"):
        mark = next((e for e in disk if e.tag in ("vbuserimage", "vbdisksource")), None)
        cdrom = disk.find("vbpreparecdrom")
        if mark is not None:
            disk.remove(mark)
            _overlay(disk, next(overlays))
        elif cdrom is not None:
            disk.remove(cdrom)
            _source(disk, guest.iso)


def _overlay(element: Element, disk: Disk) -> None:
    """The job's own qcow2 above a base that ends the chain, so that neither libvirt nor QEMU guesses a format."""
    driver = _child(element, "driver")
    driver.set("name", "qemu")
    driver.set("type", "qcow2")
    _source(element, disk.overlay)
    backing = etree.SubElement(element, "backingStore", type="file")
    etree.SubElement(backing, "format", type=disk.base_format)
    base = etree.SubElement(backing, "source", file=_xml_safe(str(disk.base)))
    etree.SubElement(base, "seclabel", model="dac", relabel="no")
    etree.SubElement(backing, "backingStore")
    target = _child(element, "target")
    target.set("dev", disk.target)
    target.set("bus", disk.bus)


def _source(element: Element, path: Path) -> None:
    source = _child(element, "source")
    source.attrib.clear()
    source.set("file", _xml_safe(str(path)))


def _channels(devices: Element, guest: Guest) -> None:
    """The console on the first serial port, kept in a file; and the way on which the guest says that it is ready."""
    serial = etree.SubElement(devices, "serial", type="pty")
    etree.SubElement(serial, "log", file=_xml_safe(str(guest.console)), append="on")
    etree.SubElement(serial, "target", port="0")
    if guest.disks and guest.disks[0].bus == "virtio":
        channel = etree.SubElement(devices, "channel", type="unix")
        etree.SubElement(channel, "target", type="virtio", name=READY_CHANNEL)
    else:
        line = etree.SubElement(devices, "serial", type="unix")
        etree.SubElement(line, "source", mode="bind", path=_xml_safe(str(guest.run_dir / "ready" / "serial")))
        etree.SubElement(line, "target", port="1")


def ready_socket(live_xml: str) -> Path | None:
    """Find in a running domain's XML the unix socket on which the guest reports. None: there is none."""
    root = etree.fromstring(live_xml)
    for channel in root.findall("devices/channel"):
        target, source = channel.find("target"), channel.find("source")
        if target is not None and source is not None and target.get("name") == READY_CHANNEL:
            return Path(str(source.get("path")))
    for serial in root.findall("devices/serial[@type='unix']/source"):
        return Path(str(serial.get("path")))
    return None


def _child(parent: Element, tag: str) -> Element:
    found = parent.find(tag)
    return found if found is not None else etree.SubElement(parent, tag)
