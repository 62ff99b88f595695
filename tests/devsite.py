"""A site of vmbatch for tests, demo and benchmarks: its own folders, network and configuration; images are built once."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from vmbatch import config, lifecycle

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # tests that run at once keep apart
NETWORK = f"vmbtest{WORKER}"
ROOT = Path(__file__).resolve().parent.parent
DEV = Path(f"/var/tmp/vmbatch-dev-{os.geteuid()}")
VMBATCH = Path(sys.executable).parent / "vmbatch"
IMAGES: dict[str, tuple[str, ...]] = {
    "tiny": ("tiny",),
    "tiny-python": ("tiny", "--package", "python3-minimal"),
    "tiny-generic": ("tiny", "--kernel", "generic"),
    "tiny-small": ("tiny", "--size", "96M"),
    "debian12": ("debian12",),
}


def config_text(folder: Path, run: Path, **sections: dict[str, Any]) -> str:
    """Return a vmbatch.toml for a site below `folder`; sections override or add keys."""
    values: dict[str, dict[str, Any]] = {
        "paths": {
            "images": DEV / "images",
            "store": folder / "store",
            "tarfiles": folder / "tarfiles",
            "catalogue": DEV / "images.d",
            "templates": folder / "templates",
            "state": folder / "state",
            "run": run,
            "scratch": folder / "scratch",
        },
        "accelerator": {"allow_tcg": True, "kernel": DEV / "images" / "tiny.vmlinuz"},
    }
    if os.geteuid() == 0:
        values["network"] = {"name": NETWORK, "bridge": NETWORK, "subnet": f"10.214.{4 * WORKER}.0/22"}
    values.setdefault("network", {})["port_base"] = 22200 + 100 * WORKER
    for name, keys in sections.items():
        values.setdefault(name, {}).update(keys)
    lines = []
    for name, keys in values.items():
        lines.append(f"[{name}]")
        for word, value in keys.items():
            text = (
                str(value).lower() if isinstance(value, bool) else value if isinstance(value, int | list) else f'"{value}"'
            )
            lines.append(f"{word} = {text}")
    return "\n".join(lines) + "\n"


def image(name: str) -> None:
    """Have an image in DEV; built again only when what makes it has changed."""
    DEV.mkdir(mode=0o755, exist_ok=True)
    with open(DEV / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _image(name)


def _image(name: str) -> None:
    stamp = DEV / f"{name}.stamp"
    digest = hashlib.sha256(repr(IMAGES[name]).encode())
    for recipe in ("bootdisk", "build", "debian12", "packages", "tiny"):
        digest.update((ROOT / f"vmbatch/images/{recipe}.py").read_bytes())
    for file in sorted((ROOT / "vmbatch/guest/tiny").iterdir()):
        digest.update(file.read_bytes())
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    conf = DEV / f"{name}.build.toml"
    conf.write_text(config_text(DEV, DEV / "run"))
    recipe, *options = IMAGES[name]
    argv = [VMBATCH, "--config", conf, "image", "build", recipe, "--name", name, *options]
    print(f"building image {name} ...", file=sys.stderr, flush=True)
    subprocess.run([str(word) for word in argv], check=True)
    stamp.write_text(digest.hexdigest())


class Site:
    """A site below a folder of its own. As a context manager it takes itself away."""

    def __init__(self, **sections: dict[str, Any]) -> None:
        DEV.mkdir(mode=0o755, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="site-", dir=DEV))
        self.folder.chmod(0o755)
        base = Path("/run") if os.geteuid() == 0 else self.folder
        self.run_dir = base / f"vmb{self.folder.name[-8:]}"
        self.config = self.folder / "vmbatch.toml"
        self.sections = sections
        if os.geteuid() == 0:  # libvirt is one for all sites of this machine: no two jobs of theirs have one name
            (self.folder / "state" / "local").mkdir(parents=True)
            (self.folder / "state" / "local" / str(10000 * WORKER)).touch()
        self.configure()

    def configure(self, **sections: dict[str, Any]) -> None:
        """Write the configuration anew, with these sections on top of the site's own."""
        merged = {name: dict(keys) for name, keys in self.sections.items()}
        for name, keys in sections.items():
            merged.setdefault(name, {}).update(keys)
        self.config.write_text(config_text(self.folder, self.run_dir, **merged))
        self.config.chmod(0o644)

    def own_images(self) -> None:
        """Give the site a catalogue of its own, with the tiny image in it."""
        if "paths" not in self.sections:
            self.sections["paths"] = {"catalogue": self.folder / "images.d"}
            self.configure()
            entry = tomllib.loads((DEV / "images.d" / "tiny.toml").read_text())
            files = {key: str(DEV / "images" / entry[key]) for key in ("source", "kernel", "initrd")}
            self.offer("tiny", **{**entry, **files})

    def offer(self, name: str, **keys: Any) -> None:
        """Write a catalogue entry."""
        self.own_images()
        (self.folder / "images.d").mkdir(exist_ok=True)
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        (self.folder / "images.d" / f"{name}.toml").write_text(text)

    def template(self, name: str, xml: str, **keys: Any) -> None:
        """Write a domain template, and a catalogue entry of the same name that wants it."""
        (self.folder / "templates").mkdir(exist_ok=True)
        (self.folder / "templates" / f"{name}.xml").write_text(xml)
        self.offer(name, template=name, memory_mib=192, **keys)

    def call(self, *words: Any, user: int | None = None, timeout: float = 300, **options: Any) -> Any:
        """Run vmbatch with this site's configuration; returns a CompletedProcess with text."""
        ids = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        argv = [str(word) for word in (VMBATCH, "--config", self.config, *words)]
        options.setdefault("stdin", subprocess.DEVNULL) if "input" not in options else None
        return subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, **ids, **options
        )

    def log(self) -> str:
        """Return the newest job's log."""
        logs = sorted(self.folder.glob("state/archive/*/*/vmbatch.log"), key=lambda file: file.stat().st_mtime)
        return logs[-1].read_text() if logs else ""

    def close(self) -> None:
        """Take the site away; what a failed test left running goes with it."""
        self.configure()
        for folder in self.folder.glob("state/jobs/*"):
            lifecycle.stop(config.load(self.config), folder.name)
        if os.geteuid() == 0:
            for words in (("net-destroy", NETWORK), ("net-undefine", NETWORK)):
                subprocess.run(["virsh", "-q", "-c", "qemu:///system", *words], capture_output=True, check=False)
            for family in ("bridge", "inet"):
                subprocess.run(["nft", "delete", "table", family, NETWORK], capture_output=True, check=False)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Site":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
