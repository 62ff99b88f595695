"""The CD-ROM: files -> an ISO 9660 image with Joliet and Rock Ridge names. The only door to pycdlib.

Label `cidata` makes it a NoCloud seed for cloud-init (docs.cloud-init.io, "NoCloud"). Everything on it belongs to root
and is closed to others.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path

import pycdlib

from vmbatch.errors import SiteError

LABEL = "cidata"
_DEPTH = 7  # ISO 9660 allows eight levels with the root


def write(target: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Write `target` (mode 0600, made new) with `files`: relative path -> (content, mode). Folders at most seven deep.

    Raises SiteError where it cannot be written.
    """
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    folders: dict[str, str] = {"": ""}
    for number, (name, (content, mode)) in enumerate(files.items()):
        folder, _, leaf = name.rpartition("/")
        _folder(image, folders, folder)
        image.add_fp(
            io.BytesIO(content),
            len(content),
            f"{folders[folder]}/F{number:07d}.;1",
            rr_name=leaf,
            joliet_path=f"/{name}",
            file_mode=0o100000 | mode,
        )
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            image.write_fp(file)
    except OSError as error:
        raise SiteError(f"cannot write {target}: {error.strerror}") from error
    finally:
        image.close()


def _folder(image: pycdlib.PyCdlib, folders: dict[str, str], name: str) -> None:
    """Have a folder and those above it; `folders` keeps their short ISO 9660 names."""
    if name in folders:
        return
    if name.count("/") >= _DEPTH:
        raise SiteError(f"{name} is too deep for a CD-ROM ({_DEPTH} folders)", "pack it with fewer folders, or use strip=")
    above, _, leaf = name.rpartition("/")
    _folder(image, folders, above)
    folders[name] = f"{folders[above]}/D{len(folders):07d}"
    image.add_directory(folders[name], rr_name=leaf, joliet_path=f"/{name}", file_mode=0o040500)
