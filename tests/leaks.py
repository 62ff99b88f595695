"""The leak scanner: everything that a job could have left on this machine, and should not have."""

import subprocess
from pathlib import Path

from devsite import NETWORK, Site

from vmbatch.names import tap_prefix


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False).stdout


def _processes() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if state not in "ZX" and words:
                found.append((int(entry.name), words))
    return found


def leaks(site: Site, uri: str = "qemu:///system") -> list[str]:
    """Return a line for everything of this site that stands."""
    found = []
    for name in _output("virsh", "-q", "-c", uri, "list", "--all", "--name").split():
        if name.startswith("vmbatch-") and str(site.folder) in _output("virsh", "-c", uri, "dumpxml", name):
            found.append(f"domain {name}")
    marks = (str(site.folder), str(site.run_dir))
    for pid, words in _processes():
        ours = "qemu-system" in words or words.startswith("ssh") or "qemu-storage-daemon" in words
        if ours and any(mark in words for mark in marks):
            found.append(f"process {pid}: {words[:200]}")
    for folder in ("scratch", "state/jobs", "state/slots", "state/leases"):
        place = site.folder / folder
        found += [f"file {path}" for path in place.rglob("*") if path.name != ".lock"] if place.is_dir() else []
    if site.run_dir.is_dir():
        found += [f"file {path}" for path in site.run_dir.rglob("*") if path.name != "by-job"]
    found += [f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines() if str(site.folder) in line]
    found += [f"shared memory {path}" for path in Path("/dev/shm").glob("*vmbatch*")]
    if uri == "qemu:///system":
        found += [f"tap {path.name}" for path in Path("/sys/class/net").glob(f"{tap_prefix(NETWORK)}*")]
        for name in ("cards", "addresses"):
            members = _output("nft", "list", "set", "bridge", NETWORK, name)
            found += [f"nft {name}: {members}"] if "elements" in members else []
    return found
