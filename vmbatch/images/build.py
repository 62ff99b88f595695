"""`vmbatch image build`: make an image, hash it, put it and its catalogue entry in place; or leave nothing behind."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from vmbatch.catalogue import NAME
from vmbatch.config import Config
from vmbatch.errors import SiteError, UserError
from vmbatch.images import store
from vmbatch.pids import Identity, identify

RECIPES = ("tiny", "debian12")


def build(
    config: Config,
    recipe: str,
    *,
    name: str,
    extra: Sequence[str] = (),
    kernel: str = "cloud",
    size_mib: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Build a recipe under a name, replacing an older image of that name. Returns the catalogue file.

    size_mib is the size of its disk; None: the recipe's.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"'{name}' cannot be an image's name", "use letters, digits, '_', '.' and '-'")
    module = import_module(f"vmbatch.images.{recipe}")
    folder = config.paths.images
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    config.paths.catalogue.mkdir(parents=True, exist_ok=True, mode=0o755)
    sweep(folder)
    with store.unused(config, folder / f"{name}.qcow2"):
        pass  # better said now than after the work
    me = identify(os.getpid())
    work = Path(tempfile.mkdtemp(prefix=f".build-{os.getpid()}-{me.start if me else 0}-", dir=folder))
    try:
        target = work / f"{name}.qcow2"
        parts = module.build(work, target, extra, kernel, size_mib or module.SIZE_MIB, say)
        say("hashing")
        entry = {**module.ENTRY, **{part: path.name for part, path in parts.items()}, "sha512": sha512(target)}
        with store.unused(config, folder / target.name):
            for path in (target, *parts.values()):
                path.chmod(0o444)
                put(path, folder / path.name)
        return register(config, name, {"source": target.name, "format": "qcow2", **entry})
    finally:
        shutil.rmtree(work, ignore_errors=True)


def put(source: Path, target: Path) -> None:
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(target)


def register(config: Config, name: str, entry: dict[str, Any]) -> Path:
    file = config.paths.catalogue / f"{name}.toml"
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
    fresh = file.with_suffix(".new")
    fresh.write_text(f"# written by vmbatch image\n{text}")
    fresh.chmod(0o644)
    fresh.replace(file)
    return file


def sha512(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


def sweep(folder: Path) -> None:
    """Remove what killed builds left. A build still running keeps its folder."""
    for left in folder.glob(".build-*-*-*"):
        words = left.name.split("-")
        try:
            owner = Identity(int(words[1]), int(words[2]))
        except ValueError:
            continue
        if identify(owner.pid) != owner:
            shutil.rmtree(left, ignore_errors=True)
    if not os.access(folder, os.W_OK):
        raise SiteError(f"cannot write to {folder}", "run as root, or set paths.images")
