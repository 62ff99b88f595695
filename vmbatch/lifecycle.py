"""The life of a guest: start() and stop(), the order and nothing but the order."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM

from vmbatch import __version__ as version
from vmbatch import (
    backends,
    catalogue,
    choices,
    contexts,
    domain,
    events,
    networks,
    node,
    output,
    payload,
    plan,
    ready,
    request,
    rundir,
    slots,
    templates,
)
from vmbatch.config import Config
from vmbatch.errors import GuestError, OfferError, SiteError, UserError
from vmbatch.failpoints import reach
from vmbatch.hypervisor import Hypervisor, LibvirtError
from vmbatch.images import supply
from vmbatch.journal import Journal
from vmbatch.model import Guest, Job
from vmbatch.pids import Identity, ended, kill
from vmbatch.process import call_as
from vmbatch.records import from_json, to_json
from vmbatch.teardown import Tools, qemu, teardown

_QUIT_S = 5  # how long QEMU may take to write its tables, where the guest did not power off
_STOP_CALL_S = 5.0  # libvirt's time for one call of a stop; QEMU has been killed before


def start(config: Config, job: Job) -> Guest:
    """Bring up the job's guest. Raises UserError, GuestError or SiteError.

    After a UserError, GuestError or OfferError nothing stands but the reason, where the job's shell reads it.
    After anything else the caller must stop(): the journal says what stands.
    """
    for older in Journal.unended(config.paths.state, job.key):
        _stop_one(config, older)
    journal = Journal.begin(config.paths.state, job.key)
    with journal.held(start=True), Hypervisor(config.libvirt.uri, config.libvirt.call_timeout_s) as hypervisor:
        try:
            return _start(config, job, journal, hypervisor)
        except (UserError, GuestError, OfferError) as error:
            events.log(journal, f"refused: {error}")
            failures = teardown(journal, Tools(config, hypervisor))
            if failures:
                raise SiteError("; ".join(failures)) from error
            rundir.refuse(config, journal, job, error)
            raise


def _start(config: Config, job: Job, journal: Journal, hypervisor: Hypervisor) -> Guest:
    with events.step(journal, "plan"):
        folder = rundir.make(config, journal, job)
        rundir.write_state(
            folder, "starting", job=job.id, key=job.key, n=journal.n, user=job.user, uid=job.uid, log=journal.directory
        )
        wish = request.parse(job.request or "")
        images = catalogue.choose(config, wish)
        template = templates.read(config, plan.choose_template(images[""], wish))
        offer = node.survey(config, backends.load("schedulers", job.scheduler), job)
        rundir.give_log(journal, "vmbatch.log", offer.person)
        for image in images.values():
            catalogue.permit(image, offer.person)
        choices.check(template, wish)
        size = plan.size(config, images[""], wish, offer)
    with events.step(journal, "slot"):
        slot = slots.take(config, journal, size)
    guest = plan.plan(config, images, template, job, wish, offer, size, slot, journal.n, journal.directory)
    network = backends.load("networks", networks.MODULES[guest.nic.network])
    context = backends.load("contexts", contexts.MODULES[guest.context])
    _keep(journal, "guest.json", to_json(guest))
    events.log(journal, f"runs on {guest.hypervisor}: {guest.accelerator}")
    descriptors: dict[str, int] = {}
    with events.step(journal, "disk"):
        guest = supply.bring(config, guest, journal, descriptors)
        _keep(journal, "guest.json", to_json(guest))
    with events.step(journal, "context"):
        context.before_boot(guest, payload.payload(guest, *rundir.fill(guest)), journal)
    with events.step(journal, "network"):
        network.prepare(guest.nic, journal, config, hypervisor)
    with events.step(journal, "domain"):
        xml = domain.build(template, guest)
        domain.validate(xml)
        _keep(journal, "domain.xml", xml)
        journal.will("domain", guest.name, uuid=guest.uuid, cards=[nic.host_device for nic in guest.nics])
        live = _power_on(guest, hypervisor, xml, descriptors)
        running = next(iter(qemu(guest.uuid)), None)
        rundir.give_log(journal, "console.log", guest.person)
        with _while_it_lives(running):
            network.started(guest.nic, guest, hypervisor)
    with events.step(journal, "boot"):
        channel = domain.ready_socket(live)
        assert channel is not None, "domain.build always makes one"
        ready.wait(guest, channel, running, journal.check)
    with events.step(journal, "handover"):
        with _while_it_lives(running):
            context.after_boot(guest, hypervisor)
        control = guest.run_dir / "mux" / "s"
        journal.will("ssh", control, person=[guest.person.name, guest.person.uid, guest.person.gid])
        rundir.hand_over(config, guest, running, events.phases(journal))
    return guest


def _power_on(guest: Guest, hypervisor: Hypervisor, xml: str, descriptors: dict[str, int]) -> str:
    """Start the domain. With files of the user it stands still until it is sure that QEMU read what we looked at."""
    try:
        supply.settled(guest, descriptors)
        live = hypervisor.start(xml, descriptors)
        supply.settled(guest, descriptors)
    except LibvirtError as error:
        if guest.brought and not error.hint:  # libvirt is well: it is QEMU that does not take them
            raise UserError(f"QEMU does not take what the job brings along: {error.message}", "vmbatch check") from None
        raise
    if descriptors:
        hypervisor.resume(guest.name)
    supply.release(descriptors)
    return live


@contextmanager
def _while_it_lives(running: Identity | None) -> Iterator[None]:
    """A guest that ends by itself while we deal with it is its image's fault, not the node's."""
    try:
        yield
    except SiteError:
        if running and ended(running, 0.5):
            raise GuestError(
                "the guest ended by itself while it was started", "vmbatch logs JOB shows its console"
            ) from None
        raise


def stop(config: Config, key: str) -> None:
    """Take everything of a job away: collect what its shell could not, tear down, archive. May be repeated.

    Raises SiteError with a sentence for everything that could not be removed.
    """
    failures = [text for journal in Journal.unended(config.paths.state, key) for text in _stop_one(config, journal)]
    if failures:
        raise SiteError("; ".join(failures), "vmbatch reap tries again")


def _stop_one(config: Config, journal: Journal) -> list[str]:
    journal.cancel()
    reach("stop:cancelled")
    try:
        with journal.held(start=False, grace_s=config.limits.stop_timeout_s):
            if not journal.directory.exists():  # another stop was quicker
                return []
            reach("stop:locked")
            try:
                _collect(config, journal)
            except Exception as error:  # what cannot be collected is lost; the guest goes all the same
                events.log(journal, f"the job's files could not be collected: {error or type(error).__name__}")
            with Hypervisor(config.libvirt.uri, _STOP_CALL_S) as hypervisor:
                _settle(config, journal, hypervisor)
                failures = teardown(journal, Tools(config, hypervisor))
            for text in failures:
                events.log(journal, text)
            if not failures:
                _record(journal)
                journal.archive(config.paths.state)
            return failures
    except FileNotFoundError:
        return []


def _settle(config: Config, journal: Journal, hypervisor: Hypervisor) -> None:
    """Let a guest whose disk is kept write what it still holds, before it is taken away."""
    guest = read_guest(journal)
    running = qemu(guest.uuid) if guest and guest.kept else []
    if guest is None or not running:
        return
    with events.step(journal, "power off"):
        try:
            hypervisor.power_off(guest.name)
        except SiteError as error:
            events.log(journal, f"the power button does not work: {error}")
        for number, limit_s in ((None, config.limits.stop_timeout_s), (SIGTERM, _QUIT_S)):
            if number:
                kill(running[0], number)
            if ended(running[0], limit_s):
                return


def _collect(config: Config, journal: Journal) -> None:
    """Collect, as the user, what the job's shell did not get to: after a cancel or a time limit."""
    guest = read_guest(journal)
    if guest is None or not output.uncollected(guest.run_dir) or not qemu(guest.uuid):
        return
    with events.step(journal, "collect"):
        facts = rundir.read_state(guest.run_dir)
        status = call_as(guest.person, lambda: output.fetch(str(guest.run_dir), facts), config.files.collect_timeout_s)
        if status != 0:
            why = "it took too long" if status is None else "see the note among the results"
            events.log(journal, f"the job's files could not all be collected: {why}")


def read_guest(journal: Journal) -> Guest | None:
    """Return the guest of a journal, None where the start did not get as far as planning one."""
    try:
        guest: Guest = from_json(Guest, (journal.directory / "guest.json").read_text())
    except (OSError, ValueError):
        return None
    return guest


def _record(journal: Journal) -> None:
    """One JSON record a job: what ran, on what, and how long each phase took."""
    guest = read_guest(journal)
    record = {
        "schema": 1,
        "key": journal.key,
        "n": journal.n,
        "vmbatch": version,
        "phases_s": events.phases(journal),
        "guest": json.loads(to_json(guest)) if guest else None,
        "domain_xml": _text(journal.directory / "domain.xml"),
    }
    _keep(journal, "record.json", json.dumps(record, indent=1, sort_keys=True) + "\n")


def _text(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None


def _keep(journal: Journal, name: str, text: str) -> None:
    handle = os.open(journal.directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", errors="surrogateescape") as file:
        file.write(text)
