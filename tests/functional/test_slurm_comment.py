"""Requests in --comment, without the plugin: whatever is submitted, nothing of such a job runs on the host."""

import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import daemons
import pytest
from slurmsite import WHERE, SlurmSite, lines, slurm_site

ASKED = "--comment=nightly vm=tiny:in=none"


@pytest.fixture(scope="module")
def slurm(processes: daemons.Daemons, libvirt: None, images: Any) -> Iterator[SlurmSite]:
    images("tiny")
    with slurm_site(processes, plugin=False) as made:
        yield made


def test_a_plain_script_never_prints_a_line_on_the_host(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    script = f"{WHERE}echo ran > ran\n"
    job = slurm.cluster.submit(script, ASKED, user=alice.pw_uid, cwd=work)
    assert slurm.cluster.wait(job)["JobState"] == "FAILED"
    assert lines(slurm.out(job, work), "host=") == []
    assert "its script would run on the host" in slurm.out(job, work)
    assert f"#!{slurm.site.folder}/usr/bin/vmbatch-remoteshell" in slurm.out(job, work)
    assert not (work / "ran").exists()


def test_a_forged_guest_does_not_pass_the_guard(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    (work / "state").write_text("state ready\nasked_by option\n")
    export = f"--export=ALL,VMBATCH_GUEST={work}"
    job = slurm.cluster.submit(WHERE, ASKED, export, user=alice.pw_uid, cwd=work)
    assert slurm.cluster.wait(job)["JobState"] == "FAILED"
    assert lines(slurm.out(job, work), "host=") == []


@pytest.mark.parametrize("command", ["srun", "salloc"])
def test_a_step_never_runs_on_the_host(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path, command: str) -> None:
    shown = ["sh", "-c", "echo host=$(hostname)"]
    words = shown if command == "srun" else ["-Q", "srun", *shown]
    done = slurm.cluster.call(f"/usr/bin/{command}", ASKED, *words, user=alice.pw_uid, cwd=work)
    assert done.returncode != 0
    assert "host=" not in done.stdout
    assert "--vm" in done.stdout + done.stderr


def test_a_script_that_names_our_shell_runs_in_the_guest(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    shell = slurm.site.folder / "usr/bin/vmbatch-remoteshell"
    for first, rest in ((f"#!{shell}", "echo host=$(hostname)"), (f"#!{shell} /bin/bash", "echo host=$(hostname) ${#BASH}")):
        job = slurm.cluster.submit(f"{first}\n{rest}\nexit 3\n", ASKED, user=alice.pw_uid, cwd=work)
        assert slurm.cluster.wait(job)["ExitCode"] == "3:0", slurm.out(job, work)
        assert f"host=job-{job}" in slurm.out(job, work)


def test_a_mistake_in_the_comment_is_the_jobs_own(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    job = slurm.cluster.submit(WHERE, "--comment=vm=tniy", user=alice.pw_uid, cwd=work)
    assert slurm.cluster.wait(job)["JobState"] == "FAILED"
    assert lines(slurm.out(job, work), "host=") == []
    slurm.cluster.idle()


def test_other_comments_are_left_alone(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    for comment in ("svm=tiny", "my vms", "vm"):
        job = slurm.cluster.submit(WHERE, f"--comment={comment}", user=alice.pw_uid, cwd=work)
        assert slurm.cluster.wait(job)["JobState"] == "COMPLETED", slurm.out(job, work)
        assert f"host={os.uname().nodename} " in slurm.out(job, work)
