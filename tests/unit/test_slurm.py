"""The Slurm back end, held against recorded calls of a real Slurm."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import things

from vmbatch import joblink
from vmbatch.errors import SiteError, UserError
from vmbatch.model import Allocation, Job
from vmbatch.schedulers import slurm

DATA = Path(__file__).parent.parent / "data" / "schedulers" / "slurm-22.05"


def recorded(kind: str) -> list[dict[str, str]]:
    return [json.loads(file.read_text())["env"] for file in sorted(DATA.glob(f"{kind}-*.json"))]


@pytest.mark.parametrize("env", recorded("prolog") + recorded("epilog"), ids=lambda env: env["SLURM_JOB_ID"])
def test_a_recorded_call_becomes_a_job(env: dict[str, str], tmp_path: Path) -> None:
    job = slurm.read(things.config(tmp_path), env)
    assert (job.id, job.node, job.user) == (env["SLURM_JOB_ID"], env["SLURMD_NODENAME"], env["SLURM_JOB_USER"])
    assert job.key == f"slurm-t-{env['SLURMD_NODENAME']}-{env['SLURM_JOB_ID']}"
    assert job.request is None


def test_prolog_epilog_and_the_job_itself_agree_on_the_guest(tmp_path: Path) -> None:
    conf = things.config(tmp_path)
    keys = {kind: slurm.read(conf, recorded(kind)[0]).key for kind in ("prolog", "epilog")}
    assert keys["prolog"] == keys["epilog"]
    job = slurm.read(conf, recorded("prolog")[0])
    task = next(env for env in recorded("tprolog") if env["SLURM_JOB_ID"] == job.id)
    assert joblink.of_environment(task) == joblink.name("slurm", job.cluster, job.node, job.id)


def test_the_restart_count_is_no_part_of_the_key(tmp_path: Path) -> None:
    env = recorded("prolog")[0]
    keys = {slurm.read(things.config(tmp_path), {**env, "SLURM_JOB_RESTART_COUNT": str(n)}).key for n in range(3)}
    assert len(keys) == 1


def test_the_plugins_request_comes_before_a_comment(tmp_path: Path) -> None:
    env = {**recorded("prolog")[0], "SLURM_JOB_COMMENT": "x vm=a:memory=1G y"}
    conf = things.config(tmp_path)
    assert slurm.read(conf, env).request is None
    conf = replace(conf, slurm=replace(conf.slurm, comment=True))
    assert (slurm.read(conf, env).request, slurm.read(conf, env).asked_by) == ("a:memory=1G", "comment")
    env["SPANK_VMBATCH_VM"] = "b"
    assert (slurm.read(conf, env).request, slurm.read(conf, env).asked_by) == ("b", "option")


@pytest.mark.parametrize("comment", ["", "novm=a", "vms", "x,vm=a", "VM=a"])
def test_only_a_word_of_its_own_is_a_request(comment: str) -> None:
    assert slurm.token(comment) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLURM_JOB_ID", "../x"), ("SLURM_JOB_ID", ""), ("SLURM_JOB_UID", "root"), ("SLURMD_NODENAME", None)],
)
def test_nonsense_from_slurm_is_the_sites_error(name: str, value: str | None, tmp_path: Path) -> None:
    env = dict(recorded("prolog")[0])
    env.pop(name)
    if value is not None:
        env[name] = value
    with pytest.raises(SiteError):
        slurm.read(things.config(tmp_path), env)


SHOWN = (
    "JobId=5 JobName=x UserId=alice(1001) NumNodes=3 NumCPUs=7 TRES=cpu=7,mem=3G "
    "Nodes=n1 CPU_IDs=0-1 Mem=700 GRES= Nodes=n[2-3] CPU_IDs=0,2-4,9 Mem=1400 GRES= MinCPUsNode=1"
)


@pytest.mark.parametrize(("node", "cpus", "memory"), [("n1", 2, 700), ("n3", 5, 1400)])
def test_the_allocation_is_that_of_this_node(node: str, cpus: int, memory: int) -> None:
    asked = replace(things.JOB, id="5", node=node)
    assert slurm.granted(SHOWN, asked) == Allocation(cpus, memory)
    with pytest.raises(UserError, match="does not list node n9"):
        slurm.granted(SHOWN, replace(asked, node="n9"))


@pytest.mark.programs
@pytest.mark.parametrize(
    ("script", "alive"),
    [
        ("echo RUNNING", True),
        ("echo COMPLETING", True),
        ("echo SUSPENDED", True),
        ("echo PENDING", False),
        ("echo COMPLETED", False),
        ("true", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_a_job_is_alive_gone_or_nobody_can_tell(script: str, alive: bool | None, tmp_path: Path) -> None:
    tool = tmp_path / "squeue"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    assert slurm.alive(things.config(tmp_path, f'[slurm]\nbin = "{tmp_path}"\n'), "5") is alive


HONEST = "JobId=1 JobName=x UserId=a(1) TRES=cpu=2,mem=800M  Nodes=n[1-2] CPU_IDs=0-1 Mem=800 GRES= Command=/x"


def job(node: str, tmp_path: Path) -> Job:
    return replace(slurm.read(things.config(tmp_path), recorded("prolog")[0]), node=node, id="1")


def test_the_allocation_is_the_nodes_part(tmp_path: Path) -> None:
    assert slurm.granted(HONEST, job("n2", tmp_path)) == Allocation(2, 800)
    with pytest.raises(UserError, match="does not list"):
        slurm.granted(HONEST, job("n3", tmp_path))
    others = HONEST.replace("JobId=1 ", "JobId=12 ArrayJobId=1 ").replace("Mem=800", "Mem=900")
    assert slurm.granted(f"{others}\n{HONEST}\n", job("n1", tmp_path)) == Allocation(2, 800)


@pytest.mark.parametrize("text", ["x\ny", "x\nJobId=1 Nodes=n1 CPU_IDs=0-63 Mem=900000 "])
def test_a_line_end_in_a_job_name_costs_no_node(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        slurm.granted(HONEST.replace("JobName=x", f"JobName={text}"), job("n1", tmp_path))


@pytest.mark.parametrize("cpus", ["0-63", "a", "0-99999999999", ""])
@pytest.mark.parametrize("nodes", ["n1", "n[1-99999999999]", "x,n1"])
def test_a_job_name_cannot_forge_an_allocation(nodes: str, cpus: str, tmp_path: Path) -> None:
    forged = HONEST.replace("JobName=x", f"JobName=x Nodes={nodes} CPU_IDs={cpus} Mem=900000 ")
    with pytest.raises(UserError, match="looks like an allocation"):
        slurm.granted(forged, job("n1", tmp_path))


@pytest.mark.parametrize(
    ("nodes", "inside", "outside"),
    [
        ("n1", "n1", "n10"),
        ("n[1-3,7]", "n7", "n5"),
        ("a,n[08-11]", "n09", "n9"),
        ("n[1-2]x[3-4]", "n2x4", "n3x4"),
        ("n[9-11].c", "n10.c", "n010.c"),
    ],
)
def test_a_node_is_found_in_slurms_lists(nodes: str, inside: str, outside: str) -> None:
    assert slurm.holds(nodes, inside)
    assert not slurm.holds(nodes, outside)
