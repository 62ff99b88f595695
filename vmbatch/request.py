"""The user's text -> Request: one grammar on every scheduler, one table of fields.

`IMAGE[:KEY=VALUE]...`. A `:` separates only where `key=` follows. Bytes outside `[A-Za-z0-9_./:=@+?~-]` may be written
as %XX; the canonical form always does. A list repeats its key. The text reaches root, so it is bounded and strict.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vmbatch.errors import UserError, nearest
from vmbatch.model import Request, printable
from vmbatch.quantities import memory_mib

MAX_BYTES = 1000
_SEPARATOR = re.compile(r":(?=[a-z][a-z0-9_.-]*=)")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./:=@+?~-")


def _memory(text: str) -> int:
    mib = memory_mib(text)
    if mib < 1:
        raise ValueError("expected at least 1M")
    return mib


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text, re.ASCII):
        raise ValueError("expected a whole number from 1 to 9999")
    return int(text)


def _word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text, re.ASCII):
        raise ValueError("expected a plain name")
    return text


def _path(text: str) -> str:
    parts = text.split("/")
    if not text or ".." in parts:
        raise ValueError("expected a path without '..'")
    return text


def _device(text: str) -> str:
    if not re.fullmatch(r"/dev/[A-Za-z0-9_/-]{1,60}|(LABEL|UUID|PARTUUID)=[A-Za-z0-9_.-]{1,64}", text, re.ASCII):
        raise ValueError("expected a device of the guest")
    return text


def _own_path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("expected an absolute path")
    return _path(text)


def _own_image(text: str) -> str:
    if text.startswith("/") or "://" in text:
        return text
    return _word(text)


def _arguments(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.=:,/@+-]+( [A-Za-z0-9_.=:,/@+-]+)*", text, re.ASCII):
        raise ValueError("expected words of letters, digits and _.=:,/@+- with single spaces (%20) between")
    return text


@dataclass(frozen=True, slots=True)
class Field:
    """A key of the request: how it is read, and what users are told of it."""

    name: str
    attribute: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    many: bool
    help: str
    example: str
    open: bool = True  # to everybody; else only where the template has a <vbuseroption> of that name


FIELDS = (
    Field(
        "memory",
        "memory_mib",
        _memory,
        "{}M".format,
        False,
        "memory of the guest; can only be less than what the job was granted",
        "memory=2G",
    ),
    Field(
        "cpus",
        "cpus",
        _count,
        str,
        False,
        "processors of the guest; can only be fewer than what the job was granted",
        "cpus=2",
    ),
    Field("template", "template", _word, str, False, "another domain template that the image allows", "template=gpu"),
    Field(
        "in",
        "inputs",
        _path,
        str,
        True,
        "file or folder below the submit directory to bring into the guest, repeated for more; 'none' brings nothing; "
        "without it the whole submit directory is brought",
        "in=data",
    ),
    Field(
        "network",
        "network",
        _word,
        str,
        False,
        "network of the guest: nat, or isolated, which reaches nothing but the job's shell",
        "network=isolated",
        open=False,
    ),
    Field(
        "tar",
        "tars",
        _own_path,
        str,
        True,
        "tar file of yours, unpacked in the working directory of the guest before the job; repeated for more",
        "tar=/scratch/me/software.tar",
        open=False,
    ),
    Field(
        "kernel",
        "kernel",
        _own_path,
        str,
        False,
        "Linux kernel of yours that the guest boots with",
        "kernel=/home/me/bzImage",
        open=False,
    ),
    Field("initrd", "initrd", _own_path, str, False, "initial RAM disk for kernel=", "initrd=/home/me/initrd", open=False),
    Field(
        "kernelargs",
        "kernel_args",
        _arguments,
        str,
        False,
        "further parameters for the kernel line, where a kernel is booted directly; %20 between words",
        "kernelargs=quiet%20selinux=0",
        open=False,
    ),
    Field(
        "root",
        "root",
        _device,
        str,
        False,
        "root device on the kernel line, where a kernel is booted directly; an image that is one file system without a "
        "partition table is /dev/vda",
        "root=/dev/vda",
        open=False,
    ),
    Field(
        "cdrom",
        "cdrom",
        _own_path,
        str,
        False,
        "ISO image of yours in a second CD-ROM drive",
        "cdrom=/home/me/a.iso",
        open=False,
    ),
)
IMAGE_KEY = Field(
    "image.NAME",
    "images",
    _own_image,
    str,
    True,
    "image for the disk that the template calls NAME: one of the catalogue, or a path or URL where the template allows it",
    "image.data=/scratch/me/data.qcow2",
)
_BY_NAME = {field.name: field for field in FIELDS}


def parse(text: str) -> Request:
    """Read a request. Raises UserError, whatever the text is; never another exception."""
    raw = text.encode(errors="surrogateescape") if _encodable(text) else b""
    if not raw or len(raw) > MAX_BYTES or "\0" in text:
        said = f"is {len(raw)} bytes long" if len(raw) > MAX_BYTES else "is empty or not text"
        raise UserError(f"the VM request {said}", f"write at most {MAX_BYTES} bytes: IMAGE[:KEY=VALUE]...")
    image, *options = _SEPARATOR.split(text)
    values: dict[str, Any] = {}
    for option in options:
        name, _, value = option.partition("=")
        _put(values, name, _decode(value))
    if "inputs" in values:
        values["inputs"] = _inputs(values["inputs"])
    return Request(image=_image(image), **values)


def _encodable(text: str) -> bool:
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _image(text: str) -> str:
    image = _decode(text)
    if not image:
        raise UserError("the VM request names no image", "write IMAGE[:KEY=VALUE]..., for example tiny:memory=1G")
    return image


def _put(values: dict[str, Any], name: str, text: str) -> None:
    named = re.fullmatch(r"image\.([a-z][a-z0-9_-]{0,31})", name, re.ASCII)
    field = IMAGE_KEY if named else _BY_NAME.get(name)
    if field is None:
        raise UserError(f"the VM request has no key '{name[:80]}'", f"the nearest is {nearest(name, _BY_NAME, 1)}=")
    try:
        value = field.read(text)
        if named:
            _once(values, named[1])
            value = (named[1], value)
    except ValueError as error:
        raise UserError(f"{name}={printable(text, 80)} in the VM request: {error}", f"such as {field.example}") from None
    if field.many:
        values[field.attribute] = (*values.get(field.attribute, ()), value)
    elif field.attribute in values:
        raise UserError(f"the VM request gives {name}= twice", "leave one of them out")
    else:
        values[field.attribute] = value


def _once(values: dict[str, Any], name: str) -> None:
    if name in dict(values.get("images", ())):
        raise UserError(f"the VM request gives image.{name}= twice", "leave one of them out")


def _inputs(names: tuple[str, ...]) -> tuple[str, ...]:
    if "none" not in names:
        return names
    if len(names) > 1:
        raise UserError("the VM request has in=none and another in=", "a file of that name is written in=./none")
    return ()


def _decode(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise UserError(f"a lone % in the VM request: {printable(text, 80)}", "a % itself is written %25")
    raw = text.encode(errors="surrogateescape")
    plain = re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), raw)
    if b"\0" in plain:
        raise UserError("the VM request holds a zero byte (%00)", "leave it out")
    return plain.decode(errors="surrogateescape")


def canonical(request: Request) -> str:
    """Spell a request so that every scheduler passes it on unchanged; parse() gives the same request back."""
    parts = [_encode(request.image)]
    for field in FIELDS:
        value = getattr(request, field.attribute)
        if value == () and field.many:
            parts.append(f"{field.name}=none")
        elif value is not None:
            items = value if field.many else (value,)
            parts += [f"{field.name}={_encode(field.write(item))}" for item in items]
    parts += [f"image.{name}={_encode(text)}" for name, text in request.images or ()]
    return ":".join(parts)


def _encode(text: str) -> str:
    raw = text.encode(errors="surrogateescape")
    coded = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in raw)
    return _SEPARATOR.sub("%3A", coded)
