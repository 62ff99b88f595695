"""The keys of vmbatch.toml: one table with unit, default and meaning of each; vmbatch.toml(5) is made of it.

A key's name says its unit; a number is in that unit, and a string may carry another: `max_guest_memory_mib = "2G"`.
"""

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any


def key(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things lie. Defaults for root below; an ordinary user gets the XDG directories instead."""

    images: Path = key(Path("/var/lib/vmbatch/images"), "folder of image files; relative image sources start here")
    catalogue: Path = key(Path("/etc/vmbatch/images.d"), "folder of the image catalogue, one TOML file an image")
    templates: Path = key(
        Path("/etc/vmbatch/domain-templates"), "folder of the site's own templates; the packaged ones come after it"
    )
    state: Path = key(Path("/var/lib/vmbatch"), "journals, leases and slots; must survive a reboot")
    run: Path = key(Path("/run/vmbatch"), "what the job's shell needs; short, since unix sockets lie below it")
    store: Path = key(Path("/var/lib/vmbatch/store"), "fetched and imported images, and disks that are made once")
    tarfiles: Path = key(Path("/var/lib/vmbatch/tarfiles"), "folder of tar files; relative names in <vbtarfile> start here")
    scratch: Path = key(
        Path("/var/lib/vmbatch/scratch"), "where overlays are made; %j is the job, %u the user, %t the job's TMPDIR"
    )


@dataclass(frozen=True, slots=True)
class Libvirt:
    uri: str = key("qemu:///system", "libvirt connection")
    call_timeout_s: int = key(30, "longest time for one libvirt call; a libvirtd that takes longer counts as hung")


@dataclass(frozen=True, slots=True)
class Limits:
    max_guests: int = key(16, "guests that may run at once on this node")
    max_guest_memory_mib: int = key(0, "memory of all guests together, QEMU's own included; 0: no limit of ours")
    slot_timeout_s: int = key(60, "how long a start waits for a free slot")
    boot_timeout_s: int = key(300, "how long a guest may take to say that it is ready")
    stop_timeout_s: int = key(20, "how long a stop waits for a start that is under way, before it kills it")
    memory_overhead_mib: int = key(96, "part of the job's memory that QEMU itself needs, besides 1/64 of the memory")
    keep_days: int = key(14, "how long the journals and logs of ended jobs are kept")


@dataclass(frozen=True, slots=True)
class Accelerator:
    allow_tcg: bool = key(False, "allow software emulation where KVM does not work; it is slow and no security boundary")
    kernel: Path = key(
        Path("/var/lib/vmbatch/images/tiny.vmlinuz"),
        "Linux kernel for the boot probe; else the newest in /boot is used",
    )


@dataclass(frozen=True, slots=True)
class Network:
    default: str = key("nat", "network of a guest: nat, or user (slirp, for use without root)")
    name: str = key("vmbatch", "libvirt network that vmbatch makes for nat; also the name of its nftables tables")
    bridge: str = key("vmbatch0", "bridge of that network")
    subnet: str = key("10.213.0.0/22", "IPv4 subnet of that network; slot i has the address i + 16")
    addressing: str = key("static", "how a guest on nat gets its address: static (written in its context) or dhcp")
    port_base: int = key(22200, "first loopback port for ssh into guests on the user network")
    deny: tuple[str, ...] = key(
        ("169.254.0.0/16",), "IPv4 networks that guests on nat may not reach, besides the node itself"
    )


@dataclass(frozen=True, slots=True)
class Files:
    max_input_mib: int = key(1024, "how much is brought into a guest before the job")
    max_output_mib: int = key(10240, "how much is collected from a guest after the job")
    max_files: int = key(100000, "how many files are brought in or collected")
    collect_timeout_s: int = key(120, "how long the epilogue may collect what the job's shell could not")


@dataclass(frozen=True, slots=True)
class Slurm:
    comment: bool = key(False, "take requests from a token vm=... in --comment, for sites without the plugin")
    bin: Path = key(Path("/usr/bin"), "folder of scontrol and squeue")
    conf: Path = key(Path("/etc/slurm/slurm.conf"), "configuration that they use")


@dataclass(frozen=True, slots=True)
class Store:
    keep_days: int = key(
        0, "an image, or a disk made once, that no job used for so many days is evicted; 0: never for its age"
    )
    high_mib: int = key(0, "when the store holds more, images are evicted, those unused longest first; 0: no limit")
    low_mib: int = key(0, "until it holds no more than this; 0: nine tenths of high_mib")
    convert_timeout_s: int = key(3600, "how long the conversion of an image into qcow2 may take")
    once_timeout_s: int = key(3600, "how long a job waits for the first job that uses a disk made once")


@dataclass(frozen=True, slots=True)
class Fetch:
    user: str = key("nobody", "the user as whom images are fetched from the net, and converted")
    connect_timeout_s: int = key(20, "how long a server may take to accept a connection")
    stall_timeout_s: int = key(60, "a transfer that brings less than 1 KiB in this time is given up")
    total_timeout_s: int = key(3600, "how long one image may take")
    max_image_mib: int = key(102400, "no image from the net may be larger, nor describe a larger disk")
    proxy: str = key("", "HTTP proxy, such as http://squid.example.org:3128")
    ca_file: str = key("", "certificates that https and ftps servers must be signed with; empty: the system's")


@dataclass(frozen=True, slots=True)
class Users:
    templates: tuple[str, ...] = key(
        (), "templates for images that users bring by path or URL, the first one the default; none: users bring none"
    )
    max_image_mib: int = key(20480, "largest image of a user's own, and largest disk that it may describe")
    open_timeout_s: int = key(20, "how long the opening of a user's file may take")


@dataclass(frozen=True, slots=True)
class Testing:
    failpoint: str = key("", "stop the process at this place (name:kill|hang|raise); only for tests of vmbatch itself")


SECTIONS: dict[str, Any] = {
    "paths": Paths,
    "libvirt": Libvirt,
    "limits": Limits,
    "accelerator": Accelerator,
    "network": Network,
    "files": Files,
    "store": Store,
    "fetch": Fetch,
    "users": Users,
    "slurm": Slurm,
    "testing": Testing,
}
CHOICES = {"network.default": ("nat", "user"), "network.addressing": ("static", "dhcp")}


def documented() -> Iterator[tuple[str, Field[Any]]]:
    """Yield (section, key) for every key, in order; the key's meaning is its metadata["help"]."""
    for section, kind in SECTIONS.items():
        for one in fields(kind):
            yield section, one


def toml(value: Any) -> str:
    """Spell a value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(toml(one) for one in value) + "]"
    text = str(value) if isinstance(value, Path | str) else ""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
