"""images.d/*.toml -> Image: what the site offers, one file an image.

Keys are the fields of model.Image, in the units of their names; `name` is the file's stem.
"""

import grp
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from vmbatch.config import Config, convert, read_toml
from vmbatch.errors import SiteError, UserError, nearest
from vmbatch.hashes import read_check
from vmbatch.model import Image, Person, Request, printable
from vmbatch.settings import Paths

KEYS: dict[str, str] = {
    "source": "the image: a file (a relative name lies in paths.images), sha512:HASH (an image of the store), or a URL; "
    "without it the template's disks have theirs",
    "format": "format of the file; never guessed",
    "copy_method": "for a URL: shared, fetched once and kept in the store, or download, once for each job",
    "checksum": "hash that a fetched image must have, such as sha256:HEX",
    "description": "one line for people",
    "template": "domain template",
    "templates": "other templates that a user may ask for with template=",
    "context": "CDROM, CLOUDINIT or DISK, where the template's own choice does not fit",
    "memory_mib": "memory of the guest where the scheduler grants none",
    "minimum_memory_mib": "a job that gives the guest less is refused",
    "cpus": "processors of the guest where the scheduler grants none",
    "users": "who may use the image; with groups also empty: everybody",
    "groups": "groups that may use the image",
    "kernel": "boot this kernel directly instead of the image's own boot loader (quicker)",
    "initrd": "initial RAM disk that goes with kernel",
    "kernel_args": "kernel command line that goes with kernel",
    "boot_timeout_s": "how long this image may take to get ready; else limits.boot_timeout_s",
    "disk_bus": "bus of the disks",
    "nic_model": "model of the network card",
    "firmware": "firmware",
    "clock": "what the guest takes the hardware clock for; localtime for Windows",
    "video": "video adapter",
    "input": "extra pointer device; tablet for Windows",
    "sha512": "hash of the image, written by vmbatch image build and import",
}
CHOICES: dict[str, tuple[str, ...]] = {
    "format": ("qcow2", "raw", "vmdk", "vdi", "vpc", "vhdx"),
    "copy_method": ("shared", "download"),
    "context": ("CDROM", "CLOUDINIT", "DISK"),
    "disk_bus": ("virtio", "ide", "sata", "scsi"),
    "nic_model": ("virtio", "e1000", "rtl8139", "ne2k_pci", "pcnet"),
    "firmware": ("bios", "efi"),
    "clock": ("utc", "localtime"),
    "video": ("vga", "cirrus", "virtio", "none"),
    "input": ("tablet", "mouse"),
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


def read(config: Config) -> dict[str, Image]:
    """Return all images by name. Raises SiteError naming file, key and the nearest valid one."""
    images: dict[str, Image] = {}
    for file, paths in _files(config):
        if file.stem not in images:
            images[file.stem] = read_entry(file, paths.images, paths.store, trusted=config.root)
    return images


def find(config: Config, name: str) -> Image:
    """Return one image of the catalogue. An unknown name is a UserError with the nearest names."""
    for file, paths in _files(config):
        if file.stem == name:
            return read_entry(file, paths.images, paths.store, trusted=config.root)
    known = [file.stem for file, _ in _files(config)]
    said = printable(name, 80)
    if not known:
        raise UserError(f"there is no image '{said}': the catalogue is empty", "vmbatch image build tiny")
    raise UserError(f"there is no image '{said}'", f"the nearest are: {nearest(name, known)}")


def _files(config: Config) -> Iterator[tuple[Path, Paths]]:
    for paths in [config.paths] if config.root else [config.paths, Paths()]:
        yield from ((file, paths) for file in sorted(paths.catalogue.glob("*.toml")))


def read_entry(file: Path, folder: Path, store: Path, *, trusted: bool) -> Image:
    """Read one catalogue file. `folder` is where relative sources lie, `store` where those named by their hash do."""
    if not NAME.fullmatch(file.stem):
        raise SiteError(f"{file}: an image's name holds letters, digits, '_', '.' and '-'", f"mv {file} NAME.toml")
    values = read_toml(file, trusted=trusted)
    known = {one.name: one for one in fields(Image) if one.name in KEYS}
    result: dict[str, Any] = {"name": file.stem}
    for word, value in values.items():
        if word not in known:
            raise SiteError(f"{file}: there is no key {word}", f"the nearest is {nearest(word, known, 1)}")
        result[word] = convert(f"{file}: {word}", known[word], value)
        if word in CHOICES and value not in CHOICES[word]:
            raise SiteError(f"{file}: {word} is {value!r}", f"allowed are {', '.join(CHOICES[word])}")
    if "source" in result:
        result["source"] = _source(file, folder, store, result["source"])
    if result.get("checksum"):
        read_check(f"{file}: checksum", *result["checksum"].partition(":")[::2])
    for word in ("kernel", "initrd"):
        if word in result:
            result[word] = folder / result[word]
    return Image(**result)


def _source(file: Path, folder: Path, store: Path, text: str) -> str:
    """Return an absolute path or a URL."""
    if is_url(text):
        return text
    if text.startswith("sha512:"):
        found = sorted((store / "objects").glob(f"{text.removeprefix('sha512:')}.*"))
        if not re.fullmatch(r"sha512:[0-9a-f]{128}", text) or not found:
            raise SiteError(f"{file}: the store has no image {text[:40]}...", "vmbatch image import SOURCE --name NAME")
        return str(found[0])
    if not text:
        raise SiteError(f"{file}: source is empty", f'write: source = "{file.stem}.qcow2"')
    return str(folder / text)


def is_url(text: str) -> bool:
    return re.match(r"(https?|ftps?)://", text, re.ASCII) is not None


def is_own(text: str) -> bool:
    """Whether a request means an image of the user's own: a path or a URL."""
    return text.startswith("/") or "://" in text


def own(config: Config, text: str) -> Image:
    """Return an image that a user brings. UserError where this site's users bring none."""
    if not config.users.templates:
        raise UserError(
            f"users of this site bring no images of their own, such as {printable(text, 200)}",
            "choose one of the catalogue: vmbatch image list",
        )
    if "://" in text and not is_url(text):
        raise UserError(f"{printable(text, 200)} is no address that images come from", "write https://HOST/PATH")
    first, *more = config.users.templates
    return Image(name=text, source=text, template=first, templates=tuple(more), own=True)


def choose(config: Config, request: Request) -> dict[str, Image]:
    """Return the images that a request names: "" is the one that it begins with. Raises UserError or SiteError."""
    named = {"": request.image, **dict(request.images or ())}
    return {name: own(config, text) if is_own(text) else find(config, text) for name, text in named.items()}


def permit(image: Image, person: Person) -> None:
    """Raise UserError where the image is not for this person."""
    names = {name for name, _ in person.groups}
    if not image.users and not image.groups:
        return
    if person.name not in image.users and not names & set(image.groups):
        raise UserError(f"image {image.name} is not open to user {person.name}", "ask the administrator, or use another")


def unknown_groups(image: Image) -> list[str]:
    """Return the entry's groups that do not exist on this node: for `vmbatch doctor`."""
    known = {group.gr_name for group in grp.getgrall()}
    return [name for name in image.groups if name not in known]
