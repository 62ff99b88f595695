"""Which image goes into which disk of the template, and how the guest uses it. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vmbatch import choices
from vmbatch.catalogue import is_url
from vmbatch.config import Config
from vmbatch.deviceorder import check_boot_disk
from vmbatch.disk import Disk, DiskPart, Origin
from vmbatch.errors import SiteError, UserError
from vmbatch.hashes import read_check
from vmbatch.hypervisors import KINDS, overlay_format
from vmbatch.machine import DRIVER_FORMATS, DiskWant
from vmbatch.model import Image, printable
from vmbatch.templates import Template

_PREFIX = {"virtio": "vd", "ide": "hd", "sata": "sd", "scsi": "sd", "usb": "sd", "xen": "xvd"}
NATIVE = ("raw", "qcow2")  # what a guest may work on; other formats are converted when they come in


def disks(config: Config, images: Mapping[str, Image], template: Template, scratch: Path) -> tuple[Disk, ...]:
    """Return the guest's disks. `images` is what the request names: "" is the one that it begins with.

    Raises UserError where the user's choice is not allowed or missing, SiteError where the template does not fit.
    """
    found: list[Disk] = []
    for want in template.machine.disks:
        if want.context:
            continue
        image = images.get(want.user.name) if want.user else None
        origin = _origin(config, template, want, image)
        if origin is not None:
            found.append(_disk(config, template.machine.hypervisor, want, image, origin, found, scratch))
    first = next((n for n, disk in enumerate(found) if disk.name == ""), 0)
    if template.machine.paravirtual and found:
        targets = [disk.target for disk in found]
        cdrom = template.machine.cdrom
        check_boot_disk(found[first].target, [*targets, *([str(cdrom.target)] if cdrom else [])])
    return tuple(replace(disk, name=disk.name or "image", boot=n == first) for n, disk in enumerate(found))


def _origin(config: Config, template: Template, want: DiskWant, image: Image | None) -> Origin | None:
    """Return where the content comes from; None: this disk is left out."""
    if image is not None and image.own:
        return _own(config, template, want, image)
    if image is not None and image.source is not None:
        kind = "url" if is_url(image.source) else "file"
        check = _check(image.checksum.partition(":")[::2]) if image.checksum else None
        if check is None and kind == "url" and image.sha512:
            check = ("sha512", image.sha512)
        return Origin(kind, image.source, image.copy_method, image.format, check=check)
    if want.source:
        return _fixed(config, want)
    if want.user and want.user.optional:
        return None
    if want.user and want.user.name:
        raise UserError(
            f"template {template.name} has a disk '{want.user.name}', and the VM request names no image for it",
            f"add image.{want.user.name}=IMAGE",
        )
    raise SiteError(f"template {template.name} puts the image's file into a disk, but the image has none", "add source=")


def _fixed(config: Config, want: DiskWant) -> Origin:
    """What <vbdisksource> says."""
    source = want["source"]
    if want["create"]:
        return Origin(
            "empty", source, want["create"], want["format"] or "qcow2", size_mib=int(want["size"]),
            owner=want["owner"] or "user", busy=want["busy"] or "wait",
        )  # fmt: skip
    declared = want["format"] or DRIVER_FORMATS.get(want.driver or "", want.driver) or None
    check = _check(want.check) if want.check else None
    if is_url(source):
        return Origin("url", source, want["copy_method"], declared, check=check)
    if "://" in source:
        raise SiteError(f"{source} is no address that images come from", "http, https, ftp and ftps are")
    return Origin("file", str(config.paths.images / source), want["copy_method"], declared or "qcow2", check=check)


def _check(said: tuple[str, str]) -> tuple[str, str]:
    check = read_check("hash", *said)
    return check.function, check.value


def _own(config: Config, template: Template, want: DiskWant, image: Image) -> Origin:
    """A user's own image, where <vbuserimage> allows it."""
    rules, text = want.user, str(image.source)
    assert rules is not None, "only a disk with <vbuserimage> is given one"
    tag = f"<vbuserimage{f' name={rules.name!r}' if rules.name else ''}"
    where = f"template {template.name}"
    most = rules.max_mib or config.users.max_image_mib
    common = {"by_user": True, "max_mib": most, "formats": rules.formats}
    if not KINDS[template.machine.hypervisor].virtio:  # no descriptor reaches them: they would open the path as root
        raise UserError(f"{where} is for {template.machine.hypervisor}, where users bring no images", "vmbatch image list")
    if is_url(text):
        if not choices.fits_url(text, rules.urls):
            allowed = f'{tag} urls="{" ".join(rules.urls)}"/>' if rules.urls else f"{tag}> has no urls="
            raise UserError(f"{where} does not allow images from {printable(text, 200)}", f"its rule is {allowed}")
        return Origin("url", text, "download", urls=rules.urls, **common)  # type: ignore[arg-type]
    if not rules.paths:
        raise UserError(
            f"{where} does not let users bring their own image, such as {printable(text, 200)}",
            f"its {tag}> has no paths=; vmbatch image list shows what there is",
        )
    return Origin("own", text, "shared", paths=rules.paths, **common)  # type: ignore[arg-type]


def _disk(
    config: Config,
    hypervisor: str,
    want: DiskWant,
    image: Image | None,
    origin: Origin,
    others: list[Disk],
    scratch: Path,
) -> Disk:
    use = _use(want, origin)
    chosen = image is not None and want.user is not None and not want.user.name
    pc = KINDS[hypervisor].virtio  # elsewhere the template's bus is the one that there is
    bus = image.disk_bus if image and chosen and not want.source and pc else want.bus or "virtio"
    target = want.target or ""
    if not target or (chosen and bus != (want.bus or "virtio")):
        target = _free(bus, {disk.target for disk in others})
    number, own_format = len(others), _file_format(hypervisor, want.driver, use, origin)
    suffix = own_format or "image"
    file = scratch / f"disk{number}.{suffix}"
    return Disk(
        name=want.user.name if want.user else target,
        element=want.element,
        target=target,
        bus=bus,
        use=use,
        file=file,
        format=own_format,
        base=Path(origin.source) if origin.kind == "file" and use != "direct" and not origin.check else None,
        base_format=origin.format if use in ("overlay", "copy", "readonly") else None,
        origin=origin,
        appears=config.paths.images / want.appears if want.appears else None,
        group=f"disk{number}" if origin.kind == "own" else None,
    )


def _use(want: DiskWant, origin: Origin) -> str:
    if want.readonly and origin.kind != "empty":
        return "readonly"
    if origin.kind == "empty" or origin.method == "download":
        return "direct"
    return "copy" if want["copy_on_write"] == "no" else "overlay"


def _file_format(hypervisor: str, driver: str | None, use: str, origin: Origin) -> str | None:
    """The format of the file that the guest writes to; None: as the image has it when it has been brought in."""
    if use == "overlay":
        return overlay_format(hypervisor, driver)
    if origin.kind == "empty":
        return KINDS[hypervisor].vhd if origin.format == "vhd-util-vhd" else origin.format
    return origin.format if origin.format in NATIVE else None


def _free(bus: str, used: set[str]) -> str:
    prefix = _PREFIX.get(bus, "vd")
    return next(f"{prefix}{chr(97 + n)}" for n in range(26) if f"{prefix}{chr(97 + n)}" not in used)


def assumed(found: tuple[Disk, ...], store: Path) -> tuple[Disk, ...]:
    """The disks as if every image had been brought in, for a look at the domain before that: formats as declared."""
    done = []
    for disk in found:
        format, base = disk.origin.format or "raw", disk.base
        if disk.origin.kind == "own":
            base = Path(disk.origin.source)
        elif base is None and disk.use != "direct":
            base = store / "objects" / f"HASH.{format}"
        done.append(replace(disk, base=base, base_format=format if base else None, format=disk.format or format))
    return tuple(done)


def layout(template: Template, found: tuple[Disk, ...]) -> tuple[DiskPart, ...]:
    """Return where the guest's parts lie. Raises SiteError where <vbdisk> names a disk that is not there."""
    targets = [disk.target for disk in found]
    parts = []
    for part in template.machine.layout:
        if part.target not in targets:
            raise SiteError(
                f"{template.file}:{part.line}: <vbdisk> names dev={part.target!r}",
                f"disks of this guest are: {', '.join(targets) or 'none'}",
            )
        parts.append(DiskPart(part.name, targets.index(part.target), part.partition))
    if template.machine.context == "DISK" and not parts and found:
        boot = next(n for n, disk in enumerate(found) if disk.boot)
        return (DiskPart("rootdisk", boot, 1),)
    return tuple(parts)
