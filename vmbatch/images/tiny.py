"""The tiny guest: a Debian kernel, busybox, bash, an ssh server, our start-up. Boots in seconds even without KVM.

The image of the demo, of `vmbatch doctor` and of the tests. Further Debian packages can be put in.
"""

import gzip
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from vmbatch.guest import HERE
from vmbatch.images import bootdisk, packages
from vmbatch.process import run

PACKAGES = ("bash", "busybox-static", "dropbear-bin")
SIZE_MIB = 4096
KERNEL_ARGS = "console=tty0 console=ttyS0 panic=1 i8042.noaux i8042.nokbd"
ENTRY = {
    "description": "small guest for tests and first steps",
    "memory_mib": 192,
    "minimum_memory_mib": 96,
    "cpus": 1,
    "kernel_args": KERNEL_ARGS,
}

# What is loaded when, and where it lies; a folder's `order` lists what its modules need before them.
_STAGES = {
    "initramfs/modules/first": "virtio_pci virtio_rng virtio_blk crc32c_generic ext4",
    "initramfs/modules/more": "virtio_scsi ata_piix ahci sd_mod",
    "tree/usr/lib/modules/first": "ata_piix sr_mod isofs virtio_console virtio_net",
    "tree/usr/lib/modules/more": "ahci virtio_scsi e1000 8139cp ne2k_pci pcnet32",
    "tree/usr/lib/modules/late": "button evdev vfat nls_ascii",
}
_JUNK = ("usr/share", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/perl-base", "var/lib", "var/cache")


def build(
    work: Path, target: Path, extra: Sequence[str], flavour: str, size_mib: int, say: Callable[[str], None]
) -> dict[str, Path]:
    """Make the image `target` in the folder `work`. Returns what else belongs to it: kernel and initrd by name."""
    bootdisk.check_tools()
    packages.need(("cpio", "cpio"), ("depmod", "kmod"))
    tree, kernel_tree = work / "tree", work / "kernel"
    say("downloading and unpacking packages")
    packages.unpack([packages.kernel(flavour)], kernel_tree, work / "debs")
    packages.unpack(packages.closure([*PACKAGES, *extra]), tree, work / "debs")
    for junk in _JUNK:
        shutil.rmtree(tree / junk, ignore_errors=True)
    say("putting the guest together")
    _fill(tree)
    vmlinuz, initrd = target.with_suffix(".vmlinuz"), target.with_suffix(".initrd")
    shutil.copyfile(next((kernel_tree / "boot").glob("vmlinuz-*")), vmlinuz)
    _modules(kernel_tree, work)
    _initrd(tree, work / "initramfs", initrd)
    boot = tree / "boot"
    boot.mkdir(exist_ok=True)
    shutil.copyfile(vmlinuz, boot / "vmlinuz")
    shutil.copyfile(initrd, boot / "initrd.img")
    say("making the disk")
    bootdisk.make(tree, target, size_mib=size_mib, kernel_args=KERNEL_ARGS)
    return {"kernel": vmlinuz, "initrd": initrd}


def _fill(tree: Path) -> None:
    for name in ("dev", "etc/ssh", "home", "mnt", "proc", "root", "run", "sys", "tmp", "usr/share", "var/lib", "var/tmp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (tree / name).chmod(0o1777)
    for folder in (tree / "usr/bin", tree / "usr/sbin"):
        folder.mkdir(parents=True, exist_ok=True)
    for applet in run([tree / "usr/bin/busybox", "--list"], timeout_s=30).text.split():
        if not any(
            (tree / f"usr/{place}/{applet}").is_symlink() or (tree / f"usr/{place}/{applet}").exists()
            for place in ("bin", "sbin")
        ):
            (tree / "usr/bin" / applet).symlink_to("/bin/busybox")
    for name, link in (("usr/sbin/init", "/bin/busybox"), ("var/run", "/run")):
        if (tree / name).is_dir() and not (tree / name).is_symlink():
            shutil.rmtree(tree / name)
        (tree / name).unlink(missing_ok=True)
        (tree / name).symlink_to(link)
    texts = {
        "etc/inittab": "::sysinit:/etc/rc\n::respawn:/bin/acpid -f\n::ctrlaltdel:/bin/reboot\n::shutdown:/bin/sync\n",
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
        "etc/shadow": "root:*:19000:0:99999:7:::\n",
        "etc/shells": "/bin/sh\n/bin/bash\n",
        "etc/hosts": "127.0.0.1 localhost\n",
        "etc/profile": "export PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin\n",
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "etc/acpi/PWRF/00000080": "#!/bin/sh\npoweroff\n",
    }
    for name, text in texts.items():
        place = tree / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    shutil.copyfile(HERE / "tiny" / "rc", tree / "etc/rc")
    for script in ("etc/rc", "etc/acpi/PWRF/00000080"):
        (tree / script).chmod(0o755)


def _modules(kernel_tree: Path, work: Path) -> None:
    """Copy the wanted modules and what they need. insmod in our order is three times as quick as modprobe."""
    base = next((kernel_tree / "lib/modules").iterdir())
    run(["depmod", "-b", kernel_tree, base.name], timeout_s=120)
    needs = {}
    for line in (base / "modules.dep").read_text().splitlines():
        path, _, after = line.partition(":")
        needs[path] = after.split()
    names = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in needs}
    for folder, wanted in _STAGES.items():
        place = work / folder
        place.mkdir(parents=True)
        order: list[str] = []
        for path in (p for name in wanted.split() if name in names for p in [*reversed(needs[names[name]]), names[name]]):
            if path not in order:
                order.append(path)
                shutil.copyfile(base / path, place / Path(path).name)
        (place / "order").write_text("".join(f"{Path(path).name}\n" for path in order))


def _initrd(tree: Path, initramfs: Path, target: Path) -> None:
    (initramfs / "bin").mkdir(exist_ok=True)
    shutil.copy(tree / "usr/bin/busybox", initramfs / "bin/busybox")
    shutil.copyfile(HERE / "tiny" / "initramfs", initramfs / "init")
    (initramfs / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(initramfs)) for path in sorted(initramfs.rglob("*")))
    archive = run(["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"], stdin=names.encode(), cwd=initramfs, timeout_s=60)
    target.write_bytes(gzip.compress(archive.stdout, mtime=0))
