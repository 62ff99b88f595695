"""How jobs end on the real Slurm: cancelled, out of time, requeued, with a lost guest, on a broken node."""

import os
import pwd
import signal
import time
from itertools import pairwise
from pathlib import Path

import daemons
import devsite
import leaks as scanner
from slurmsite import WHERE, SlurmSite, submit


def test_a_guest_that_never_boots_fails_the_job_with_its_console(
    slurm: SlurmSite, alice: pwd.struct_passwd, work: Path
) -> None:
    folder = slurm.site.folder / "images.d"
    folder.mkdir(exist_ok=True)
    dev = devsite.DEV / "images"
    (folder / "dead.toml").write_text(
        f'source = "{dev}/tiny.qcow2"\nkernel = "{dev}/tiny.vmlinuz"\nkernel_args = "console=ttyS0 panic=1"\n'
        "minimum_memory_mib = 96\nboot_timeout_s = 30\n"
    )
    slurm.site.configure(paths={"catalogue": folder})
    try:
        job = slurm.cluster.submit(WHERE, "--vm=dead", user=alice.pw_uid, cwd=work)
        fields = slurm.cluster.wait(job)
    finally:
        slurm.site.configure()
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "125:0")
    assert "it got as far as: kernel" in slurm.out(job, work)
    assert "Kernel panic" in slurm.out(job, work)


def test_scancel_while_the_prolog_runs(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    job = submit(slurm, alice, work, WHERE)
    daemons.wait_for(lambda: list(slurm.site.folder.glob("state/jobs/*/*/domain.xml")), 60, "the prolog")
    slurm.cluster.run("/usr/bin/scancel", job)
    assert slurm.cluster.wait(job)["JobState"] == "CANCELLED"
    assert "host=" not in slurm.out(job, work)


def test_scancel_while_the_job_runs_collects_its_files(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    job = submit(slurm, alice, work, "#!/bin/bash\necho half > result\necho on\nsleep 600\n")
    slurm.says(work / f"slurm-{job}.out", "on\n")
    slurm.cluster.run("/usr/bin/scancel", job)
    assert slurm.cluster.wait(job)["JobState"] == "CANCELLED"
    slurm.cluster.idle()
    assert (work / "result").read_text() == "half\n"
    assert (work / "result").stat().st_uid == alice.pw_uid


def test_a_job_may_catch_the_signal_of_its_end(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    script = "#!/bin/bash\ntrap 'echo bye; exit 0' TERM\necho on\nwhile :; do sleep 0.1; done\n"
    job = submit(slurm, alice, work, script)
    slurm.says(work / f"slurm-{job}.out", "on\n")
    slurm.cluster.run("/usr/bin/scancel", "--full", job)
    slurm.cluster.wait(job)
    assert "bye" in slurm.out(job, work)


def test_the_time_limit_ends_the_job_and_its_files_are_collected(
    slurm: SlurmSite, alice: pwd.struct_passwd, work: Path
) -> None:
    job = submit(slurm, alice, work, "#!/bin/bash\necho half > result\necho on\nsleep 600\n", "--time=0:01")
    assert slurm.cluster.wait(job, timeout_s=180)["JobState"] == "TIMEOUT"
    slurm.cluster.idle()
    assert (work / "result").read_text() == "half\n"


def test_requeue_gives_a_new_guest_and_takes_the_old_one(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    job = submit(slurm, alice, work, "#!/bin/bash\necho run $SLURM_RESTART_COUNT\nsleep 5\necho end\n", "--open-mode=append")
    slurm.says(work / f"slurm-{job}.out", "run")
    first = slurm.guest_ready(job)
    slurm.cluster.run("/usr/bin/scontrol", "requeue", job)
    slurm.says(work / f"slurm-{job}.out", "run 1", timeout_s=240)
    second = slurm.guest_ready(job)
    assert first != second and not first.exists()
    assert slurm.cluster.wait(job)["JobState"] == "COMPLETED"
    assert slurm.out(job, work).endswith("run 1\nend\n")


def test_suspend_and_resume_stop_the_job_in_the_guest(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    job = submit(slurm, alice, work, "#!/bin/bash\nwhile :; do date +%s; sleep 0.2; done\n")
    out = work / f"slurm-{job}.out"
    daemons.wait_for(lambda: out.exists() and len(out.read_text().splitlines()) > 3, 90, "the job's output")
    slurm.cluster.run("/usr/bin/scontrol", "suspend", job)
    time.sleep(3)
    before = len(out.read_text().splitlines())
    time.sleep(3)
    assert len(out.read_text().splitlines()) - before <= 1
    slurm.cluster.run("/usr/bin/scontrol", "resume", job)
    daemons.wait_for(lambda: len(out.read_text().splitlines()) > before + 5, 30, "more output")
    stamps = [int(line) for line in out.read_text().splitlines() if line.isdigit()]
    assert max(b - a for a, b in pairwise(stamps)) >= 4, "the guest's job stood still meanwhile"
    slurm.cluster.run("/usr/bin/scancel", job)
    slurm.cluster.wait(job)


def test_slurmd_restarted_during_a_job_changes_nothing(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    job = submit(slurm, alice, work, "#!/bin/bash\necho on\nsleep 6\necho end\n", "-w", "n1")
    slurm.says(work / f"slurm-{job}.out", "on\n")
    old = slurm.cluster.slurmd["n1"]
    old.send_signal(signal.SIGTERM)
    old.wait(20)
    slurm.cluster.start_node("n1")
    assert slurm.cluster.wait(job)["JobState"] == "COMPLETED"
    assert slurm.out(job, work) == "on\nend\n"


def test_a_lost_guest_ends_the_job_at_once_with_120(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    job = submit(slurm, alice, work, "#!/bin/bash\necho on\nsleep 600\n")
    slurm.says(work / f"slurm-{job}.out", "on\n")
    facts = dict(line.partition(" ")[::2] for line in (slurm.guest_ready(job) / "state").read_text().splitlines())
    os.kill(int(facts["pid"]), signal.SIGKILL)
    fields = slurm.cluster.wait(job, timeout_s=20)
    assert fields["ExitCode"] == "120:0"
    assert "its QEMU process ended without a shutdown" in slurm.out(job, work)


def test_a_full_node_fails_the_job_with_the_numbers_and_stays_in_service(
    slurm: SlurmSite, alice: pwd.struct_passwd, work: Path
) -> None:
    slurm.site.configure(limits={"max_guests": 1, "slot_timeout_s": 1})
    try:
        first = submit(slurm, alice, work, "#!/bin/bash\necho on\nsleep 600\n", "-w", "n1")
        slurm.says(work / f"slurm-{first}.out", "on\n")
        second = submit(slurm, alice, work, WHERE, "-w", "n2")  # another node on the same host
        assert slurm.cluster.wait(second)["ExitCode"] == "125:0"
    finally:
        slurm.site.configure()
    assert "1 of 1 guests are in use" in slurm.out(second, work)
    assert "host=" not in slurm.out(second, work)
    assert "dr" not in slurm.cluster.states()["n2"]
    slurm.cluster.run("/usr/bin/scancel", first)
    slurm.cluster.wait(first)


def test_a_broken_node_is_drained_and_the_job_requeued(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    """libvirtd down is the node's fault: Slurm drains it and requeues the job, as the README says."""
    slurm.site.configure(libvirt={"uri": "qemu+unix:///system?socket=/nonexistent/libvirt-sock"})
    try:
        job = submit(slurm, alice, work, WHERE, "-w", "n2")
        daemons.wait_for(lambda: "dr" in slurm.cluster.states()["n2"], 60, "the drain of n2")
        assert slurm.cluster.wait(job, "PENDING")["Restarts"] == "1"
    finally:
        slurm.site.configure()
        slurm.cluster.run("/usr/bin/scancel", job)
        slurm.cluster.wait(job)
        slurm.cluster.resume()
    assert "host=" not in slurm.out(job, work)
    assert "libvirt" in (slurm.cluster.folder / "slurmd.n2.log").read_text()


def test_the_scanner_itself_finds_a_running_guest(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    job = submit(slurm, alice, work, "#!/bin/bash\necho on\nsleep 600\n")
    slurm.says(work / f"slurm-{job}.out", "on\n")
    kinds = {text.split()[0] for text in scanner.leaks(slurm.site)}
    assert {"domain", "process", "file", "tap", "nft"} <= kinds
    slurm.cluster.run("/usr/bin/scancel", job)
    slurm.cluster.wait(job)
