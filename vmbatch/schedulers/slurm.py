"""Slurm: the environment of Prolog and Epilog -> Job. Recorded from 22.05; see slurm.conf(5) and prolog_epilog.shtml.

A request comes from the plugin (SPANK_VMBATCH_VM, set by spank_job_control_setenv) or, where the site allows it, from
a token vm=... in --comment. A failing Prolog drains the node, so a user's mistake never makes it fail.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from vmbatch.config import Config
from vmbatch.errors import SiteError
from vmbatch.model import Allocation, Job
from vmbatch.process import run

REQUEUE = 1  # drains this node and requeues the job: what a broken node deserves
SETTLE_S = 60  # how old a start is before alive() can know of it
_ON_NODE = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


def read(config: Config, environment: Mapping[str, str]) -> Job:
    """Make a Job of what slurmd tells its hooks. Raises SiteError where a variable that we need is missing."""
    try:
        uid, user = int(environment["SLURM_JOB_UID"]), environment["SLURM_JOB_USER"]
        job_id, node = environment["SLURM_JOB_ID"], environment["SLURMD_NODENAME"]
        workdir = environment["SLURM_JOB_WORK_DIR"]
        gid = int(environment["SLURM_JOB_GID"])
    except (KeyError, ValueError) as error:
        raise SiteError(f"Slurm's environment lacks {error}", "call this file as Prolog or Epilog of slurmd") from None
    if not re.fullmatch(r"[0-9]{1,10}", job_id):
        raise SiteError(f"SLURM_JOB_ID is {job_id!r}, not a number")
    asked = environment.get("SPANK_VMBATCH_VM")
    by_comment = None if asked or not config.slurm.comment else token(environment.get("SLURM_JOB_COMMENT", ""))
    return Job(
        scheduler="slurm",
        cluster=environment.get("SLURM_CLUSTER_NAME", "cluster"),
        node=node,
        id=job_id,
        user=user,
        uid=uid,
        gid=gid,
        workdir=Path(workdir),
        request=asked or by_comment,
        asked_by="option" if asked else "comment",
    )


def token(comment: str) -> str | None:
    """Return the request in a comment such as `nightly vm=tiny:memory=1G`, None where there is none."""
    for word in comment.split():
        if word.startswith("vm="):
            return word[3:]
    return None


def allocation(config: Config, job: Job) -> Allocation:
    """Ask slurmctld what the job has on this node: the hooks' environment tells processors only, and no memory."""
    answer = scontrol(config, "-o", "-d", "show", "job", job.id)
    for nodes, cpus, memory in re.findall(r" Nodes=(\S+) CPU_IDs=(\S*) Mem=(\d+)", answer):
        if job.node in _expand(config, nodes):
            return Allocation(_count(cpus), int(memory) or None)
    raise SiteError(f"Slurm does not list node {job.node} for job {job.id}", f"scontrol -d show job {job.id}")


def alive(config: Config, job_id: str) -> bool | None:
    """Whether the job is on its nodes; None where slurmctld does not tell."""
    answer = run(
        [config.slurm.bin / "squeue", "-h", "-j", job_id, "-o", "%T"], timeout_s=30, env=_where(config), check=False
    )
    if answer.status == 0:
        return bool(_ON_NODE & set(answer.text.split()))
    return False if b"Invalid job id" in answer.stderr else None


def scontrol(config: Config, *words: str) -> str:
    """Run scontrol; SiteError holds its own words."""
    return run([config.slurm.bin / "scontrol", *words], timeout_s=30, env=_where(config)).text


def _where(config: Config) -> dict[str, str]:
    return {"SLURM_CONF": str(config.slurm.conf)}


def _count(ids: str) -> int | None:
    """Count `0-3,8`."""
    total = 0
    for part in filter(None, ids.split(",")):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total or None


def _expand(config: Config, nodes: str) -> list[str]:
    return [nodes] if "[" not in nodes and "," not in nodes else scontrol(config, "show", "hostnames", nodes).split()


def own_shell(config: Config, environment: Mapping[str, str], shell: str) -> str:
    """For the task prolog: return "" where the job's own first line leads into the guest, else why it is refused.

    Only a batch script can name its shell, and only it is asked here: with the plugin, every task gets ours anyway.
    """
    if "SLURM_STEP_ID" in environment and environment["SLURM_STEP_ID"].isdigit():
        return "srun cannot enter a guest that was asked for with --comment; ask for it with --vm (the Slurm plugin)"
    script = scontrol(config, "write", "batch_script", environment["SLURM_JOB_ID"], "-")
    first = shlex.split(script.partition("\n")[0].removeprefix("#!"), comments=False)[:1]
    if first and Path(first[0]).name == Path(shell).name:
        return ""
    return (
        f"this job asks for a guest in its comment, but its script would run on the host; "
        f"begin the script with #!{shell} or submit it with --vm=IMAGE"
    )
