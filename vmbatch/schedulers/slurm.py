"""Slurm: the environment of Prolog and Epilog -> Job. Recorded from 22.05; see slurm.conf(5) and prolog_epilog.shtml.

A request comes from the plugin (SPANK_VMBATCH_VM, set by spank_job_control_setenv) or, where the site allows it, from
a token vm=... in --comment. A failing Prolog drains the node, so a user's mistake never makes it fail.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from vmbatch.config import Config
from vmbatch.errors import SiteError, UserError
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
    return granted(scontrol(config, "-o", "-d", "show", "job", job.id), job)


def granted(answer: str, job: Job) -> Allocation:
    """Find the node's part in `scontrol -o -d show job`: a line a job, several for an array. Pure.

    A user's texts (job name, comment, folders) stand in the same line and may look like that part. The true one is
    there too, so two of them for one node are a forgery. Nothing that such a text does may cost the node: UserError.
    """
    lines = [line for line in answer.split("\n") if line.startswith(f"JobId={job.id} ")]
    parts = [part for line in lines for part in re.findall(r" Nodes=(\S{1,2000}) CPU_IDs=(\S*) Mem=(\S+)", line)]
    ours = [(cpus, memory) for nodes, cpus, memory in parts if holds(nodes, job.node)]
    if not ours:
        raise UserError(f"Slurm does not list node {job.node} for job {job.id}", f"scontrol -d show job {job.id}")
    if len(ours) > 1:
        raise UserError("a text of this job looks like an allocation (Nodes=... CPU_IDs=...)", "submit with another -J")
    (cpus, memory) = ours[0]
    if not re.fullmatch(r"[0-9,-]*", cpus) or not memory.isdecimal():
        raise SiteError(f"Slurm's answer cannot be read: CPU_IDs={cpus} Mem={memory}")
    return Allocation(_count(cpus), int(memory) or None)


def holds(nodes: str, node: str) -> bool:
    """Whether a node is in Slurm's list, such as `login,n[1-3,07]x`. Nothing is expanded: the list may be a forgery."""
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        pieces = re.split(r"\[([0-9,-]*)\]", item)
        pattern = "".join(re.escape(piece) if i % 2 == 0 else "([0-9]+)" for i, piece in enumerate(pieces))
        match = re.fullmatch(pattern, node)
        if match and all(_within(number, ranges) for number, ranges in zip(match.groups(), pieces[1::2], strict=True)):
            return True
    return False


def _within(number: str, ranges: str) -> bool:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal() and len(number) >= len(first):
            padded = len(number) == len(first) or not number.startswith("0")
            if padded and int(first) <= int(number) <= int(last or first):
                return True
    return False


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
