"""How a job's shell finds its guest: a link named after what the scheduler leaves in the job's environment.

No imports: the job's shell starts with this.
"""

# scheduler -> variables of the job's environment, in the order of the link's name
VARIABLES = {
    "slurm": ("SLURM_CLUSTER_NAME", "SLURMD_NODENAME", "SLURM_JOB_ID"),
}


def name(scheduler: str, *parts: str) -> str:
    """Return the link's name. No part can lead out of the folder."""
    return "-".join((scheduler, *parts)).replace("/", "~")


def of_environment(environment: dict[str, str]) -> str | None:
    """Return the link's name for the job whose environment this is, None where no known scheduler made it."""
    for scheduler, variables in VARIABLES.items():
        parts = [environment.get(variable, "") for variable in variables]
        if all(parts):
            return name(scheduler, *parts)
    return None
