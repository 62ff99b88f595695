"""What each disk of a guest is made of, brought here: from a file, the net, the user's own folder, or nothing.

Gives the guest back with what was not known before: where each base lies, and its format.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path

from vmbatch import events, node, userfiles
from vmbatch.config import Config, check_trusted
from vmbatch.disk import Disk
from vmbatch.errors import SiteError, UserError
from vmbatch.images import acquire, disks, evict, objects, once, own, store, transform
from vmbatch.images.acquire import Asker
from vmbatch.images.appear import appear
from vmbatch.images.progress import reporter
from vmbatch.journal import Journal
from vmbatch.model import Guest, Person


def bring(config: Config, guest: Guest, journal: Journal, descriptors: dict[str, int]) -> Guest:
    """Bring everything, and make what is the job's own of it. Raises UserError, SiteError or OfferError.

    Files of the user that stay open until the guest runs are put into `descriptors`: group -> descriptor.
    """
    for path in guest.written:
        store.alone(config, Path(path), journal)
    disks.scratch(config, guest, journal)
    found = []
    for disk in guest.disks:
        try:
            with _asking(config, guest, journal, disk) as asker:
                done = _bring(config, guest, journal, disk, asker, descriptors)
        except SiteError as error:  # what a user brings is never the node's fault
            if disk.origin.by_user:
                raise UserError(error.message, error.hint) from None
            raise
        if done.appears and not disk.origin.by_user:
            appear(config, journal, done)
        found.append(done)
    guest = replace(guest, disks=tuple(found))
    disks.make(guest)
    for source, target in ((guest.kernel, guest.job_kernel), (guest.initrd, guest.job_initrd)):
        if source and target:
            with _asking(config, guest, journal, guest.disks[0]) as asker:
                own.boot_file(config, guest, source, target, asker)
    for tar in guest.tars:  # the job's shell reads them, as the user; here they are held against the rules
        os.close(own.opened(config, guest.person, tar))
    if guest.own_cdrom:
        descriptors["cdrom"] = own.opened(config, guest.person, guest.own_cdrom)
    return guest


def settled(guest: Guest, descriptors: dict[str, int]) -> None:
    """Raise UserError where somebody has begun to write to a user's image that was looked at. Just before the start."""
    for disk in guest.disks:
        if disk.origin.kind != "own" or not disk.group or disk.base_format == "raw":
            continue
        descriptor = descriptors[disk.group]
        if not userfiles.held(descriptor) and os.fstat(descriptor).st_uid == guest.person.uid:
            raise UserError(f"{disk.origin.source} was written to while the job started", "submit again when it is finished")


def release(descriptors: dict[str, int]) -> None:
    """QEMU has what it needs: let the user's files go."""
    for descriptor in descriptors.values():
        userfiles.release(descriptor)
        os.close(descriptor)


@contextmanager
def _asking(config: Config, guest: Guest, journal: Journal, disk: Disk) -> Iterator[Asker]:
    """Who asks for an image, with a bar on the terminal where somebody watches, and lines in the job's log elsewhere."""

    def say(text: str) -> None:
        events.say(journal, f"disk {disk.name}: {text}")

    person = guest.person if disk.origin.by_user else fetcher(config, guest)
    with reporter(disk.name, say, sys.stderr if events.watched() else StringIO()) as progress:
        yield Asker(journal.name, person, say, progress, journal.check)


def fetcher(config: Config, guest: Guest) -> Person:
    """Return as whom the site's images are fetched: never root."""
    if not config.root:
        return guest.person
    return node.named(config.fetch.user)


def _bring(config: Config, guest: Guest, journal: Journal, disk: Disk, asker: Asker, descriptors: dict[str, int]) -> Disk:
    origin = disk.origin
    if origin.kind == "own":
        return own.image(config, guest, disk, asker, descriptors)
    if origin.kind == "empty":
        if origin.method == "once":
            return once.use(config, guest, journal, disk, asker.say, descriptors)
        disks.empty(disk.file, disk)
        return disk
    plain = origin.kind == "file" and not origin.check and origin.format in transform.NATIVE
    if plain and origin.method == "shared":
        return _in_place(config, guest, journal, disk)
    return _downloaded(config, disk, asker) if origin.method == "download" else _kept(config, journal, disk, asker)


def _in_place(config: Config, guest: Guest, journal: Journal, disk: Disk) -> Disk:
    """A file of the site, used where it lies."""
    base = Path(disk.origin.source)
    if config.root and base.is_file():
        check_trusted(base)
    leased = store.lease(config, base, journal)
    for ident, entry, _ in objects.entries(config.paths.store) if base.parent.name == "objects" else ():
        if entry.path(config.paths.store) == base and objects.whole(config.paths.store, entry):
            objects.used(config.paths.store, ident)
    if not leased:
        raise SiteError(f"image {guest.image}: {base} is missing", f"vmbatch image build {guest.image}, or put it there")
    return replace(disk, base=base)


def _downloaded(config: Config, disk: Disk, asker: Asker) -> Disk:
    """Fetched for this job alone, which may write to it."""
    part = disk.file.with_name(f"{disk.file.name}.part")
    asker.say(f"is fetched from {acquire.named(disk.origin)}")
    acquire.receive(config, disk.origin, part, asker)
    header = acquire.look(config, disk.origin, part)
    kind = header.format
    if kind not in transform.NATIVE:
        transform.to_qcow2(config, part, header, asker.progress)
        kind = "qcow2"
    part.rename(disk.file)
    with suppress(FileNotFoundError):
        part.with_name(f"{part.name}.json").unlink()
    disk.file.chmod(0o600)
    return replace(disk, base=None, base_format=None, format=kind, virtual_size=header.virtual_size)


def _kept(config: Config, journal: Journal, disk: Disk, asker: Asker) -> Disk:
    """From the store, where it is fetched to if need be."""
    evict.make_room(config)
    entry = acquire.get(config, disk.origin, asker, lambda base: store.lease(config, base, journal))
    return replace(
        disk,
        base=entry.path(config.paths.store),
        base_format=entry.format,
        format="qcow2" if disk.use == "overlay" else entry.format,
        virtual_size=entry.virtual_size,
    )
