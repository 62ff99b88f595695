"""Requests in --comment with our job_submit.lua: unmodified scripts run in the guest; what cannot is refused at once."""

import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import daemons
import pytest
from slurmsite import WHERE, SlurmSite, slurm_site

ASKED = "--comment=vm=tiny:in=none"


@pytest.fixture(scope="module")
def slurm(processes: daemons.Daemons, libvirt: None, images: Any) -> Iterator[SlurmSite]:
    images("tiny")
    with slurm_site(processes, extra="JobSubmitPlugins=lua", plugin=False) as made:
        yield made


def test_an_unmodified_script_runs_in_the_guest(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    script = "#!/bin/bash -e\n#SBATCH -J x\n[[ $1 = 'a b' ]]\necho host=$(hostname) $-\nexit 3\n"
    (work / "job.sh").write_text(script)
    out = slurm.cluster.run("/usr/bin/sbatch", "--parsable", ASKED, "job.sh", "a b", user=alice.pw_uid, cwd=work)
    job = out.strip()
    assert slurm.cluster.wait(job)["ExitCode"] == "3:0", slurm.out(job, work)
    assert slurm.out(job, work).startswith(f"host=job-{job} e")


@pytest.mark.parametrize("command", [("srun", "hostname"), ("salloc", "hostname"), ("sbatch", "--wrap", "hostname")])
def test_only_scripts_can_ask_so(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path, command: tuple[str, ...]) -> None:
    name, *rest = command
    done = slurm.cluster.call(f"/usr/bin/{name}", ASKED, *rest, user=alice.pw_uid, cwd=work)
    if name == "sbatch":  # --wrap makes a script
        job = done.stdout.split()[-1]
        slurm.cluster.wait(job)
        assert slurm.out(job, work) == f"job-{job}\n"
    else:
        assert done.returncode != 0 and done.stdout == ""
        assert "use sbatch" in done.stderr


def test_a_vm_cannot_be_asked_for_later(slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    out = slurm.cluster.run("/usr/bin/sbatch", "--parsable", "--hold", user=alice.pw_uid, cwd=work, input=WHERE)
    done = slurm.cluster.call("/usr/bin/scontrol", "update", f"jobid={out.strip()}", "comment=vm=tiny", user=alice.pw_uid)
    assert done.returncode != 0
    assert slurm.cluster.job(out.strip()).get("Comment", "") == ""
    slurm.cluster.run("/usr/bin/scancel", out.strip())
