"""A real Debian 12 guest: systemd, cloud-init, openssh, python3 and the guest agent, made by mmdebstrap."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from vmbatch.errors import SiteError
from vmbatch.images import bootdisk, packages
from vmbatch.process import run

SUITE = "bookworm"
PACKAGES = (
    "linux-image-cloud-amd64 systemd-sysv udev dbus openssh-server cloud-init qemu-guest-agent ifupdown "
    "isc-dhcp-client iproute2 python3 netbase ca-certificates less procps"
).split()
SIZE_MIB = 10240
KERNEL_ARGS = f"root=LABEL={bootdisk.LABEL} ro console=tty0 console=ttyS0"
ENTRY = {
    "description": "Debian 12 with systemd, cloud-init and python3",
    "context": "CLOUDINIT",
    "memory_mib": 768,
    "minimum_memory_mib": 384,
    "cpus": 1,
}
_MASKED = ("e2scrub_reap.service", "apt-daily.timer", "apt-daily-upgrade.timer")


def build(
    work: Path, target: Path, extra: Sequence[str], flavour: str, size_mib: int, say: Callable[[str], None]
) -> dict[str, Path]:
    """Make the image `target` in the folder `work`; takes a minute or two. Returns nothing more that belongs to it."""
    bootdisk.check_tools()
    packages.need(("mmdebstrap", "mmdebstrap"))
    if flavour != "cloud":
        raise SiteError("debian12 has the cloud kernel only", "leave --kernel out")
    tree = work / "tree"
    say("installing Debian packages (about a minute)")
    mode = "root" if os.geteuid() == 0 else "unshare"
    archive = work / "tree.tar"
    run(
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--mode={mode}",
            "--format=tar",
            "--include=" + ",".join([*PACKAGES, *extra]),
            SUITE,
            archive,
            *_sources(),
        ],
        timeout_s=1800,
    )
    tree.mkdir()
    run(["tar", "-xf", archive, "--numeric-owner", "--exclude=./dev/*", "-C", tree], timeout_s=300)
    archive.unlink()
    _settle(tree)
    say("making the disk")
    bootdisk.make(tree, target, size_mib=size_mib, kernel_args=KERNEL_ARGS)
    return {}


def _sources() -> list[Path]:
    if f"VERSION_CODENAME={SUITE}" not in Path("/etc/os-release").read_text():
        raise SiteError(f"debian12 is built from this machine's package sources, which are not {SUITE}'s")
    folder = Path("/etc/apt/sources.list.d")
    found = [Path("/etc/apt/sources.list"), *sorted(folder.glob("debian*.list")), *sorted(folder.glob("*.sources"))]
    return [path for path in found if path.is_file() and path.stat().st_size]


def _settle(tree: Path) -> None:
    for kind, name in (("vmlinuz-*", "vmlinuz"), ("initrd.img-*", "initrd.img")):
        shutil.copyfile(sorted((tree / "boot").glob(kind))[-1], tree / "boot" / name)
    (tree / "etc/fstab").write_text(f"LABEL={bootdisk.LABEL} / ext4 defaults,noatime 0 1\n")
    (tree / "etc/machine-id").write_text("")
    (tree / "etc/hostname").write_text("debian12\n")
    (tree / "etc/resolv.conf").write_text("")
    (tree / "etc/cloud/cloud.cfg.d/90_vmbatch.cfg").write_text("datasource_list: [NoCloud, None]\n")
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for unit in _MASKED:
        (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
    shutil.rmtree(tree / "var/cache/apt", ignore_errors=True)
