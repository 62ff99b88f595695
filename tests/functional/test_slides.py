"""Both domain files of VmBatch's slides, converted and fed from a local server with our image, run a job.

What stands in for the site's own things is listed: the address and the hash of the image, the folder /vmbatch, a kernel
for the disk with three partitions, and the devices that the slides leave out.
"""

import hashlib
import json
import pwd
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import devsite
import fileserver
import pytest
from devsite import DEV, ROOT, Site

from vmbatch import config, lifecycle

pytestmark = pytest.mark.usefixtures("no_leaks")
SAMPLES = ROOT / "tests/data/templates"


def converted(site: Site, name: str) -> str:
    done = site.call("template", "convert", SAMPLES / f"{name}.xml")
    assert done.returncode == 0, done.stderr
    assert "-<domain type='xen'>" in done.stderr and "+<domain type='kvm'>" in done.stderr
    return str(done.stdout)


def raw(target: Path) -> Path:
    """Our small image as the slides' images are: a raw disk."""
    devsite.image("tiny-small")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", DEV / "images/tiny-small.qcow2", target], check=True)
    return target


def test_the_cdrom_sample_runs_a_job_with_the_cache_disk_and_the_tar_file_on_the_cdrom(
    site: Site, server: fileserver.Server
) -> None:
    image = raw(server.folder / "ucernvm-prod.1.18-13.cernvm.x86_64.fat")
    xml = converted(site, "slides-cdrom")
    xml = xml.replace("http://images.example.org/", f"{server.url}/")
    xml = xml.replace("826164d1748929445e805b57929c8f7e", hashlib.md5(image.read_bytes()).hexdigest())
    xml = xml.replace("/vmbatch/images/", f"{site.folder}/vmbatch/images/")
    site.template("cernvm3", xml)
    (site.folder / "tarfiles").mkdir()
    (site.folder / "context.sh").write_text("EC2_USER_DATA=\n")
    with tarfile.open(site.folder / "tarfiles/alice.tar", "w") as archive:
        archive.add(site.folder / "context.sh", "alice/context.sh")
    command = "for disk in /sys/block/vd*; do echo ${disk##*/} $(cat $disk/size); done; mount | grep ' / '"
    done = site.call("run", "--image", "cernvm3:in=none", "--", "sh", "-c", command, cwd="/tmp")
    assert f"vda {image.stat().st_size // 512}\n" in done.stdout, done.stderr
    assert f"vdb {20480 * 2048}\n" in done.stdout  # 20480 MB, in sectors of 512 bytes
    assert "/dev/vda1 on / " in done.stdout


def test_the_tar_file_of_the_sample_lies_on_the_cdrom_without_its_first_folder(site: Site, tmp_path: Path) -> None:
    from vmbatch import archives, iso
    from vmbatch.disk import Archive

    with tarfile.open(tmp_path / "alice.tar.gz", "w:gz") as archive:
        (tmp_path / "f").write_text("EC2_USER_DATA=\n")
        for name in ("alice/context.sh", "alice/etc/deep/er/x", "README"):
            archive.add(tmp_path / "f", name)
    files = archives.for_context((Archive(tmp_path / "alice.tar.gz", ".", 1, True),))
    assert set(files) == {"context.sh", "etc/deep/er/x"}
    iso.write(tmp_path / "c.iso", files)
    listed = subprocess.run(
        ["xorriso", "-indev", tmp_path / "c.iso", "-find", "/"], capture_output=True, text=True, check=True
    ).stdout
    assert "'/context.sh'" in listed and "'/etc/deep/er/x'" in listed


def three_partitions(target: Path, small: Path) -> None:
    """A disk as in the slides: something, the root file system, a place for jobs."""
    source = raw(small)
    told = subprocess.run(["sfdisk", "-J", source], capture_output=True, text=True, check=True).stdout
    sectors = int(json.loads(told)["partitiontable"]["partitions"][0]["size"])
    with target.open("wb") as file:
        file.truncate((18 << 20) + sectors * 512 + (16 << 20))
    layout = f"2048,16384,83\n18432,{sectors},83\n{18432 + sectors},32768,83\n"
    subprocess.run(["sfdisk", "-q", target], input=layout, text=True, check=True)
    copy = [
        "dd",
        f"if={source}",
        f"of={target}",
        "bs=512",
        "skip=2048",
        "seek=18432",
        f"count={sectors}",
        "conv=notrunc,sparse",
    ]
    subprocess.run(copy, check=True, capture_output=True)
    place = (18432 + sectors) * 512
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={place}", target, "16384k"], check=True)


def test_the_disk_sample_runs_a_job_that_was_put_into_the_second_partition(
    site: Site, server: fileserver.Server, tmp_path: Path
) -> None:
    three_partitions(server.folder / "slc5.raw", tmp_path / "small.raw")
    xml = converted(site, "slides-disk")
    ours = (
        f"<disk type='file' device='disk'><vbdisksource source='{server.url}/slc5.raw' copy_method='shared' format='raw'/>"
        "<target dev='vda' bus='virtio'/></disk>"
    )
    assert "<!-- Libvirt and VmBatch devices stuff -->" in xml
    site.template(
        "slc5",
        xml.replace("<!-- Libvirt and VmBatch devices stuff -->", ours),
        kernel=str(DEV / "images/tiny.vmlinuz"),
        initrd=str(DEV / "images/tiny.initrd"),
        kernel_args="console=ttyS0 root=/dev/vda2",
    )
    done = site.call(
        "run", "--image", "slc5:in=none", "--", "sh", "-c", "mount | grep ' / '; ls /vmbatch; ls /dev/sr0", cwd="/tmp"
    )
    assert "/dev/vda2 on / " in done.stdout, done.stderr
    assert "init.sh" in done.stdout and "host_key\n" not in done.stdout
    assert "/dev/sr0" not in done.stdout


def test_a_spooled_script_lies_and_runs_at_the_job_path(
    site: Site, start: Callable[..., Any], alice: pwd.struct_passwd
) -> None:
    """The template is that of the test before."""
    spool = site.folder / "spool"
    spool.mkdir()
    script = spool / "slurm_script"
    script.write_text("#!/bin/sh\necho $0; stat -c '%U %a' $0; echo $*\n")
    running = start(alice, "slc5:in=none")
    done = running.shell(str(script).encode(), b"a", b"b")
    assert done.stdout == b"/torque/mom_priv/jobs/slurm_script\nvmbalice 700\na b\n", done.stderr
    lifecycle.stop(config.load(site.config), running.guest.key)


def test_unpacked_in_the_guest_where_no_cdrom_is_meant(site: Site) -> None:
    (site.folder / "tarfiles").mkdir(exist_ok=True)
    (site.folder / "tool").write_text("#!/bin/sh\necho from the tar file\n")
    (site.folder / "tool").chmod(0o755)
    with tarfile.open(site.folder / "tarfiles/tools.tar.xz", "w:xz") as archive:
        archive.add(site.folder / "tool", "tools-1.0/bin/tool")
    xml = (ROOT / "domain-templates/default.xml").read_text()
    tag = "<vbtarfiles><vbtarfile tarfile='tools.tar.xz' path='/opt/tools' strip='1'/></vbtarfiles></vbconfig>"
    site.template("tools", xml.replace("</vbconfig>", tag), source=str(DEV / "images/tiny.qcow2"))
    done = site.call("run", "--image", "tools:in=none", "--", "/opt/tools/bin/tool", cwd="/tmp")
    assert done.stdout == "from the tar file\n", done.stderr
