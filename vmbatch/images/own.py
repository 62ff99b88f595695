"""A user's own files: the image of a disk, a kernel, an ISO. Opened with the user's uid, looked at by our own reader first.

A raw image and an ISO are used by their descriptor: whatever is written to them, QEMU takes no byte of them for a header.
A qcow2 is used so only while the kernel keeps writers away until QEMU has read its header; else it is copied.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from vmbatch import choices, userfiles
from vmbatch.config import Config
from vmbatch.disk import Disk, Origin, Own
from vmbatch.errors import SiteError, UserError
from vmbatch.images import acquire, transform
from vmbatch.images.acquire import Asker
from vmbatch.images.fetch import copy
from vmbatch.images.inspect import Header, inspect
from vmbatch.model import Guest, Person, printable

_BOOT_FILE_MIB = 512


def image(config: Config, guest: Guest, disk: Disk, asker: Asker, descriptors: dict[str, int]) -> Disk:
    """Give a disk the user's own image. Raises UserError where it is not allowed, or is not what it should be."""
    origin = disk.origin
    descriptor = opened(config, guest.person, Own(origin.source, origin.max_mib, origin.paths))
    assert disk.group is not None and origin.max_mib is not None, "planned so"
    descriptors[disk.group] = descriptor
    header = _header(descriptor, origin)
    if disk.use == "copy" or not _steady(guest, descriptor, header.format):
        return _copied(config, disk, asker, descriptors)
    header = _header(descriptor, origin)  # once more: now nobody writes to it
    return replace(
        disk,
        base=Path(origin.source),
        base_format=header.format,
        format="qcow2" if disk.use == "overlay" else header.format,
        virtual_size=header.virtual_size,
    )


def examine(config: Config, person: Person, origin: Origin) -> None:
    """Look at a user's image as image() does, and no more. Raises UserError."""
    descriptor = opened(config, person, Own(origin.source, origin.max_mib, origin.paths))
    try:
        _header(descriptor, origin)
    finally:
        os.close(descriptor)


def _header(descriptor: int, origin: Origin) -> Header:
    """Read the header; the sentences name the image."""
    said = printable(origin.source, 200)
    try:
        header = inspect(descriptor, None, (origin.max_mib or 0) << 20)
    except UserError as error:
        raise UserError(f"{said}: {error.message}", error.hint) from None
    if header.format not in origin.formats:
        raise UserError(f"{said} is a {header.format} image", f"allowed are: {', '.join(origin.formats)}")
    return header


def _steady(guest: Guest, descriptor: int, format: str) -> bool:
    """Whether QEMU will find the header that we looked at. Writers are kept away from the user's own files only."""
    if format == "raw":
        return True
    owner = os.fstat(descriptor).st_uid
    if owner == 0 and guest.person.uid != 0:
        return True
    return format in transform.NATIVE and owner == guest.person.uid and userfiles.hold(descriptor)


def _copied(config: Config, disk: Disk, asker: Asker, descriptors: dict[str, int]) -> Disk:
    """A copy of the job's own, made from the descriptor: it is looked at once more, since the user may write meanwhile."""
    assert disk.group is not None, "planned so"
    descriptor = descriptors.pop(disk.group)
    try:
        limits = acquire.limits_of(config, disk.origin)
        room = acquire.Room(disk.file.parent, asker)
        copy(descriptor, disk.file, check=None, size=None, limits=limits, progress=room.progress)
    finally:
        os.close(descriptor)
    header = acquire.look(config, disk.origin, disk.file)
    kind = header.format
    if kind not in transform.NATIVE:
        transform.to_qcow2(config, disk.file, header, asker.progress)
        kind = "qcow2"
    use = "readonly" if disk.use == "readonly" else "direct"
    return replace(disk, use=use, format=kind, base=None, base_format=None, group=None, virtual_size=header.virtual_size)


def opened(config: Config, person: Person, file: Own) -> int:
    """Open a user's file, held against the folders and the size that the template allows. Returns the descriptor."""
    descriptor, real = userfiles.open_as(person, file.path, config.users.open_timeout_s)
    said = printable(file.path, 200)
    try:
        if file.paths and not choices.fits(real, file.paths):
            also = "" if real == file.path else f", which is {printable(real, 200)},"
            raise UserError(f"{said}{also} lies where no files may come from", f"allowed are: {' '.join(file.paths)}")
        size = os.fstat(descriptor).st_size
        if file.max_mib is not None and size > file.max_mib << 20:
            raise UserError(f"{said} has {size >> 20} MiB", f"allowed are at most {file.max_mib} MiB")
    except OSError as error:
        os.close(descriptor)
        raise UserError(f"cannot look at {said}: {error.strerror}", f"ls -lL {said}") from None
    except UserError:
        os.close(descriptor)
        raise
    return descriptor


def boot_file(config: Config, guest: Guest, source: Path | Own, target: Path, asker: Asker) -> None:
    """Copy a kernel or an initial RAM disk for this job: the site's, or the user's own."""
    if isinstance(source, Path):
        shutil.copyfile(source, target)
        target.chmod(0o600)
        return
    most = min(source.max_mib or _BOOT_FILE_MIB, _BOOT_FILE_MIB)
    handle = opened(config, guest.person, replace(source, max_mib=most))
    limits = acquire.limits_of(config, Origin("own", source.path, "shared", by_user=True, max_mib=most))
    try:
        copy(handle, target, check=None, size=None, limits=limits, progress=acquire.Room(target.parent, asker).progress)
    except SiteError as error:
        raise UserError(error.message, error.hint) from None
    finally:
        os.close(handle)
