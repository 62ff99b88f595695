"""Images from the net in real jobs: once for each job or once for all, checked, shared, copied, never written twice."""

import hashlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import daemons
import fileserver
import pytest
from devsite import DEV, VMBATCH, Site

pytestmark = pytest.mark.usefixtures("no_leaks")
MACHINE = """<domain type='kvm'>
  <vbconfig><vbpreparemethod>CDROM</vbpreparemethod></vbconfig>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/><apic/></features>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <disk type='file' device='disk'>
      <vbdisksource source='BOOT' copy_method='shared'/>
      <driver name='qemu' type='qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      SOURCE
      <target dev='vdb' bus='virtio'/>READONLY
    </disk>
    <disk type='file' device='cdrom'><vbpreparecdrom/><target dev='hdc' bus='ide'/><readonly/></disk>
    <vbnic/>
  </devices>
</domain>"""


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[fileserver.Server]:
    folder = site.folder / "www"
    folder.mkdir()
    with fileserver.serving(folder) as running:
        yield running


def machine(site: Site, name: str, source: str, readonly: bool = False) -> None:
    """A template whose second disk is what a test is about, and its catalogue entry, which boots quickly."""
    xml = MACHINE.replace("BOOT", str(DEV / "images/tiny.qcow2")).replace("SOURCE", source)
    kernel = {"kernel": str(DEV / "images/tiny.vmlinuz"), "initrd": str(DEV / "images/tiny.initrd")}
    xml = xml.replace("READONLY", "<readonly/>" if readonly else "")
    site.template(name, xml, kernel_args="console=ttyS0 panic=1", **kernel)


def popen(site: Site, image: str, command: str) -> "subprocess.Popen[str]":
    argv = [VMBATCH, "--config", site.config, "run", "--image", f"{image}:in=none", "--", "sh", "-c", command]
    return subprocess.Popen(
        [str(word) for word in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd="/tmp",
    )  # fmt: skip


def run(site: Site, image: str, command: str) -> Any:
    return site.call("run", "--image", f"{image}:in=none", "--", "sh", "-c", command, cwd="/tmp")


def disk(text: str) -> bytes:
    """A disk image whose first line is the text."""
    return (text.encode() + b"\n").ljust(1 << 20, b"\0")


READ = "head -1 /dev/vdb"
WRITE = "read line < /dev/vdb; echo $line; echo written | dd of=/dev/vdb conv=notrunc 2>/dev/null && sync; head -1 /dev/vdb"


def objects(site: Site) -> list[str]:
    return sorted(os.listdir(site.folder / "store/objects")) if (site.folder / "store/objects").is_dir() else []


def test_a_shared_image_is_fetched_once_checked_and_never_written(site: Site, server: fileserver.Server) -> None:
    content = disk("shared")
    url = server.put("shared.raw", content)
    md5 = hashlib.md5(content).hexdigest()
    link = site.folder / "look/shared.raw"
    machine(
        site,
        "shared",
        f"<vbdisksource source='{url}' copy_method='shared'/><driver name='qemu' type='raw'/><source file='{link}'/>"
        f"<vbcheckhash hashfunction='/usr/bin/md5sum' hashvalue='{md5}'/>",
    )
    for _ in range(2):
        done = run(site, "shared", WRITE)
        assert done.stdout == "shared\nwritten\n", done.stderr
    assert server.gets == 1
    name = f"{hashlib.sha512(content).hexdigest()}.raw"
    assert name in objects(site)
    assert link.resolve() == site.folder / "store/objects" / name and link.read_bytes() == content


def test_a_downloaded_image_is_fetched_for_each_job_and_leaves_no_file(site: Site, server: fileserver.Server) -> None:
    url = server.put("download.raw", disk("download"))
    before, gets = objects(site), server.gets
    machine(site, "download", f"<vbdisksource source='{url}' copy_method='download' format='raw'/>")
    for _ in range(2):
        assert run(site, "download", WRITE).stdout == "download\nwritten\n"
    assert server.gets - gets == 2
    assert objects(site) == before
    assert list((site.folder / "scratch").iterdir()) == []


@pytest.mark.parametrize("fault", ["hash", "missing", "gone"])
def test_an_image_that_cannot_be_had_refuses_the_job_and_spares_the_node(
    site: Site, server: fileserver.Server, fault: str
) -> None:
    url = server.put("bad.raw", disk("bad"))
    source = {"missing": f"{server.url}/none.raw", "gone": "http://127.0.0.1:9/x.raw"}.get(fault, url)
    check = "<vbcheckhash hashfunction='sha1sum' hashvalue='da39a3ee5e6b4b0d3255bfef95601890afd80709'/>"
    before = objects(site)
    machine(site, "bad", f"<vbdisksource source='{source}' copy_method='shared' format='raw'/>{check}")
    done = run(site, "bad", "true")
    assert done.returncode == 125
    words = {"hash": "its sha1 is", "missing": "404", "gone": "127.0.0.1"}[fault]
    assert words in done.stderr and "Traceback" not in done.stderr
    assert objects(site) == before


def test_a_shared_image_without_copy_on_write_gives_each_job_a_sparse_copy(site: Site, server: fileserver.Server) -> None:
    url = server.put("copied.raw", disk("copied").ljust(64 << 20, b"\0"))
    source = f"<vbdisksource source='{url}' copy_method='shared' copy_on_write='no' format='raw'/>"
    machine(site, "copied", source)
    job = popen(site, "copied", f"{WRITE}; read x")
    assert job.stdout is not None and [job.stdout.readline(), job.stdout.readline()] == ["copied\n", "written\n"]
    copies = list((site.folder / "scratch").glob("*/disk1.raw"))
    assert len(copies) == 1 and copies[0].stat().st_size == 64 << 20
    assert copies[0].stat().st_blocks * 512 < 8 << 20
    assert run(site, "copied", READ).stdout == "copied\n"
    job.communicate("\n", timeout=60)


def test_a_readonly_image_is_shared_by_guests_that_cannot_write_to_it(site: Site, server: fileserver.Server) -> None:
    url = server.put("library.raw", disk("library"))
    machine(site, "library", f"<vbdisksource source='{url}' copy_method='shared' format='raw'/>", readonly=True)
    first = popen(site, "library", f"{READ}; read x")
    assert first.stdout is not None and first.stdout.readline() == "library\n"
    done = run(site, "library", f"{READ}; echo x > /dev/vdb || echo refused")
    assert done.stdout == "library\nrefused\n", done.stderr
    assert not list((site.folder / "scratch").glob("*/disk1*"))
    first.communicate("\n", timeout=60)
    assert first.returncode == 0


def test_what_cannot_be_linked_stays_and_two_jobs_of_one_name_do_not_collide(site: Site, server: fileserver.Server) -> None:
    url = server.put("linked.raw", disk("linked"))
    link = site.folder / "look/mine.raw"
    link.parent.mkdir(exist_ok=True)
    link.write_text("a file of somebody else")
    source = f"<vbdisksource source='{url}' copy_method='download' format='raw'/><source file='{link}'/>"
    machine(site, "linked", source)
    assert run(site, "linked", READ).stdout == "linked\n"
    assert link.read_text() == "a file of somebody else"
    assert "is not ours and stays" in site.log()
    link.unlink()
    first = popen(site, "linked", f"{WRITE}; read x")
    assert first.stdout is not None and [first.stdout.readline(), first.stdout.readline()] == ["linked\n", "written\n"]
    assert link.resolve().parent.parent == site.folder / "scratch"
    assert run(site, "linked", READ).stdout == "linked\n"
    assert link.is_symlink() and link.exists()
    first.communicate("\n", timeout=60)
    assert not os.path.lexists(link)


# --- disks that are created ---


def test_an_empty_disk_for_each_job_has_its_size_and_is_empty_again(site: Site) -> None:
    machine(site, "empty", "<vbdisksource source='e.raw' size='100' create='always' format='raw'/>")
    for _ in range(2):
        done = run(site, "empty", "blockdev --getsize64 /dev/vdb; head -c 8 /dev/vdb | od -An -tx1; echo x > /dev/vdb; sync")
        assert done.stdout == f"{100 << 20}\n 00 00 00 00 00 00 00 00\n", done.stderr


@pytest.mark.parametrize("format", ["raw", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc", "vhd-util-vhd"])
def test_a_disk_made_once_keeps_its_content_in_every_format(site: Site, format: str) -> None:
    machine(site, f"once-{format}", f"<vbdisksource source='once.{format}' size='64' create='once' format='{format}'/>")
    assert run(site, f"once-{format}", "echo kept > /dev/vdb; sync; blockdev --getsize64 /dev/vdb").stdout == f"{64 << 20}\n"
    assert run(site, f"once-{format}", READ).stdout == "kept\n"


def test_others_wait_for_the_first_job_and_then_have_an_overlay_each(site: Site) -> None:
    machine(site, "cache", "<vbdisksource source='cache.qcow2' size='64' create='once'/>")
    first = popen(site, "cache", "echo one > /dev/vdb; sync; echo on; read x")
    assert first.stdout is not None and first.stdout.readline() == "on\n"
    seen: list[str] = []
    waiting = [popen(site, "cache", "head -1 /dev/vdb; echo $$ > /dev/vdb; sync; read x") for _ in range(2)]
    logs = site.folder / "state/jobs"
    told = "waits for disk cache.qcow2, which"
    daemons.wait_for(
        lambda: sum(told in file.read_text() for file in logs.glob("*/*/vmbatch.log")) == 2, 60, "both to be told"
    )
    first.communicate("\n", timeout=60)
    for job in waiting:
        assert job.stdout is not None
        seen.append(job.stdout.readline())
    assert seen == ["one\n", "one\n"]  # both run at once, each with an overlay
    for job in waiting:
        job.communicate("\n", timeout=60)
    assert run(site, "cache", READ).stdout == "one\n"


def test_with_busy_overlay_nobody_waits(site: Site) -> None:
    machine(site, "eager", "<vbdisksource source='eager.raw' size='64' create='once' format='raw' busy='overlay'/>")
    first = popen(site, "eager", "echo one > /dev/vdb; sync; echo on; read x")
    assert first.stdout is not None and first.stdout.readline() == "on\n"
    assert run(site, "eager", "head -c 4 /dev/vdb | od -An -tx1").stdout == " 00 00 00 00\n"
    first.communicate("\n", timeout=60)
    assert run(site, "eager", READ).stdout == "one\n"


def test_a_disk_made_once_is_usable_after_its_holder_was_killed(site: Site) -> None:
    machine(site, "killed", "<vbdisksource source='killed.raw' size='64' create='once' format='raw'/>")
    holder = popen(site, "killed", "echo before > /dev/vdb; sync; echo on; read x")
    assert holder.stdout is not None and holder.stdout.readline() == "on\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    site.call("reap")
    assert run(site, "killed", READ).stdout == "before\n"


def test_a_disk_made_once_is_each_users_own_unless_the_site_says_otherwise(site: Site) -> None:
    from vmbatch import config
    from vmbatch.disk import Origin
    from vmbatch.images import once

    conf = config.load(site.config)
    mine = Origin("empty", "cache", "once", "raw", size_mib=10)
    assert once.place(conf, mine, 1000, "raw") != once.place(conf, mine, 1001, "raw")
    shared = Origin("empty", "cache", "once", "raw", size_mib=10, owner="site")
    assert once.place(conf, shared, 1000, "raw") == once.place(conf, shared, 1001, "raw")


def test_a_format_that_no_guest_can_write_to_is_refused_with_those_that_it_can(site: Site) -> None:
    machine(site, "odd", "<vbdisksource source='x' size='10' create='always' format='dmg'/>")
    done = run(site, "odd", "true")
    assert done.returncode != 0 and "'dmg' cannot be created here" in done.stderr and "qcow2" in done.stderr


def test_a_terminal_shows_a_bar_and_the_log_has_lines(site: Site, server: fileserver.Server) -> None:
    url = server.put("bar.raw", disk("bar").ljust(8 << 20, b"\0"))
    machine(site, "bar", f"<vbdisksource source='{url}?drip=0.02&amp;piece=262144' copy_method='download' format='raw'/>")
    command = f"{VMBATCH} --config {site.config} run --image bar:in=none -- echo done"
    shown = subprocess.run(["script", "-qec", command, "/dev/null"], cwd="/tmp", capture_output=True, text=True, check=True)
    assert "vdb  " in shown.stdout and "% " in shown.stdout and "MiB/s" in shown.stdout
    run(site, "bar", "true")
    assert "vdb  100 %" in site.log()


def test_many_jobs_of_one_image_start_at_once(site: Site, server: fileserver.Server) -> None:
    url = server.put("many.raw", disk("many"))
    gets = server.gets
    machine(site, "many", f"<vbdisksource source='{url}?drip=0.05&amp;piece=65536' copy_method='shared' format='raw'/>")
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(run(site, "many", READ).stdout)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["many\n"] * 4
    assert server.gets - gets == 1
    logs = [file.read_text() for file in Path(site.folder / "state/archive").glob("*/*/vmbatch.log")]
    assert any("waits for an image that local-" in text for text in logs)
