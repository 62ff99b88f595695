"""The payload in the guest's own disk (DISK): for guests whose start-up runs /vmbatch/init.sh where that is there."""

from vmbatch import archives, blockexport
from vmbatch import guest as guest_side
from vmbatch import payload as payloads
from vmbatch.disk import Disk
from vmbatch.errors import OfferError, SiteError, UserError
from vmbatch.hypervisor import Hypervisor
from vmbatch.journal import Journal
from vmbatch.model import Guest, Payload

_OURS = "vmbatch/"  # what stands beside it on the CD-ROM is for cloud-init


def before_boot(guest: Guest, payload: Payload, journal: Journal) -> None:
    """Write the payload below /vmbatch of the partition called rootdisk. The disk goes with the job's scratch folder.

    Raises OfferError where the guest has no such disk of its own, or one that cannot be written into.
    """
    disk, partition = _root_disk(guest)
    files = payloads.files(payload, guest_side.INIT.read_bytes(), guest_side.helper())
    ours = {name: file for name, file in files.items() if name.startswith(_OURS)}
    everything = {**_below(archives.for_context(guest.archives)), **_below(ours)}
    entries = [blockexport.Entry(path, content, mode) for path, (content, mode) in everything.items()]
    try:
        blockexport.put(disk.file, str(disk.format), partition, entries, work=guest.scratch)
    except SiteError as error:
        if disk.origin.by_user:
            raise UserError(error.message, error.hint) from None
        raise


def _below(files: dict[str, tuple[bytes, int]]) -> dict[str, tuple[bytes, int]]:
    return {f"/{_OURS}{name.removeprefix(_OURS)}": file for name, file in files.items()}


def _root_disk(guest: Guest) -> tuple[Disk, int]:
    part = next((part for part in guest.layout if part.name == "rootdisk"), None)
    if part is None:
        raise OfferError(
            f"template {guest.template} does not say where the guest's root file system lies",
            "add <vbdisks><vbdisk name='rootdisk' dev='vda' partition='vda1'/></vbdisks> to its <devices>",
        )
    disk = guest.disks[part.disk]
    if disk.group:
        raise UserError(
            f"an image of a user's own cannot be used with template {guest.template}, which writes into the guest's disk",
            "use another template, or an image of the catalogue",
        )
    if disk.use == "readonly" or disk.origin.method == "once":  # nothing of a job may get into a disk that others will have
        raise OfferError(
            f"disk {disk.target} of template {guest.template} is not the job's own, so no context can be written into it",
            "use an image with an overlay as rootdisk, or the context CDROM",
        )
    return disk, part.partition


def after_boot(guest: Guest, hypervisor: Hypervisor) -> None:
    """Nothing is left to do: init.sh has removed the key that it put in its place, and the disk is the job's."""
