"""local: no scheduler; `vmbatch run` starts, runs and stops in one command."""

import os
from pathlib import Path

from vmbatch.config import Config
from vmbatch.errors import SiteError
from vmbatch.model import Allocation, Job

REQUEUE = 1
SETTLE_S = 0  # how old a start is before alive() can know of it


def job(config: Config, request: str, workdir: Path) -> Job:
    """Make a job of this user's own, with the next free number."""
    number = _next(config.paths.state)
    user = os.environ.get("USER") or str(os.geteuid())
    tmpdir = os.environ.get("TMPDIR")
    return Job(
        scheduler="local",
        cluster="local",
        node=os.uname().nodename.partition(".")[0],
        id=str(number),
        user=user,
        uid=os.geteuid(),
        gid=os.getegid(),
        workdir=workdir,
        request=request,
        asked_by="command",
        tmpdir=Path(tmpdir) if tmpdir else None,
    )


def _next(state: Path) -> int:
    """Return a number that no other job has: an exclusive file decides between two that start at once."""
    folder = state / "local"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = 1 + max((int(file.name) for file in folder.iterdir() if file.name.isdigit()), default=0)
        while True:
            try:
                os.close(os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                break
            except FileExistsError:
                number += 1
        for older in folder.iterdir():
            if older.name.isdigit() and int(older.name) < number - 100:
                older.unlink(missing_ok=True)
    except OSError as error:
        raise SiteError(f"cannot write to {folder}: {error.strerror}", "set [paths] state") from error
    return number


def allocation(config: Config, job: Job) -> Allocation:
    """No scheduler grants anything: the request or the image decides."""
    return Allocation(None, None)


def alive(config: Config, job_id: str) -> bool | None:
    """A local job lives as long as the process that holds its journal; reap looks at that."""
    return False
