"""The nouns. All are frozen: a thing that changed is another thing.

Reading order: Job (what the scheduler says), Request (what the user asks), Image (what the site offers), Node (what this
node can give), Guest (what will boot), Payload (what the guest is told).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

SCHEMA = 1
KEY_LENGTH = 64


def safe(text: str, also: str = "") -> str:
    """Spell any text with `[A-Za-z0-9._~]` (and `also`) only; different texts stay different."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._" + also) else f"~{ord(c):02x}" for c in text)


def short_hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:length]


def tap_prefix(network: str) -> str:
    """How the interfaces of all guests on one network begin: packet filters of two sites on a host keep apart by it."""
    return "v" + short_hash(network, 4)


def tap_name(network: str, guest: str) -> str:
    """Name a guest's interface on the host: 15 characters, the kernel's limit."""
    return tap_prefix(network) + short_hash(guest, 10)


def make_key(scheduler: str, cluster: str, node: str, job_id: str) -> str:
    """Name a job on a node: `slurm-prod-n-12-4711`. Only the node's part may hold `-`, so no two jobs share a key.

    A key longer than KEY_LENGTH characters (unix socket paths are built from it) keeps its head and ends in a hash.
    """
    key = "-".join((safe(scheduler), safe(cluster), safe(node, "-"), safe(job_id)))
    if len(key) <= KEY_LENGTH:
        return key
    return key[: KEY_LENGTH - 17] + "~" + short_hash(key, 16)


@dataclass(frozen=True, slots=True)
class Job:
    """A scheduler's unit of work on this node, as the scheduler tells it."""

    scheduler: str
    cluster: str
    node: str
    id: str
    user: str
    uid: int
    gid: int
    workdir: Path
    request: str | None  # None: the job asks for no VM
    asked_by: str = "option"  # how the request came: option, comment, command
    tmpdir: Path | None = None  # None: the scheduler gives the job none, or does not tell

    @property
    def key(self) -> str:
        return make_key(self.scheduler, self.cluster, self.node, self.id)


@dataclass(frozen=True, slots=True)
class Allocation:
    """What the scheduler granted the job on this node. None: the scheduler sets no limit there."""

    cpus: int | None
    memory_mib: int | None


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asks. None: the user leaves it to the site."""

    image: str
    template: str | None = None
    memory_mib: int | None = None
    cpus: int | None = None
    inputs: tuple[str, ...] | None = None  # None: the submit directory itself; (): nothing


@dataclass(frozen=True, slots=True)
class Image:
    """An entry of the catalogue: a disk that the site offers, and the machine that it wants."""

    name: str
    source: Path
    format: str = "qcow2"
    description: str = ""
    template: str = "default"
    templates: tuple[str, ...] = ()  # others that a user may ask for
    context: str | None = None  # None: what the template says
    memory_mib: int = 512
    minimum_memory_mib: int = 128
    cpus: int = 1
    users: tuple[str, ...] = ()  # empty with empty groups: everybody
    groups: tuple[str, ...] = ()
    kernel: Path | None = None  # None: the image boots by itself
    initrd: Path | None = None
    kernel_args: str = ""
    boot_timeout_s: int | None = None  # None: the site's
    disk_bus: str = "virtio"
    nic_model: str = "virtio"
    firmware: str = "bios"
    clock: str = "utc"
    video: str = "vga"
    input: str | None = None  # None: what the machine has anyway
    sha512: str | None = None  # None: not known


@dataclass(frozen=True, slots=True)
class Person:
    """A passwd entry with all groups: (name, gid), the primary one first."""

    name: str
    uid: int
    gid: int
    home: Path
    groups: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Node:
    """What this node and this allocation offer to one job."""

    name: str
    boot_id: str
    person: Person
    allocation: Allocation
    hypervisor: str  # "kvm" or "qemu", libvirt's words
    accelerator: str  # why, in a sentence
    memory_mib: int = 1 << 40  # of the whole node; the default: not known here


@dataclass(frozen=True, slots=True)
class Size:
    """How big the guest will be. host_memory_mib is what QEMU needs in all."""

    cpus: int
    memory_mib: int
    host_memory_mib: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A guest's place on the node: address and card follow from the index; the port is for user networking."""

    index: int
    port: int


@dataclass(frozen=True, slots=True)
class Disk:
    """An overlay on a base that is never written."""

    target: str  # vda, hda, sda
    bus: str
    overlay: Path
    base: Path
    base_format: str


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card. address and gateway are None where the guest uses DHCP."""

    network: str  # a module of vmbatch/networks
    mac: str
    model: str
    host_device: str
    source: str  # libvirt network's name; "" for user networking
    address: str | None = None  # with prefix length: 10.0.0.5/24
    gateway: str | None = None
    dns: tuple[str, ...] = ()
    ssh_host: str = "127.0.0.1"
    ssh_port: int = 22


@dataclass(frozen=True, slots=True)
class Guest:
    """What will boot: every default applied, every name chosen. Stored as guest.json; holds no secret."""

    schema: int
    key: str
    n: int
    name: str
    uuid: str
    hostname: str
    boot_id: str
    scheduler: str
    cluster: str
    node: str
    job_id: str
    asked_by: str
    person: Person
    request: str
    image: str
    image_sha512: str | None
    template: str
    context: str
    hypervisor: str
    accelerator: str
    cpus: int
    memory_mib: int
    slot: int
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    iso: Path
    cdrom: str  # target device of the drive with the context: hdc
    console: Path
    state: Path  # the site's state folder: two sites on one host tell their domains apart by it
    run_dir: Path
    scratch: Path
    workdir: Path
    inputs: tuple[str, ...] | None
    boot_timeout_s: int
    firmware: str
    clock: str
    video: str
    input: str | None
    kernel: Path | None
    initrd: Path | None
    kernel_args: str

    @property
    def own_kernel(self) -> Path | None:
        """The job's copy of a kernel that is booted directly."""
        return self.kernel and self.scratch / "kernel"

    @property
    def own_initrd(self) -> Path | None:
        return self.initrd and self.scratch / "initrd"

    @property
    def nic(self) -> Nic:
        """The first card: the one that the job's shell uses."""
        return self.nics[0]


@dataclass(frozen=True, slots=True)
class Payload:
    """What the guest is told, the same whichever way it is brought. Private keys are OpenSSH PEM text."""

    person: Person
    hostname: str
    instance: str
    workdir: Path
    nics: tuple[Nic, ...]
    client_public_key: str
    host_private_key: str
    host_public_key: str


def to_json(thing: Any) -> str:
    """Spell a dataclass of this module as JSON with sorted keys; paths become strings."""
    return json.dumps(asdict(thing), default=str, indent=1, sort_keys=True) + "\n"


def from_json(kind: type[Any], text: str) -> Any:
    """Build a dataclass of this module from what to_json wrote. Raises ValueError on anything else."""
    try:
        return _build(kind, json.loads(text))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error


def _build(kind: Any, value: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        return _build(next(arm for arm in get_args(kind) if arm is not NoneType), value)
    if get_origin(kind) is tuple:
        arms = get_args(kind)
        if len(arms) == 2 and arms[1] is Ellipsis:
            return tuple(_build(arms[0], item) for item in value)
        return tuple(_build(arm, item) for arm, item in zip(arms, value, strict=True))
    if kind is Path:
        return Path(value)
    if isinstance(value, Mapping):
        hints = get_type_hints(kind)
        return kind(**{f.name: _build(hints[f.name], value[f.name]) for f in fields(kind)})
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value


def printable(text: str, limit: int = 2000) -> str:
    """Make text from a guest or a user safe for a log or a terminal: printable characters only, bounded."""
    return re.sub(r"[^\x20-\x7e\n\t]", "?", text[:limit])
