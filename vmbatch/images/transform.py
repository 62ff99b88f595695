"""Images of other makers -> qcow2, once, when they come in. By qemu-img, without root, with limits, after our own look."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vmbatch import node
from vmbatch.config import Config
from vmbatch.errors import OfferError, SiteError
from vmbatch.images.inspect import Header, inspect
from vmbatch.model import Person, printable
from vmbatch.process import run

NATIVE = ("raw", "qcow2")
_MEMORY = 2 << 30
_STACK = 2 << 20  # of each thread
_GROUPS = 0x7E000000  # above what sites and container tools give out


def to_qcow2(config: Config, part: Path, header: Header, progress: Callable[[int, int | None], None]) -> tuple[str, int]:
    """Replace `part` by its content as qcow2. Returns sha512 and size in bytes. Raises OfferError where qemu-img fails."""
    person = _alone(config)
    target = part.with_name(f"{part.name}.qcow2")
    target.unlink(missing_ok=True)
    source = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    made = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.geteuid() == 0:  # by descriptor only: no path leads there for anybody else
            os.fchmod(source, 0o444)
            os.fchown(made, person.uid, person.gid)
        _convert(config, source, made, header, person, progress)
        digest, size = _settle(made)
        if inspect(made, "qcow2", header.virtual_size).virtual_size != header.virtual_size:
            raise SiteError(f"{part.name} came out of its conversion with another size", "try again")
        target.replace(part)
        return digest, size
    finally:
        os.close(source)
        os.close(made)
        target.unlink(missing_ok=True)


def _alone(config: Config) -> Person:
    """The user of [fetch] with a group that nothing else has: no other process of that user reaches our descriptors."""
    if os.geteuid() != 0:
        return node.person(os.geteuid())
    group = _GROUPS + os.getpid()
    return replace(node.named(config.fetch.user), gid=group, groups=((f"group{group}", group),))


def _convert(
    config: Config, source: int, made: int, header: Header, person: Person, progress: Callable[[int, int | None], None]
) -> None:
    limits = [
        "prlimit", f"--cpu={config.store.convert_timeout_s}", f"--data={_MEMORY}", f"--stack={_STACK}", "--core=0",
        f"--fsize={header.virtual_size + header.virtual_size // 64 + (64 << 20)}", "--",
    ]  # fmt: skip
    convert = ["qemu-img", "convert", "-f", header.format, "-O", "qcow2", f"/dev/fd/{source}", f"/dev/fd/{made}"]

    def beat() -> None:
        progress(min(os.fstat(made).st_blocks * 512, header.virtual_size), header.virtual_size)

    beat()
    done = run(
        [*limits, *convert],
        timeout_s=config.store.convert_timeout_s,
        person=person,
        descriptors=(source, made),
        beat=beat,
        check=False,
    )
    if done.status:
        said = printable(done.stderr.decode(errors="replace").strip(), 300)
        raise OfferError(f"the {header.format} image cannot be converted: {said}", "ask who offers it for a whole one")
    progress(header.virtual_size, header.virtual_size)


def _settle(handle: int) -> tuple[str, int]:
    """Make the result ours, on the disk, and hash it."""
    if os.geteuid() == 0:
        os.fchown(handle, 0, 0)
    os.fchmod(handle, 0o600)
    os.fsync(handle)
    with os.fdopen(os.dup(handle), "rb") as stream:
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha512").hexdigest()
    return digest, os.fstat(handle).st_size
