"""Disks that are created for guests: empty for each job, or made once and kept with what was written to them."""

import signal

import daemons
import pytest
from devsite import Site
from seconddisk import READ, machine, popen, run

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_an_empty_disk_for_each_job_has_its_size_and_is_empty_again(site: Site) -> None:
    machine(site, "empty", "<vbdisksource source='e.raw' size='100' create='always' format='raw'/>")
    for _ in range(2):
        done = run(site, "empty", "blockdev --getsize64 /dev/vdb; head -c 8 /dev/vdb | od -An -tx1; echo x > /dev/vdb; sync")
        assert done.stdout == f"{100 << 20}\n 00 00 00 00 00 00 00 00\n", done.stderr


def test_a_disk_made_once_keeps_its_content_in_every_format(site: Site) -> None:
    formats = ("raw", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc", "vhd-util-vhd")
    made = [f"<vbdisksource source='once.{name}' size='64' create='once' format='{name}'/>" for name in formats]
    between = "</disk><disk type='file' device='disk'>".join(
        f"{one}<target dev='vd{chr(98 + number)}' bus='virtio'/>" for number, one in enumerate(made)
    )
    machine(site, "formats", between.removesuffix("<target dev='vdi' bus='virtio'/>"), target="vdi")
    write = "for d in b c d e f g h i; do echo kept $d > /dev/vd$d; blockdev --getsize64 /dev/vd$d; done; sync"
    assert run(site, "formats", write).stdout == f"{64 << 20}\n" * 8
    read = "for d in b c d e f g h i; do head -1 /dev/vd$d; done"
    assert run(site, "formats", read).stdout == "".join(f"kept {letter}\n" for letter in "bcdefghi")


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
