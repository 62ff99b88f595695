"""Jobs whose guest is on another node: reached through the scheduler, as the job's owner."""

import os
import shutil
from pathlib import Path

from vmbatch import status
from vmbatch.config import Config
from vmbatch.errors import UserError


def here(config: Config, job: str) -> Path | None:
    """Return the folder of the job's guest on this node; None where Slurm can be asked to reach it elsewhere."""
    try:
        return status.find(config, job)
    except UserError:
        if shutil.which("srun") and job.replace("_", "").replace("+", "").isdigit():
            return None
        raise


def overlap(job: str, *command: str, terminal: bool = False) -> None:
    """Become an srun step inside the job, which the plugin leads to the job's shell. Does not return."""
    options = ["--jobid", job, "--overlap", "--quiet", "-N1", "-n1"]
    if terminal:
        options.append("--pty")
    os.execvp("srun", ["srun", *options, *command])
