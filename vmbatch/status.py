"""What guests stand on this node, from what the job's shell reads; for root also from the journals."""

import json
import os
from pathlib import Path
from typing import Any

from vmbatch import events, reap, rundir
from vmbatch.config import Config
from vmbatch.errors import UserError, nearest
from vmbatch.pids import Identity, identify

FIELDS = ("job", "key", "n", "user", "image", "phase", "phases_s", "hypervisor", "cpus", "memory_mib", "address", "reason")


def folders(config: Config) -> dict[str, Path]:
    """Return job id -> folder of its guest, for every job on this node that has one or was refused one."""
    links = config.paths.run / "by-job"
    found = {}
    for link in sorted(links.iterdir()) if links.is_dir() else ():
        facts = rundir.read_state(link)
        if facts.get("job") and not link.name.startswith("."):
            found[facts["job"]] = Path(os.path.realpath(link))
    return found


def find(config: Config, job: str) -> Path:
    """Return the folder of a job's guest by job id or key. Raises UserError with the nearest ids."""
    known = folders(config)
    for job_id, folder in known.items():
        if job in (job_id, folder.name, folder.name.rpartition(".")[0]):
            return folder
    if not known:
        raise UserError(f"there is no guest of job '{job}' on this node", "vmbatch status")
    raise UserError(f"there is no guest of job '{job}' on this node", f"the nearest are: {nearest(job, known)}")


def rows(config: Config) -> list[dict[str, Any]]:
    """Return one record a guest, with the keys FIELDS; None where something is not known."""
    phases = {journal.name: events.phases(journal) for journal in reap.journals(config)} if config.root else {}
    return [_row(folder, phases.get(folder.name)) for folder in folders(config).values()]


def _row(folder: Path, phases: dict[str, float] | None) -> dict[str, Any]:
    facts = rundir.read_state(folder)
    row: dict[str, Any] = dict.fromkeys(FIELDS)
    row.update({word: facts[word] for word in FIELDS if word in facts})
    for word in ("n", "cpus", "memory_mib"):
        row[word] = int(facts[word]) if facts.get(word, "").isdigit() else None
    row["phase"] = _phase(facts)
    row["reason"] = facts.get("message")
    row["phases_s"] = phases or (json.loads(facts["phases"]) if "phases" in facts else None)
    return row


def _phase(facts: dict[str, str]) -> str:
    state = facts.get("state", "unknown")
    if state == "ready" and facts.get("pid", "").isdigit():
        who = Identity(int(facts["pid"]), int(facts.get("start", "0")))
        return "running" if identify(who.pid) == who else "lost"
    return state
