"""Guests whose job is gone: after a crash, a reboot, or an epilogue that never ran. The same stop() as the epilogue's.

Also puts old archives away, and ends domains of ours that no journal knows.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from xml.etree import ElementTree  # what it reads is libvirt's own output

from vmbatch import accelerator, backends, lifecycle
from vmbatch.config import Config
from vmbatch.domain import NAMESPACE
from vmbatch.errors import SiteError
from vmbatch.hypervisor import Hypervisor
from vmbatch.journal import Journal, numbers
from vmbatch.pids import kill
from vmbatch.teardown import qemu


def journals(config: Config) -> Iterator[Journal]:
    """Yield the starts on this node that have not ended."""
    folder = config.paths.state / "jobs"
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            yield from (Journal(entry / str(n)) for n in numbers(entry))


def reap(config: Config) -> tuple[list[str], list[str]]:
    """Stop what is dead. Returns (keys that were stopped, sentences about what could not be)."""
    stopped, failures = [], []
    for journal in list(journals(config)):
        why = dead(config, journal)
        if not why:
            continue
        try:
            lifecycle.stop(config, journal.key)
            stopped.append(f"{journal.name}: {why}")
        except Exception as error:  # one guest that cannot be stopped keeps no other one
            failures.append(f"{journal.name}: {error or type(error).__name__}")
    orphans, failed = _orphans(config)
    archive(config)
    return stopped + orphans, failures + failed


def dead(config: Config, journal: Journal) -> str:
    """Return why a start is dead, "" where it lives or nobody can tell."""
    if journal.busy:
        return ""
    guest = lifecycle.read_guest(journal)
    began = next((float(line["t"]) for line in journal.lines() if line.get("do") == "begin"), 0.0)
    if guest and guest.boot_id != accelerator.boot_id():
        return "the node was rebooted"
    if journal.cancelled:
        return "its stop was not finished"
    name = journal.key.partition("-")[0]
    if name not in backends.names("schedulers"):
        return ""
    scheduler = backends.load("schedulers", name)
    if time.time() - began < scheduler.SETTLE_S:
        return ""
    alive = scheduler.alive(config, guest.job_id if guest else journal.key.rpartition("-")[2])
    return "its job is gone" if alive is False else ""


def _orphans(config: Config) -> tuple[list[str], list[str]]:
    """End domains that carry our mark but have no journal: those of a lost state folder."""
    ended, failures = [], []
    try:
        with Hypervisor(config.libvirt.uri, config.libvirt.call_timeout_s) as hypervisor:
            domains = list(hypervisor.domains())
            # read after the domains: a start writes its journal before it makes its domain
            known = {f"vmbatch-{journal.name}" for journal in journals(config)}
            for name, xml in domains:
                mark = ElementTree.fromstring(xml).find(f"metadata/{{{NAMESPACE}}}job")
                if name in known or mark is None or mark.get("state") != str(config.paths.state):
                    continue
                for who in qemu(ElementTree.fromstring(xml).findtext("uuid", "")):
                    kill(who)
                hypervisor.destroy(name)
                ended.append(f"{name}: no journal knows it")
    except SiteError as error:
        failures.append(str(error))
    return ended, failures


def archive(config: Config) -> None:
    """Remove the journals of jobs that ended longer than limits.keep_days ago."""
    limit = time.time() - config.limits.keep_days * 86400
    folder = config.paths.state / "archive"
    for entry in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            if entry.stat().st_mtime < limit:
                shutil.rmtree(entry)
