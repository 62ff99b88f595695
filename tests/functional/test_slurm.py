"""The real Slurm, two nodes on this host, an ordinary user: every way in which a job may live and end."""

import os
import pwd
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import daemons
import devsite
import leaks as scanner
import pytest
from slurmsite import SlurmSite, lines, slurm_site

WHERE = "#!/bin/bash\necho host=$(hostname) step=$SLURM_PROCID\n"


@pytest.fixture(scope="module")
def slurm(processes: daemons.Daemons, libvirt: None, images: Any) -> Iterator[SlurmSite]:
    images("tiny")
    with slurm_site(processes) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(slurm: SlurmSite) -> Iterator[None]:
    yield
    slurm.settle()


@pytest.fixture
def work(alice: pwd.struct_passwd, slurm: SlurmSite, request: pytest.FixtureRequest) -> Path:
    folder = slurm.site.folder / "jobs" / request.node.name[:40].translate({91: None, 93: None, 47: None})
    folder.mkdir(parents=True)
    os.chown(folder, alice.pw_uid, alice.pw_gid)
    return folder


def submit(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path, script: str, *options: str) -> str:
    return slurm.cluster.submit(script, "--vm=tiny:in=none", *options, user=alice.pw_uid, cwd=work)


@pytest.mark.parametrize(("code", "shown"), [(0, "0:0"), (3, "3:0"), (137, "137:0"), (255, "255:0")])
def test_a_batch_script_runs_in_the_guest_with_its_exit_code(
    slurm: SlurmSite, alice: pwd.struct_passwd, work: Path, code: int, shown: str
) -> None:
    job = submit(slurm, alice, work, f"{WHERE}echo err >&2\nexit {code}\n", "--error=err")
    fields = slurm.cluster.wait(job)
    assert fields["ExitCode"] == shown
    assert lines(slurm.out(job, work), "host=") == [f"host=job-{job} step=0"]
    assert (work / "err").read_text() == "err\n"


def test_an_unmodified_script_in_bash_with_input_beside_it(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    (work / "data.txt").write_text("1\n2\n3\n")
    os.chown(work / "data.txt", alice.pw_uid, alice.pw_gid)
    script = "#!/bin/bash\n#SBATCH --vm=tiny\n#SBATCH -J named\nsum=0\nwhile read n; do ((sum += n)); done < data.txt\necho $sum | tee sum.txt\n"
    job = slurm.cluster.submit(script, user=alice.pw_uid, cwd=work)
    assert slurm.cluster.wait(job)["JobState"] == "COMPLETED"
    assert slurm.out(job, work) == "6\n"
    assert (work / "sum.txt").read_text() == "6\n"
    assert (work / "sum.txt").stat().st_uid == alice.pw_uid


def test_an_unmodified_script_in_python(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path, images: Any) -> None:
    images("tiny-python")
    (work / "data.txt").write_text("5\n7\n")
    os.chown(work / "data.txt", alice.pw_uid, alice.pw_gid)
    script = (
        "#!/usr/bin/env python3\nimport os, sys\nprint(sum(map(int, open('data.txt'))), os.uname().nodename, sys.argv[1:])\n"
    )
    (work / "job.py").write_text(script)
    done = slurm.cluster.run(
        "/usr/bin/sbatch", "--parsable", "--vm=tiny-python", "job.py", "a b", user=alice.pw_uid, cwd=work
    )
    job = done.strip()
    assert slurm.cluster.wait(job)["JobState"] == "COMPLETED", slurm.out(job, work)
    assert slurm.out(job, work) == f"12 job-{job} ['a b']\n"


def test_srun_streams_and_exit_codes(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    done = slurm.cluster.call(
        "/usr/bin/srun", "--vm=tiny:in=none", "sh", "-c", "cat; hostname; echo err >&2; exit 5",
        user=alice.pw_uid, cwd=work, input="in\n",
    )  # fmt: skip
    assert done.returncode == 5
    assert done.stdout.startswith("in\njob-")
    assert done.stderr.startswith("err\n")


def test_srun_with_a_terminal(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    command = "srun --pty --vm=tiny:in=none sh -c 'tty; hostname; exit 4'"
    done = slurm.cluster.call("/usr/bin/script", "-qec", command, "/dev/null", user=alice.pw_uid, cwd=work)
    assert done.returncode == 4
    assert "/dev/pts/" in done.stdout and "job-" in done.stdout


def test_tasks_of_one_step_share_the_guest(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    script = "echo $SLURM_PROCID $(hostname); echo $SLURM_PROCID > out$SLURM_PROCID"
    done = slurm.cluster.call(
        "/usr/bin/srun", "-N1", "-n2", "--vm=tiny:in=none", "sh", "-c", script, user=alice.pw_uid, cwd=work
    )
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == ["0", "1"]
    assert len({line.split()[1] for line in done.stdout.splitlines()}) == 1
    assert sorted(path.name for path in work.iterdir()) == ["out0", "out1"]


def test_steps_of_an_allocation_share_the_guest_and_files_come_after_each(
    slurm: SlurmSite, alice: pwd.struct_passwd, work: Path
) -> None:
    script = "srun sh -c 'hostname; echo 1 > one'; ls; srun sh -c 'hostname; cat one'"
    done = slurm.cluster.call("/usr/bin/salloc", "-Q", "--vm=tiny:in=none", "sh", "-c", script, user=alice.pw_uid, cwd=work)
    words = done.stdout.split()
    assert words[0] == words[2] and words[0].startswith("job-"), done.stdout + done.stderr
    assert (words[1], words[3]) == ("one", "1")


def test_a_default_from_the_environment_even_with_export_none(
    slurm: SlurmSite, alice: pwd.struct_passwd, work: Path
) -> None:
    for export in ("--export=NONE", "--export=ALL"):
        out = slurm.cluster.run(
            "/usr/bin/sbatch", "--parsable", export, user=alice.pw_uid, cwd=work, input=WHERE,
            env={"VMBATCH_VM": "tiny:in=none"},
        )  # fmt: skip
        job = out.strip()
        slurm.cluster.wait(job)
        assert f"host=job-{job} " in slurm.out(job, work)
    out = slurm.cluster.run(
        "/usr/bin/sbatch", "--parsable", "--vm=none", user=alice.pw_uid, cwd=work, input=WHERE, env={"VMBATCH_VM": "tiny"}
    )
    slurm.cluster.wait(out.strip())
    assert f"host={os.uname().nodename} " in slurm.out(out.strip(), work)


def test_an_array_of_four(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    first = submit(slurm, alice, work, "#!/bin/bash\necho $SLURM_ARRAY_TASK_ID $(hostname)\n", "--array=0-3", "-o", "%a.out")
    for task in range(4):
        slurm.cluster.wait(f"{first}_{task}")
    seen = [(work / f"{task}.out").read_text().split() for task in range(4)]
    assert [one[0] for one in seen] == ["0", "1", "2", "3"]
    assert len({one[1] for one in seen}) == 4


def test_two_nodes_of_one_job_on_one_host_do_not_collide(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    done = slurm.cluster.call(
        "/usr/bin/srun", "-N2", "-n2", "--vm=tiny:in=none", "sh", "-c", "echo $SLURMD_NODENAME; ifconfig eth0 | grep inet.addr",
        user=alice.pw_uid, cwd=work,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"n1", "n2"} <= set(done.stdout.split())
    assert len({line for line in done.stdout.splitlines() if "inet" in line}) == 2


def test_memory_and_processors_are_the_jobs_minus_the_overhead(
    slurm: SlurmSite, alice: pwd.struct_passwd, work: Path
) -> None:
    cpus = slurm.cluster.conf.read_text().partition("CPUs=")[2].split()[0]
    job = submit(slurm, alice, work, "#!/bin/bash\nnproc; free -m | awk '/Mem/{print $2}'\n", "--mem=700", "-c", cpus)
    slurm.cluster.wait(job)
    processors, memory = map(int, slurm.out(job, work).split())
    assert processors == int(cpus)
    assert (700 - 96) * 64 // 65 - 70 < memory < (700 - 96) * 64 // 65


@pytest.mark.parametrize(
    ("request_text", "options", "said"),
    [
        ("tniy", (), "there is no image 'tniy'"),
        ("tiny", ("--mem=100",), "submit with --mem="),
        ("tiny:memroy=1G", (), "has no key 'memroy'"),
        ("tiny:memory=9G", (), "memory=9216M is more than the job's"),
        ("../../etc/passwd", (), "there is no image"),
        ("tiny';reboot;'", (), "there is no image"),
    ],
)
def test_a_users_mistake_fails_the_job_with_our_sentence_and_costs_no_node(
    slurm: SlurmSite, alice: pwd.struct_passwd, work: Path, request_text: str, options: tuple[str, ...], said: str
) -> None:
    job = slurm.cluster.submit(WHERE, f"--vm={request_text}", *options, user=alice.pw_uid, cwd=work)
    fields = slurm.cluster.wait(job)
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "125:0")
    assert said in slurm.out(job, work)
    assert "host=" not in slurm.out(job, work)
    slurm.cluster.idle()


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
    assert max(b - a for a, b in zip(stamps, stamps[1:], strict=False)) >= 4, "the guest's job stood still meanwhile"
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


def test_a_job_without_vm_is_untouched(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    before = sorted(path.name for path in (slurm.site.folder / "state").rglob("*"))
    job = slurm.cluster.submit(WHERE, "--comment=plain", user=alice.pw_uid, cwd=work)
    assert slurm.cluster.wait(job)["JobState"] == "COMPLETED"
    assert f"host={os.uname().nodename} " in slurm.out(job, work)
    assert sorted(path.name for path in (slurm.site.folder / "state").rglob("*")) == before


def test_a_step_cannot_ask_for_a_guest_that_its_job_has_not(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    script = "srun --vm=tiny hostname"
    done = slurm.cluster.call("/usr/bin/salloc", "-Q", "sh", "-c", script, user=alice.pw_uid, cwd=work)
    assert os.uname().nodename not in done.stdout
    assert "there is no guest for this job on this node" in done.stderr


def test_a_missing_shell_never_lets_the_job_run_on_the_host(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    shell = slurm.site.folder / "usr" / "bin" / "vmbatch-remoteshell"
    hidden = shell.with_name("hidden")
    shell.rename(hidden)
    try:
        job = submit(slurm, alice, work, WHERE)
        fields = slurm.cluster.wait(job)
    finally:
        hidden.rename(shell)
    assert fields["JobState"] == "FAILED"
    assert "host=" not in slurm.out(job, work)
    assert "it must not run on the host" in slurm.out(job, work)


def test_status_shell_logs_and_console_of_a_running_job(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    import json

    job = submit(slurm, alice, work, "#!/bin/bash\necho on\nsleep 600\n")
    slurm.says(work / f"slurm-{job}.out", "on\n")
    rows = json.loads(slurm.site.call("status", "--json").stdout)
    mine = next(row for row in rows if row["job"] == job)
    assert (mine["user"], mine["image"], mine["phase"], mine["hypervisor"]) == ("vmbalice", "tiny", "running", "qemu")
    assert mine["phases_s"]["boot"] > 0
    assert "vmbalice" in slurm.site.call("status", user=alice.pw_uid).stdout
    shell = slurm.site.call("shell", job, "--", "sh", "-c", "hostname; exit 6", user=alice.pw_uid, cwd=work)
    assert (shell.returncode, shell.stdout) == (6, f"job-{job}\n"), shell.stderr
    logs = slurm.site.call("logs", job, user=alice.pw_uid)
    assert " boot " in logs.stdout, logs.stderr
    assert "Linux version" in slurm.site.call("logs", job, "--console", user=alice.pw_uid).stdout
    far = slurm.cluster.call(
        "/usr/bin/srun", "--jobid", job, "--overlap", "-Q", "-n1", "vmbatch", "logs", user=alice.pw_uid, cwd=work
    )
    assert " boot " in far.stdout, far.stderr
    slurm.cluster.run("/usr/bin/scancel", job)
    slurm.cluster.wait(job)
    slurm.cluster.idle()
    assert " boot " in slurm.site.call("logs", job).stdout


def test_another_users_guest_is_closed(
    slurm: SlurmSite, alice: pwd.struct_passwd, bob: pwd.struct_passwd, work: Path
) -> None:
    job = submit(slurm, alice, work, "#!/bin/bash\necho on\nsleep 600\n")
    slurm.says(work / f"slurm-{job}.out", "on\n")
    done = slurm.site.call("shell", job, "--", "id", user=bob.pw_uid, cwd="/tmp")
    assert done.returncode != 0 and "uid=" not in done.stdout
    assert slurm.site.call("logs", job, user=bob.pw_uid).returncode != 0
    slurm.cluster.run("/usr/bin/scancel", job)
    slurm.cluster.wait(job)


def test_doctor_and_check_know_this_slurm(slurm: SlurmSite) -> None:
    report = slurm.site.call("doctor")
    assert report.returncode == 0, report.stdout
    assert "Slurm: " in report.stdout and "failure" not in report.stdout
    assert (
        slurm.site.call("install", "--scheduler", "slurm", "--prefix", slurm.site.folder / "usr", "--check").returncode == 0
    )


def test_a_broken_node_is_drained_and_the_job_requeued(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    """libvirtd down is the node's fault: Slurm drains it and requeues the job, as the README says."""
    slurm.site.configure(libvirt={"uri": "qemu+unix:///system?socket=/nonexistent/libvirt-sock"})
    try:
        job = submit(slurm, alice, work, WHERE, "-w", "n2")
        daemons.wait_for(lambda: "dr" in slurm.cluster.states()["n2"], 60, "the drain of n2")
        fields = slurm.cluster.job(job)
        assert fields["JobState"] == "PENDING" and fields["Restarts"] == "1"
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
