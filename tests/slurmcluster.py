"""A private Slurm on one host: slurmctld and two slurmd (n1, n2), as a site would have it, below one folder."""

import os
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from daemons import Daemons, munge, wait_for
from devsite import WORKER

CLUSTER = f"vmtest{WORKER}"
CONF = """\
ClusterName={cluster}
SlurmctldHost={host}
AuthType=auth/munge
AuthInfo=cred_expire=30
SlurmUser=root
SlurmctldPort={port}
StateSaveLocation={dir}/state
SlurmctldPidFile={dir}/slurmctld.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdSpoolDir={dir}/spool.%n
SlurmdPidFile={dir}/slurmd.%n.pid
SlurmdLogFile={dir}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=nohold_on_prolog_fail,sched_interval=1,sched_min_interval=0
DefMemPerCPU=400
MpiDefault=none
ReturnToService=2
KillWait=5
MailProg=/bin/true
{extra}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs={cpus} RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE OverTimeLimit=0 State=UP
"""


def _free_ports(count: int) -> list[int]:
    """Ports that nothing uses just now: a cluster on the last one's ports may meet its last processes."""
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Cluster:
    """slurmctld and slurmd as children of ours, in the foreground."""

    def __init__(self, folder: Path, daemons: Daemons, extra: str = "", cpus: int = 0) -> None:
        self.folder, self.daemons = folder, daemons
        self.conf = folder / "slurm.conf"
        for name in ("state", "spool.n1", "spool.n2"):
            (folder / name).mkdir(parents=True)
        host = os.uname().nodename.partition(".")[0]
        port, port1, port2 = _free_ports(3)
        cpus = cpus or max(1, (os.cpu_count() or 1) // 2)
        self.conf.write_text(
            CONF.format(cluster=CLUSTER, host=host, dir=folder, cpus=cpus, extra=extra, port=port, port1=port1, port2=port2)
        )
        self.env = {**os.environ, "SLURM_CONF": str(self.conf), "SHELL": "/bin/bash"}
        self.slurmd: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> "Cluster":
        munge(self.daemons)
        self.controller = self.daemons.start("/usr/sbin/slurmctld", "-D", env={"SLURM_CONF": str(self.conf)})
        for node in ("n1", "n2"):
            self.start_node(node)
        wait_for(lambda: self.states() == {"n1": "idle", "n2": "idle"}, 60, "the start of Slurm")
        return self

    def start_node(self, node: str) -> None:
        self.slurmd[node] = self.daemons.start("/usr/sbin/slurmd", "-D", "-N", node, env={"SLURM_CONF": str(self.conf)})

    def run(self, *argv: str, user: int | None = None, check: bool = True, **options: Any) -> str:
        done = self.call(*argv, user=user, **options)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def call(
        self, *argv: str, user: int | None = None, timeout: float = 180, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        ids = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        return subprocess.run(
            argv, capture_output=True, text=True, env={**self.env, **options.pop("env", {})}, timeout=timeout,
            errors="replace", check=False, **ids, **options,
        )  # fmt: skip

    def states(self) -> dict[str, str]:
        done = self.call("/usr/bin/sinfo", "-h", "-N", "-o", "%N %t")
        return dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)

    def idle(self) -> None:
        wait_for(lambda: set(self.states().values()) == {"idle"}, 90, f"idle nodes ({self.states()})")

    def resume(self) -> None:
        """Put drained nodes back into service."""
        for node, state in self.states().items():
            if "dr" in state or "down" in state:
                self.run("/usr/bin/scontrol", "update", f"nodename={node}", "state=resume")

    def submit(self, script: str, *options: str, user: int, cwd: Path) -> str:
        """sbatch a script's text as a user; returns the job id."""
        out = self.run("/usr/bin/sbatch", "--parsable", *options, user=user, cwd=cwd, input=script)
        return out.strip().partition(";")[0]

    def job(self, job: str) -> dict[str, str]:
        text = self.call("/usr/bin/scontrol", "-o", "show", "job", job).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait(self, job: str, *states: str, timeout_s: float = 120) -> dict[str, str]:
        """Wait until the job is in one of the states (ended ones by default); returns its fields."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        deadline = time.monotonic() + timeout_s
        while (fields := self.job(job)).get("JobState") not in wanted:
            assert time.monotonic() < deadline, f"job {job} is {fields}"
            time.sleep(0.1)
        return fields
