"""A folder -> a bootable qcow2: MBR, one ext4 file system, GRUB in the gap before it. No mount, no root needed.

GRUB's core image carries its own list of blocks when it lies at sector 1, so grub-install is not needed
(GRUB manual, "BIOS installation").
"""

import os
from pathlib import Path

from vmbatch.images.packages import need
from vmbatch.process import run

LABEL = "vmbatch-root"
_GAP_MIB = 1
_EARLY = f"search.fs_label {LABEL} root\nset prefix=($root)/boot/grub\nconfigfile /boot/grub/grub.cfg\n"
_MODULES = ("biosdisk", "part_msdos", "ext2", "search_label", "configfile", "normal", "linux")


def check_tools() -> None:
    """Raise SiteError naming what Debian package is missing."""
    need(
        ("mke2fs", "e2fsprogs"),
        ("sfdisk", "fdisk"),
        ("grub-mkimage", "grub-common"),
        ("qemu-img", "qemu-utils"),
        ("dpkg-deb", "dpkg"),
    )


def make(tree: Path, target: Path, *, size_mib: int, kernel_args: str) -> None:
    """Write `target` (qcow2, compressed) from `tree`, which holds /boot/vmlinuz and /boot/initrd.img.

    `size_mib` is the virtual size; the free space costs nothing in the file. Raises SiteError where a tool fails.
    """
    grub = tree / "boot" / "grub"
    grub.mkdir(parents=True, exist_ok=True)
    (grub / "grub.cfg").write_text(
        f"set timeout=0\nmenuentry vmbatch {{\n linux /boot/vmlinuz {kernel_args}\n initrd /boot/initrd.img\n}}\n"
    )
    raw = target.with_suffix(".raw")
    try:
        _file_system(tree, raw, size_mib)
        _boot_loader(raw)
        run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, target], timeout_s=600)
    finally:
        raw.unlink(missing_ok=True)


def _file_system(tree: Path, raw: Path, size_mib: int) -> None:
    raw.unlink(missing_ok=True)
    with raw.open("xb") as file:
        file.truncate(size_mib << 20)
    run(["sfdisk", "-q", raw], stdin=f"{_GAP_MIB * 2048},,83,*\n".encode(), timeout_s=60)
    as_root: list[str] = [] if os.geteuid() == 0 else ["unshare", "-r"]
    mke2fs: list[str | Path] = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-d", tree]
    options = ["-E", f"offset={_GAP_MIB << 20},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1", "-m", "0"]
    run([*as_root, *mke2fs, *options, raw, f"{(size_mib - _GAP_MIB) * 1024}k"], timeout_s=600)


def _boot_loader(raw: Path) -> None:
    early, core = raw.with_suffix(".cfg"), raw.with_suffix(".core")
    try:
        early.write_text(_EARLY)
        run(
            ["grub-mkimage", "-O", "i386-pc", "-c", early, "-p", "/boot/grub", "-o", core, *_MODULES],
            timeout_s=60,
        )
        boot = Path("/usr/lib/grub/i386-pc/boot.img").read_bytes()
        with raw.open("r+b") as file:
            file.write(boot[:440])
            file.seek(512)
            file.write(core.read_bytes())
    finally:
        early.unlink(missing_ok=True)
        core.unlink(missing_ok=True)
