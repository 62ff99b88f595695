"""What this node and this allocation offer to one job."""

import grp
import os
import pwd
from pathlib import Path
from types import ModuleType

from vmbatch import accelerator
from vmbatch.config import Config
from vmbatch.errors import SiteError, UserError
from vmbatch.model import Job, Node, Person


def survey(config: Config, scheduler: ModuleType, job: Job) -> Node:
    """Look at the node for this job. Raises SiteError or UserError."""
    verdict = accelerator.choose(config)
    return Node(
        name=job.node,
        boot_id=accelerator.boot_id(),
        person=person(job.uid, job.gid),
        allocation=scheduler.allocation(config, job),
        hypervisor=verdict.hypervisor,
        accelerator=verdict.reason,
        memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
    )


def person(uid: int, gid: int | None = None) -> Person:
    """Return the passwd entry of a uid with all its groups, the primary one (`gid` where given) first."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise UserError(f"user {uid} is not known on node {os.uname().nodename}", "ask the administrator") from None
    primary = entry.pw_gid if gid is None else gid
    ids = [primary, *(g for g in os.getgrouplist(entry.pw_name, entry.pw_gid) if g != primary)]
    groups = tuple((_group_name(one), one) for one in ids)
    return Person(entry.pw_name, uid, primary, Path(entry.pw_dir), groups)


def named(name: str) -> Person:
    """Return the passwd entry of a system user that the configuration names. Raises SiteError."""
    try:
        return person(pwd.getpwnam(name).pw_uid)
    except KeyError:
        raise SiteError(f"there is no user '{name}' on this node", "set [fetch] user") from None


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"group{gid}"
