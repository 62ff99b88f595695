"""Tar files of the site for a guest (<vbtarfile>): read on the host, so that the guest needs nothing but tar for plain ones.

They are the administrator's own, but what is in them may come from elsewhere: names that lead out of the folder, links
and devices are refused, and so is more than fits on a context disk.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from vmbatch.config import check_trusted
from vmbatch.disk import Archive
from vmbatch.errors import SiteError

MAX_BYTES = 64 << 20  # of all files in one archive; a context is put together in memory
MAX_FILES = 4000


def members(archive: Archive, *, trusted: bool) -> dict[str, tuple[bytes, int]]:
    """Return relative path -> (content, mode) of an archive's files, with `strip` leading folders left out.

    Raises SiteError where it cannot be read, or holds what must not be there.
    """
    if trusted:
        check_trusted(archive.source)
    found: dict[str, tuple[bytes, int]] = {}
    left = MAX_BYTES
    try:
        with tarfile.open(archive.source, "r:*") as tar:
            for info in _wanted(archive, tar):
                name = _name(archive, info)
                if name is None:
                    continue
                left -= info.size
                if left < 0 or len(found) >= MAX_FILES:
                    raise SiteError(
                        f"{archive.source} holds more than {MAX_BYTES >> 20} MiB or {MAX_FILES} files",
                        "put what is large into the image or onto a disk",
                    )
                file = tar.extractfile(info)
                assert file is not None, "only files are wanted"
                found[name] = (file.read(info.size), 0o500 if info.mode & 0o100 else 0o400)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise SiteError(f"cannot read the tar file {archive.source}: {error}", f"tar -tf {archive.source}") from None
    return found


def _wanted(archive: Archive, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for info in tar:
        if info.isdir():
            continue
        if not info.isreg():
            raise SiteError(f"{archive.source} holds {info.name!r}, which is no plain file", "leave links and devices out")
        yield info


def _name(archive: Archive, info: tarfile.TarInfo) -> str | None:
    """The member's path below archive.path; None: it lies in the folders that are left out."""
    parts = [part for part in PurePosixPath(info.name).parts if part != "."]
    if info.name.startswith("/") or ".." in parts or any(ord(c) < 32 for c in info.name):
        raise SiteError(f"{archive.source} holds {info.name!r}, which leads elsewhere", "make it anew with relative names")
    base = [part for part in PurePosixPath(archive.path.lstrip("/")).parts if part != "."]
    if ".." in base:
        raise SiteError(f"path={archive.path!r} of {archive.source} leads elsewhere", "leave out '..'")
    return "/".join([*base, *parts[archive.strip :]]) if len(parts) > archive.strip else None


def plain(archive: Archive, *, trusted: bool) -> bytes:
    """Return the archive as an uncompressed one with the final names, for the guest's tar to unpack in /."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, (content, mode) in members(archive, trusted=trusted).items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode | 0o244 | (0o111 if mode & 0o100 else 0)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def for_context(archives: tuple[Archive, ...]) -> dict[str, tuple[bytes, int]]:
    """Return what an ISO, or the folder of the context, holds besides: files of `cdrom`, and archives for the guest."""
    trusted = os.geteuid() == 0
    files: dict[str, tuple[bytes, int]] = {}
    for number, archive in enumerate(archives):
        if archive.cdrom:
            files |= members(archive, trusted=trusted)
        else:
            files[f"vmbatch/archive{number}.tar"] = (plain(archive, trusted=trusted), 0o400)
    return files
