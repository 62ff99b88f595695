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


def write(target: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Write `target` (mode 0600, made new) with `files`: relative path -> (content, mode). One level of folders."""
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    folders: dict[str, str] = {"": ""}
    for number, (name, (content, mode)) in enumerate(files.items()):
        folder, _, leaf = name.rpartition("/")
        if folder not in folders:
            folders[folder] = f"/D{len(folders):07d}"
            image.add_directory(folders[folder], rr_name=folder, joliet_path=f"/{folder}", file_mode=0o040500)
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
