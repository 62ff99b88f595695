"""The real Slurm, two nodes on this host, an ordinary user: jobs in all their forms, and mistakes."""

import json
import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

import pytest
from devsite import VMBATCH
from slurmsite import WHERE, SlurmSite, lines, submit


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
    script = (
        "#!/bin/bash\n#SBATCH --vm=tiny\n#SBATCH -J named\n"
        "sum=0\nwhile read n; do ((sum += n)); done < data.txt\necho $sum | tee sum.txt\n"
    )
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
    assert "err" in done.stderr.splitlines()


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
    script = "echo $SLURMD_NODENAME; ifconfig eth0 | grep inet.addr"
    done = slurm.cluster.call(
        "/usr/bin/srun", "-N2", "-n2", "--vm=tiny:in=none", "sh", "-c", script,
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


def test_a_default_that_cannot_be_passed_on_is_no_job_on_the_host(
    slurm: SlurmSite, alice: pwd.struct_passwd, work: Path
) -> None:
    for command, *words in (("sbatch",), ("srun", "hostname"), ("salloc", "hostname")):
        done = slurm.cluster.call(
            f"/usr/bin/{command}", *words, user=alice.pw_uid, cwd=work, input=WHERE, env={"VMBATCH_VM": "a" * 1001}
        )
        assert done.returncode != 0 and done.stdout == ""
        assert "at most 1000 bytes" in done.stderr


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
    argv = ["timeout", "3", str(VMBATCH), "--config", str(slurm.site.config), "console", job]
    watched = subprocess.run(argv, user=alice.pw_uid, group=alice.pw_gid, capture_output=True, check=False)
    assert b"Linux version" in watched.stdout, watched.stderr
    inside = slurm.cluster.call(
        "/usr/bin/srun", "--jobid", job, "--overlap", "-Q", "-n1", "hostname", user=alice.pw_uid, cwd=work
    )
    assert inside.stdout == f"job-{job}\n", inside.stderr
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
