"""A VmBatch domain file for Xen -> one for KVM. What need not change stays as it is, byte for byte.

VmBatch's files are libvirt's domain XML with vb tags. What libvirt's QEMU driver refuses or misreads of them is changed;
what it takes is left, and noted where it still speaks of Xen. Format: https://libvirt.org/formatdomain.html
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from vmbatch import xmltext
from vmbatch.convertdisks import Change, Note, changes
from vmbatch.errors import SiteError
from vmbatch.xmltext import Edit, Element

_PARAVIRTUAL = ("linux", "xen", "xenpvh")
_OS = "<os>\n  <type arch='x86_64' machine='pc'>hvm</type>\n</os>"

# What libvirt's QEMU driver refuses: element, the place of the word in it (a child, @attribute), the word, the reason.
_REFUSED = (
    ("os/loader", "", r"xen|hvmloader", "KVM has its own firmware"),
    ("devices/emulator", "", r"xen|qemu-dm", "libvirt finds KVM's emulator itself"),
    ("devices/console", "target@type", r"xen", "vmbatch adds a serial console; the guest's console is ttyS0, not hvc0"),
    ("devices/serial", "target@port", r"0|", "vmbatch's own console is on the first serial port"),
    ("devices/channel", "target@type", r"xen", "it is Xen's"),
    ("devices/input", "@bus", r"xen", "the machine has a PS/2 mouse and keyboard"),
    ("devices/video", "model@type", r"xen", "vmbatch adds a video card"),
    ("devices/controller", "@type", r"xenbus", "it is Xen's"),
    ("devices/memballoon", "@model", r"xen", "libvirt adds its own"),
)
_STILL_XEN = re.compile(r"\bxen|\bxvd|\bhvc\d", re.IGNORECASE)
_FREE_TEXT = ("name", "title", "description", "uuid", "metadata")


def convert(xml: bytes, file: str | Path) -> tuple[str, list[str]]:
    """Return the new text and notes for a person: what was left out, and what to do by hand.

    Raises SiteError for what is not well-formed XML (nothing is repaired) or no domain for Xen or KVM.
    """
    root = xmltext.parse(xml, file)
    if root.tag != "domain":
        raise SiteError(f"{file}:{root.line}: the root element is <{root.tag}>", "it must be <domain>")
    if root.get("type") not in ("xen", "kvm", "qemu", None):
        raise SiteError(f"{file}:{root.line}: a domain of type '{root.get('type')}' cannot be converted", "it must be xen")
    if not root.findall("devices"):
        raise SiteError(f"{file}:{root.line}: the domain has no <devices>", "a template has at least a disk and a card")
    try:
        found = [change for rule in _RULES for change in rule(root)]
    except SiteError as error:
        raise SiteError(f"{file}: {error.message}", error.hint) from None
    made = xmltext.apply(xml, [one for one in found if isinstance(one, Edit)])
    notes = [one for one in found if isinstance(one, Note)]
    left = [Note(one.line, f"{one.text} (line of the new file)") for one in _left(xmltext.parse(made, file))]
    return made.decode(), [f"line {one.line}: {one.text}" for one in sorted(notes, key=lambda note: note.line) + left]


def _for_xen(root: Element) -> bool:
    return root.get("type") in ("xen", None)


def _is_paravirtual(root: Element) -> bool:
    kind = root.find("os/type")
    return _for_xen(root) and (kind is None or kind.text in _PARAVIRTUAL)


def _domain(root: Element) -> Iterator[Change]:
    if _for_xen(root):
        yield xmltext.set_attribute(root, "type", "kvm")
    for hypervisor in root.findall("vbconfig/vbhypervisor"):
        if hypervisor.text in ("XEN3", "XEN4"):
            yield xmltext.set_text(hypervisor, "AUTO")


def _boot_loader(root: Element) -> Iterator[Change]:
    """Xen's boot loader runs on the host; on KVM a firmware starts the one in the image."""
    loaders, missing = root.findall("bootloader"), root.find("os") is None
    for number, loader in enumerate(loaders):
        yield xmltext.replace(loader, _OS) if missing and number == 0 else xmltext.remove(loader)
        why = "the image must start by itself; a bare FAT partition, as CernVM3's image for Xen, does not"
        yield Note(loader.line, f"{loader.text} is left out: {why}")
    for words in root.findall("bootloader_args"):
        yield xmltext.remove(words)
        yield Note(words.line, f"the boot loader's arguments are left out: {words.text}")
    if missing and not loaders:
        yield xmltext.insert_before(root.findall("devices")[0], _OS)


def _machine(root: Element) -> Iterator[Change]:
    system = root.find("os")
    if system is None:
        return
    kind = system.find("type")
    if kind is None:
        yield xmltext.append(system, _OS.splitlines()[1].strip())
    else:
        if kind.text in _PARAVIRTUAL:
            yield xmltext.set_text(kind, "hvm")
        if (kind.get("machine") or "").startswith("xen"):
            yield xmltext.set_attribute(kind, "machine", "pc")
    if _is_paravirtual(root):
        yield from map(xmltext.remove, system.findall("boot"))  # ignored on Xen, and no friend of <boot order=.../>
        for kernel in system.findall("kernel"):
            yield Note(kernel.line, f"the kernel {kernel.text} must be one that starts on hardware, not only on Xen")


def _disks(root: Element) -> Iterator[Change]:
    chosen = root.find("devices/interface/boot") or (root.find("os/boot") and not _is_paravirtual(root))
    yield from changes(root, mark_boot=_for_xen(root) and not chosen)


def _network(root: Element) -> Iterator[Change]:
    """The job's card stands where the first card stood."""
    cards = root.findall("devices/interface")
    if not root.findall("devices/vbnic"):
        if cards:
            yield xmltext.replace(cards[0], "<vbnic/>")
            yield Note(cards[0].line, f"the first <interface> ({_card(cards[0])}) is now the job's network card, <vbnic/>")
        else:
            yield xmltext.append(root.findall("devices")[0], "<vbnic/>")
        cards = cards[1:]
    for card in cards:
        for model in card.findall("model"):
            if model.get("type") == "netfront":
                yield xmltext.set_attribute(model, "type", "virtio")
        for script in card.findall("script"):
            yield xmltext.remove(script)
            yield Note(script.line, f"the script {script.get('path')} is left out: libvirt connects the card itself")


def _card(card: Element) -> str:
    words = [card.get("type") or "", *(" ".join(one.attributes.values()) for one in card.children if one.attributes)]
    return ", ".join(filter(None, words))


def _passed_through(root: Element) -> Iterator[Change]:
    for driver in root.findall("devices/hostdev/driver"):
        if driver.get("name") == "xen":
            yield xmltext.set_attribute(driver, "name", "vfio")


def _refused(root: Element) -> Iterator[Change]:
    for path, place, pattern, reason in _REFUSED:
        for element in root.findall(path):
            word = _word(element, place)
            if word is not None and re.search(rf"^(?:{pattern})$" if "@" in place else pattern, word):
                yield xmltext.remove(element)
                yield Note(element.line, f"<{element.tag}> {word} is left out: {reason}".replace("  ", " "))


def _word(element: Element, place: str) -> str | None:
    child, _, attribute = place.partition("@")
    holder = element.find(child) if child else element
    if not attribute:
        return element.text
    return "" if holder is None else holder.get(attribute) or ""


def _left(root: Element) -> Iterator[Note]:
    """What still speaks of Xen, or of disks by the names that they had there."""
    if root.tag in _FREE_TEXT or root.tag.startswith("vb"):
        return
    words = [root.tag] if re.match("xen(:|$)", root.tag) else [root.text, *root.attributes.values()]
    said = next((word for word in words if _STILL_XEN.search(word) and not word.startswith("/")), None)
    if said is not None:
        yield Note(root.line, f"<{root.tag}> still says '{said}'; KVM may not take it as Xen did")
    for child in root.children:
        yield from _left(child)


_RULES: tuple[Callable[[Element], Iterator[Change]], ...] = (
    _domain,
    _boot_loader,
    _machine,
    _disks,
    _network,
    _passed_through,
    _refused,
)
