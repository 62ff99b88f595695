"""vmbatch.toml -> Config: the one place that knows every key, its unit, its default and its meaning.

The tables below make the parser, `vmbatch config --explain` and vmbatch.toml(5). A key's name says its unit; a number
is in that unit, and a string may carry another: `max_guest_memory_mib = "2G"`.
"""

import os
import pwd
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from vmbatch import failpoints
from vmbatch.errors import SiteError, nearest
from vmbatch.quantities import memory_mib, seconds

SYSTEM_FILE = Path("/etc/vmbatch/vmbatch.toml")


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
class Testing:
    failpoint: str = key("", "stop the process at this place (name:kill|hang|raise); only for tests of vmbatch itself")


@dataclass(frozen=True, slots=True)
class Config:
    """The site's choices. `file` is None where there is no vmbatch.toml."""

    paths: Paths
    libvirt: Libvirt
    limits: Limits
    accelerator: Accelerator
    network: Network
    files: Files
    slurm: Slurm
    testing: Testing
    file: Path | None
    root: bool


SECTIONS: dict[str, Any] = {
    "paths": Paths,
    "libvirt": Libvirt,
    "limits": Limits,
    "accelerator": Accelerator,
    "network": Network,
    "files": Files,
    "slurm": Slurm,
    "testing": Testing,
}
CHOICES = {"network.default": ("nat", "user"), "network.addressing": ("static", "dhcp")}


def documented() -> Iterator[tuple[str, Field[Any]]]:
    """Yield (section, key) for every key, in order; the key's meaning is its metadata["help"]."""
    for section, kind in SECTIONS.items():
        for one in fields(kind):
            yield section, one


def user_file() -> Path:
    return _xdg("XDG_CONFIG_HOME", ".config") / "vmbatch" / "vmbatch.toml"


def load(file: Path | None = None) -> Config:
    """Read the configuration of this user. A missing default file means the defaults; a missing named one is an error.

    Raises SiteError naming file, key and the nearest valid key. As root, a file that others may write is refused.
    """
    root = os.geteuid() == 0
    chosen = file or (SYSTEM_FILE if root else user_file())
    values: dict[str, Any] = {}
    if file is not None or chosen.exists():
        values = read_toml(chosen, trusted=root)
    sections = {name: _section(chosen, name, kind, values.pop(name, {}), root) for name, kind in SECTIONS.items()}
    if values:
        wrong = next(iter(values))
        raise SiteError(f"{chosen}: there is no section [{wrong}]", f"the nearest is [{nearest(wrong, SECTIONS, 1)}]")
    failpoints.arm(sections["testing"].failpoint)
    return Config(**sections, file=chosen if file is not None or chosen.exists() else None, root=root)


def read_toml(file: Path, *, trusted: bool) -> dict[str, Any]:
    """Read a TOML file; with `trusted` it must be root's, and writable by nobody else (its folders too)."""
    if trusted:
        check_trusted(file)
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise SiteError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SiteError(f"{file} is not valid TOML: {error}") from error


def check_trusted(path: Path) -> None:
    """Raise SiteError unless only root may write `path` and every folder above it (sticky folders aside)."""
    for place in (path.resolve(), *path.resolve().parents):
        try:
            status = place.stat()
        except OSError as error:
            raise SiteError(f"cannot read {path}: {error.strerror}") from error
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_uid != 0:
            owner = _user_name(status.st_uid)
            raise SiteError(f"{place} belongs to {owner}, so root does not read {path}", f"chown root {place}")
        if status.st_mode & 0o022 and not sticky:
            raise SiteError(f"others than root may write {place}, so root does not read {path}", f"chmod go-w {place}")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _section(file: Path, name: str, kind: Any, values: Any, root: bool) -> Any:
    if not isinstance(values, dict):
        raise SiteError(f"{file}: {name} is a section, written [{name}]")
    known = {one.name: one for one in fields(kind)}
    result = _defaults(name, root)
    for word, value in values.items():
        if word not in known:
            raise SiteError(f"{file}: there is no key {name}.{word}", f"the nearest is {nearest(word, known, 1)}")
        result[word] = convert(f"{file}: {name}.{word}", known[word], value)
        allowed = CHOICES.get(f"{name}.{word}")
        if allowed and value not in allowed:
            raise SiteError(f"{file}: {name}.{word} is {value!r}", f"allowed are {', '.join(allowed)}")
    return kind(**result)


def convert(where: str, one: Field[Any], value: Any) -> Any:
    """Turn a TOML value into the field's type. `where` opens the SiteError of a wrong type or unit."""
    wanted = one.type
    if wanted is bool or wanted == "bool":
        if not isinstance(value, bool):
            raise SiteError(f"{where} is {value!r}", "write true or false")
        return value
    if wanted in (int, int | None):
        return _number(where, one.name, value)
    if wanted in (Path, Path | None):
        if not isinstance(value, str) or "\0" in value or not value:
            raise SiteError(f"{where} is {value!r}", "write a path in quotes")
        return Path(value)
    if wanted == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise SiteError(f"{where} is {value!r}", 'write a list of texts, such as ["a", "b"]')
        return tuple(value)
    if not isinstance(value, str):
        raise SiteError(f"{where} is {value!r}", "write a text in quotes")
    return value


def _number(where: str, name: str, value: Any) -> int:
    if isinstance(value, str) and name.endswith(("_mib", "_s")):
        try:
            return memory_mib(value) if name.endswith("_mib") else seconds(value)
        except ValueError as error:
            raise SiteError(f"{where} is {value!r}", str(error)) from None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        unit = {"_mib": "MiB", "_s": "seconds"}.get(name[name.rfind("_") :], "")
        raise SiteError(f"{where} is {value!r}", f"write a whole number{' of ' + unit if unit else ''}")
    return value


def _defaults(section: str, root: bool) -> dict[str, Any]:
    result = {one.name: one.default for one in fields(SECTIONS[section]) if one.default is not MISSING}
    if not root:
        result.update(_user_defaults().get(section, {}))
    return result


def _user_defaults() -> dict[str, dict[str, Any]]:
    """What differs for an ordinary user: their own directories, their own libvirt, no bridge."""
    data = _xdg("XDG_DATA_HOME", ".local/share") / "vmbatch"
    state = _xdg("XDG_STATE_HOME", ".local/state") / "vmbatch"
    return {
        "paths": {
            "images": data / "images",
            "catalogue": user_file().parent / "images.d",
            "templates": user_file().parent / "domain-templates",
            "state": state,
            "run": runtime_dir() / "vmbatch",
            "scratch": state / "scratch",
        },
        "libvirt": {"uri": "qemu:///session"},
        "accelerator": {"allow_tcg": True, "kernel": data / "images" / "tiny.vmlinuz"},
        "network": {"default": "user"},
    }


def _xdg(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else home() / fallback


def home() -> Path:
    return Path(pwd.getpwuid(os.geteuid()).pw_dir)


def runtime_dir() -> Path:
    """Return XDG_RUNTIME_DIR, or a private folder of this user below /tmp where no session set it."""
    value = os.environ.get("XDG_RUNTIME_DIR", "")
    if value.startswith("/") and os.access(value, os.W_OK):
        return Path(value)
    return Path(f"/tmp/vmbatch-runtime-{os.geteuid()}")


def private_dir(path: Path) -> Path:
    """Make a directory that only this user may enter, and make sure that nobody else owns it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise SiteError(f"{path} is not a private folder of this user", f"rm -r {path}")
    return path


def image_folders(config: Config) -> tuple[Path, ...]:
    """Folders of catalogue files, first match wins: this user's own, then the site's."""
    return (config.paths.catalogue,) if config.root else (config.paths.catalogue, Paths().catalogue)
