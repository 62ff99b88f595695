"""Template + Guest -> libvirt domain XML. Pure: values enter the tree after parsing, so no text can change its structure.

Every vb tag is replaced or removed; one that is left over is a SiteError. validate() holds the result against
libvirt's own schema.
"""

from copy import deepcopy
from pathlib import Path

from lxml import etree

from vmbatch import backends, networks
from vmbatch.domaindisks import child, place, xml_safe
from vmbatch.errors import SiteError
from vmbatch.hypervisors import EMULATED
from vmbatch.model import Guest
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
    devices = child(root, "devices")
    place(root, devices, guest)
    _card(devices, guest)
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
        child(root, name).text = text
    _number(root, "memory", guest.memory_mib, unit="MiB")
    _number(root, "currentMemory", guest.memory_mib, unit="MiB")
    _number(root, "vcpu", guest.cpus)
    metadata = child(root, "metadata")
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
        job.set(word, xml_safe(value))


def _number(root: Element, tag: str, value: int, **attributes: str) -> None:
    element = child(root, tag)
    element.attrib.clear()
    for name, text in attributes.items():
        element.set(name, text)
    element.text = str(value)


def _machine(root: Element, guest: Guest) -> None:
    os = child(root, "os")
    if guest.firmware == "efi":
        os.set("firmware", "efi")
    if guest.kernel:
        for tag, value in (("kernel", guest.job_kernel), ("initrd", guest.job_initrd), ("cmdline", guest.kernel_args)):
            if value:
                child(os, tag).text = xml_safe(str(value))
    elif guest.kernel_args and root.find("bootloader") is not None:
        child(os, "cmdline").text = xml_safe(guest.kernel_args)  # what the boot loader adds to the kernel line
    child(root, "clock").set("offset", guest.clock)
    devices = child(root, "devices")
    for event in ("on_reboot", "on_crash"):
        if root.find(event) is None:
            child(root, event).text = "destroy"  # libvirt would restart it, without its job
    if guest.hypervisor in EMULATED and (guest.video != "none" or devices.find("video") is None):
        video = child(devices, "video")
        video.clear()
        etree.SubElement(video, "model", type=guest.video)
    if guest.input:
        etree.SubElement(devices, "input", type=guest.input, bus="usb")
    if guest.context == "CLOUDINIT":
        os.append(etree.Element("smbios", mode="sysinfo"))
        system = etree.SubElement(etree.SubElement(root, "sysinfo", type="smbios"), "system")
        etree.SubElement(system, "entry", name="serial").text = "ds=nocloud"


def _card(devices: Element, guest: Guest) -> None:
    """The job's network card goes where <vbnic/> stands, else where the template has its first card."""
    card = backends.load("networks", networks.MODULES[guest.nic.network]).element(guest.nic)
    for only_qemus in [*card.findall("model"), *card.findall("port")] if guest.hypervisor not in EMULATED else ():
        card.remove(only_qemus)
    mark = devices.find("vbnic")
    mark = devices.find("interface") if mark is None else mark
    if mark is None:
        devices.append(card)
    else:
        devices.replace(mark, card)


def _channels(devices: Element, guest: Guest) -> None:
    """The console on the first serial port, kept in a file; and the way on which the guest says that it is ready."""
    serial = etree.SubElement(devices, "serial", type="pty")
    etree.SubElement(serial, "log", file=xml_safe(str(guest.console)), append="on")
    etree.SubElement(serial, "target", port="0")
    if guest.disks and guest.disks[0].bus == "virtio" and guest.hypervisor in EMULATED:
        channel = etree.SubElement(devices, "channel", type="unix")
        etree.SubElement(channel, "target", type="virtio", name=READY_CHANNEL)
    else:
        line = etree.SubElement(devices, "serial", type="unix")
        etree.SubElement(line, "source", mode="bind", path=xml_safe(str(guest.run_dir / "ready" / "serial")))
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
