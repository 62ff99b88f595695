"""The nouns. All are frozen: a thing that changed is another thing.

Reading order: Job (what the scheduler says), Request (what the user asks), Image (what the site offers), Node (what this
node can give), Guest (what will boot), Payload (what the guest is told).
"""

import re
from dataclasses import dataclass
from pathlib import Path

from vmbatch.disk import Archive, Disk, DiskPart, Own
from vmbatch.names import make_key

SCHEMA = 1


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

    image: str  # of the catalogue, or the user's own: an absolute path or a URL
    template: str | None = None
    memory_mib: int | None = None
    cpus: int | None = None
    inputs: tuple[str, ...] | None = None  # None: what the template says; (): nothing
    images: tuple[tuple[str, str], ...] | None = None  # (name of a <vbuserimage>, image)
    network: str | None = None
    tars: tuple[str, ...] | None = None
    kernel_args: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    root: str | None = None
    cdrom: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """An entry of the catalogue: a disk that the site offers, and the machine that it wants."""

    name: str
    source: str | None = None  # an absolute path or a URL; None: the template's disks have theirs
    format: str = "qcow2"
    copy_method: str = "shared"
    checksum: str | None = None  # "sha256:..."
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
    own: bool = False  # a user's own image, not one of the catalogue

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of this node that it needs."""
        local = Path(self.source) if self.source and self.source.startswith("/") else None
        return tuple(filter(None, (local, self.kernel, self.initrd)))


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
    layout: tuple[DiskPart, ...]
    written: tuple[str, ...]  # files of the template's own disks, of which only one guest may be the writer
    archives: tuple[Archive, ...]
    tars: tuple[Own, ...]  # the user's, unpacked as the user
    iso: Path
    cdrom: str | None  # target device of the drive with the context: hdc; None: there is none
    own_cdrom: Own | None
    job_path: str | None
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
    kernel: Path | Own | None
    initrd: Path | Own | None
    kernel_args: str

    @property
    def job_kernel(self) -> Path | None:
        """The job's copy of a kernel that is booted directly."""
        return self.scratch / "kernel" if self.kernel else None

    @property
    def job_initrd(self) -> Path | None:
        return self.scratch / "initrd" if self.initrd else None

    @property
    def brought(self) -> bool:
        """Whether anything in it is the user's own."""
        mine = any(disk.origin.by_user for disk in self.disks)
        return mine or self.own_cdrom is not None or isinstance(self.kernel, Own) or isinstance(self.initrd, Own)

    @property
    def kept(self) -> bool:
        """Whether this guest writes to a disk that outlives it."""
        kept = [disk for disk in self.disks if disk.origin.method == "once" and disk.use == "direct"]
        return any(self.scratch not in disk.file.parents for disk in kept)

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
    job_path: str  # where scripts of the job lie; "": in a folder of the helper's own
    nics: tuple[Nic, ...]
    client_public_key: str
    host_private_key: str
    host_public_key: str


def printable(text: str, limit: int = 2000) -> str:
    """Make text from a guest or a user safe for a log or a terminal: printable characters only, bounded."""
    return re.sub(r"[^\x20-\x7e\n\t]", "?", text[:limit])
