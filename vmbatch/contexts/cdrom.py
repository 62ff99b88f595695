"""The payload on an ISO: for guests whose start-up runs vmbatch/init.sh from it (CDROM), and as a NoCloud seed for stock
cloud images (CLOUDINIT)."""

from vmbatch import archives, iso
from vmbatch import guest as guest_side
from vmbatch import payload as payloads
from vmbatch.hypervisor import Hypervisor
from vmbatch.journal import Journal
from vmbatch.model import Guest, Payload


def before_boot(guest: Guest, payload: Payload, journal: Journal) -> None:
    """Write the ISO that domain.build puts into the CD-ROM drive."""
    journal.will("file", guest.iso)
    files = payloads.files(payload, guest_side.INIT.read_bytes(), guest_side.helper())
    iso.write(guest.iso, {**archives.for_context(guest.archives), **files})


def after_boot(guest: Guest, hypervisor: Hypervisor) -> None:
    """The guest has read it (cloud-init keeps its own copy): take the keys on it from users of the guest and the node."""
    if guest.cdrom:
        hypervisor.eject(guest.name, guest.cdrom)
    guest.iso.unlink(missing_ok=True)
