"""images.d/*.toml -> Image: what the site offers, one file an image.

Keys are the fields of model.Image, in the units of their names; `name` is the file's stem.
"""

import grp
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from vmbatch.config import Config, Paths, convert, read_toml
from vmbatch.errors import SiteError, UserError, nearest
from vmbatch.model import Image, Person, printable

KEYS: dict[str, str] = {
    "source": "the image file; a relative name lies in paths.images",
    "format": "qcow2 or raw; never guessed",
    "description": "one line for people",
    "template": "domain template",
    "templates": "other templates that a user may ask for with template=",
    "context": "CDROM or CLOUDINIT, where the template's own choice does not fit",
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
    "sha512": "hash of the image file, written by vmbatch image build",
}
CHOICES: dict[str, tuple[str, ...]] = {
    "format": ("qcow2", "raw"),
    "context": ("CDROM", "CLOUDINIT"),
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
    for file, folder in _files(config):
        if file.stem not in images:
            images[file.stem] = read_entry(file, folder, trusted=config.root)
    return images


def find(config: Config, name: str) -> Image:
    """Return one image of the catalogue. An unknown name is a UserError with the nearest names."""
    for file, folder in _files(config):
        if file.stem == name:
            return read_entry(file, folder, trusted=config.root)
    known = [file.stem for file, _ in _files(config)]
    said = printable(name, 80)
    if not known:
        raise UserError(f"there is no image '{said}': the catalogue is empty", "vmbatch image build tiny")
    raise UserError(f"there is no image '{said}'", f"the nearest are: {nearest(name, known)}")


def _files(config: Config) -> Iterator[tuple[Path, Path]]:
    places = [(config.paths.catalogue, config.paths.images)]
    if not config.root:
        places.append((Paths().catalogue, Paths().images))
    for catalogue, images in places:
        yield from ((file, images) for file in sorted(catalogue.glob("*.toml")))


def read_entry(file: Path, folder: Path, *, trusted: bool) -> Image:
    """Read one catalogue file. `folder` is where relative sources lie."""
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
    if "source" not in result:
        raise SiteError(f"{file}: source is missing", f'add: source = "{file.stem}.qcow2"')
    for word in ("source", "kernel", "initrd"):
        if word in result:
            result[word] = folder / result[word]
    return Image(**result)


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
