"""Debian packages, unpacked without being installed: the raw material of images."""

import os
from collections.abc import Sequence
from pathlib import Path

from vmbatch.errors import SiteError
from vmbatch.process import run

_EMPTY = ("-o", "Dir::State::status=/dev/null", "-o", "APT::Install-Recommends=false")


def need(*programs: tuple[str, str]) -> None:
    """Raise SiteError naming the packages of missing programs; each is (program, Debian package)."""
    places = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
    missing = [package for program, package in programs if not any(os.access(f"{p}/{program}", os.X_OK) for p in places)]
    if missing:
        raise SiteError("image building needs more programs", "apt-get install " + " ".join(sorted(set(missing))))


def closure(names: Sequence[str]) -> list[str]:
    """Return the packages and all that they depend on, as apt would install them on an empty system."""
    result = run(["apt-get", "install", "-s", *_EMPTY, *names], timeout_s=120, check=False)
    if result.status:
        raise SiteError(
            f"apt cannot resolve {' '.join(names)}: {result.stderr.decode(errors='replace').strip()[-300:]}",
            "apt-get update",
        )
    return [line.split()[1] for line in result.text.splitlines() if line.startswith("Inst ")]


def kernel(flavour: str) -> str:
    """Return the newest kernel package of a flavour: `cloud` (small, virtio only) or `generic` (every driver)."""
    meta = {"cloud": "linux-image-cloud-amd64", "generic": "linux-image-amd64"}[flavour]
    result = run(["apt-cache", "depends", "--important", meta], timeout_s=60, check=False)
    for line in result.text.splitlines():
        word = line.rpartition(" ")[2]
        if word.startswith("linux-image-") and "Depends:" in line:
            return word
    raise SiteError(f"apt knows no package {meta}", "apt-get update")


def unpack(names: Sequence[str], tree: Path, downloads: Path) -> None:
    """Download packages and unpack them into `tree`, in usr-merged form. Nothing of them is run."""
    downloads.mkdir(parents=True, exist_ok=True)
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    run(["apt-get", "download", "-q", *sandbox, *names], timeout_s=900, cwd=downloads)
    tree.mkdir(parents=True, exist_ok=True)
    for package in sorted(downloads.glob("*.deb")):
        run(["dpkg-deb", "-x", package, tree], timeout_s=300)
        package.unlink()
    _merge_usr(tree)


def _merge_usr(tree: Path) -> None:
    for name in ("bin", "sbin", "lib", "lib64"):
        place, target = tree / name, tree / "usr" / name
        if place.is_dir() and not place.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
            run(["cp", "-a", f"{place}/.", target], timeout_s=300)
            run(["rm", "-rf", place], timeout_s=300)
        target.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink():
            place.symlink_to(f"usr/{name}")
