"""vmbatch.toml -> Config. The keys are in settings.py."""

import os
import pwd
import stat
import tomllib
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

from vmbatch import failpoints
from vmbatch.errors import SiteError, nearest
from vmbatch.quantities import memory_mib, seconds
from vmbatch.settings import (
    CHOICES,
    SECTIONS,
    Accelerator,
    Fetch,
    Files,
    Libvirt,
    Limits,
    Network,
    Paths,
    Slurm,
    Store,
    Testing,
    Users,
)

SYSTEM_FILE = Path("/etc/vmbatch/vmbatch.toml")


@dataclass(frozen=True, slots=True)
class Config:
    """The site's choices. `file` is None where there is no vmbatch.toml."""

    paths: Paths
    libvirt: Libvirt
    limits: Limits
    accelerator: Accelerator
    network: Network
    files: Files
    store: Store
    fetch: Fetch
    users: Users
    slurm: Slurm
    testing: Testing
    file: Path | None
    root: bool


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
            "store": data / "store",
            "tarfiles": data / "tarfiles",
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
