"""A guest that never gets ready: which stage it reached, the end of its console, and nothing left."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from devsite import DEV, Site

from vmbatch.domain import SCHEMA

RC = """#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
{head}
. /etc/rc.real
"""


def entry(site: Site, name: str, **keys: object) -> None:
    """Put an image into a catalogue of the site's own."""
    folder = site.folder / "images.d"
    folder.mkdir(exist_ok=True)
    base: dict[str, object] = {
        "source": DEV / "images/tiny.qcow2",
        "kernel": DEV / "images/tiny.vmlinuz",
        "initrd": DEV / "images/tiny.initrd",
        "kernel_args": "console=ttyS0 panic=1",
        "memory_mib": 192,
        "minimum_memory_mib": 96,
        "boot_timeout_s": 20,
        **keys,
    }
    lines = [
        f"{word} = {value if isinstance(value, int) else chr(34) + str(value) + chr(34)}\n" for word, value in base.items()
    ]
    (folder / f"{name}.toml").write_text("".join(lines))
    site.configure(paths={"catalogue": folder})


def changed(site: Site, name: str, rc: str) -> None:
    """An image whose start-up does something else first; the original is still there as rc.real."""
    raw = site.folder / f"{name}.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", DEV / "images/tiny.qcow2", raw], check=True)
    script = site.folder / "rc"
    script.write_text(rc)
    image = f"{raw}?offset=1048576"
    real = site.folder / "rc.real"
    subprocess.run(["debugfs", "-R", f"dump /etc/rc {real}", image], capture_output=True, check=True)
    commands = f"write {real} /etc/rc.real\nrm /etc/rc\nwrite {script} /etc/rc\nsif /etc/rc mode 0100755\n"
    subprocess.run(["debugfs", "-w", "-f", "-", image], input=commands.encode(), capture_output=True, check=True)
    entry(site, name, source=raw, format="raw")


def refused(site: Site, name: str) -> tuple[str, float]:
    began = time.monotonic()
    done = site.call("run", "--image", f"{name}:in=none", "--", "true", cwd="/tmp")
    assert done.returncode == 125, done.stderr
    assert "--- the end of the guest's console ---" in done.stderr or "firmware" in done.stderr
    return done.stderr, time.monotonic() - began


pytestmark = pytest.mark.usefixtures("no_leaks")


def test_a_disk_without_anything_to_boot(site: Site) -> None:
    empty = site.folder / "empty.raw"
    with empty.open("wb") as file:
        file.truncate(64 << 20)
    folder = site.folder / "images.d"
    folder.mkdir(exist_ok=True)
    (folder / "empty.toml").write_text(f'source = "{empty}"\nformat = "raw"\nmemory_mib = 128\nboot_timeout_s = 5\n')
    site.configure(paths={"catalogue": folder})
    said, seconds = refused(site, "empty")
    assert "was not ready after 5 s" in said
    assert "it got as far as: firmware" in said
    assert seconds < 25


def test_a_kernel_that_panics(site: Site) -> None:
    entry(site, "panic", kernel_args="console=ttyS0 panic=1 rdinit=/nosuch root=/dev/nosuch")
    said, seconds = refused(site, "panic")
    assert "ended by itself" in said
    assert "it got as far as: kernel" in said
    assert "Kernel panic" in said
    assert seconds < 30


@pytest.mark.parametrize(
    ("name", "head", "stage", "said"),
    [
        ("hangs", "sleep 600", "kernel", "nothing read the context disk"),
        (
            "nonet",
            "rm /usr/lib/modules/*/virtio_net.ko",
            "context",
            "no driver for its network card",
        ),
        ("nossh", "rm /usr/sbin/dropbear", "network", "no ssh server answers"),
        ("nokeys", "rm -rf /etc/ssh; : > /etc/ssh", "network", "cannot write the ssh keys"),
    ],
)
def test_each_stage_is_told_apart(site: Site, name: str, head: str, stage: str, said: str) -> None:
    changed(site, name, RC.format(head=head))
    text, _ = refused(site, name)
    assert f"it got as far as: {stage}" in text
    assert said in text


def test_a_guest_that_talks_without_end_is_cut_off(site: Site) -> None:
    flood = "insmod_all() { :; }; (sleep 4; while :; do yes vmbatch > /dev/vport0p1; yes vmbatch > /dev/vport1p1; "
    flood += "yes vmbatch > /dev/vport2p1; done) & sleep 0"
    changed(site, "flood", RC.format(head=flood))
    done = site.call("run", "--image", "flood:in=none", "--", "true", cwd="/tmp")
    assert done.returncode in (0, 125)
    assert len(done.stderr) < 20000


def test_the_schema_of_libvirt_is_where_we_look_for_it() -> None:
    assert SCHEMA.exists()
    assert os.geteuid() == 0
    assert Path("/usr/share/libvirt").is_dir()
