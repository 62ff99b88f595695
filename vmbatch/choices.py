"""What users may choose: a request held against the <vbuseroption>s of its template. Pure; a refusal names the rule."""

import re
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from vmbatch.disk import Own
from vmbatch.errors import UserError
from vmbatch.machine import Option
from vmbatch.model import Request
from vmbatch.quantities import mib_text
from vmbatch.request import FIELDS
from vmbatch.templates import Template


def check(template: Template, request: Request) -> None:
    """Raise UserError where the request chooses what the template does not open, or goes beyond its limits."""
    options = {option.name: option for option in template.machine.options}
    for field in FIELDS:
        value = getattr(request, field.attribute)
        if value is None:
            continue
        option = options.get(field.name)
        if option is None and not field.open:
            raise UserError(
                f"template {template.name} does not let users choose {field.name}=",
                f'leave it out, or ask the administrator for <vbuseroption name="{field.name}"/>',
            )
        if option:
            _limits(template.name, option, value)
    wanted = {name for name, _ in request.images or ()}
    known = {disk.user.name for disk in template.machine.disks if disk.user and disk.user.name}
    for name in sorted(wanted - known):
        raise UserError(
            f"template {template.name} has no image '{name}' to choose",
            f"it has: {', '.join(f'image.{one}=' for one in sorted(known)) or 'none'}",
        )
    if (request.root or request.initrd) and not (request.kernel or request.kernel_args or request.root):
        raise UserError("initrd= needs a kernel= to go with", "add kernel=PATH, or leave initrd= out")


def _limits(template: str, option: Option, value: object) -> None:
    rule = f'template {template} says <vbuseroption name="{option.name}"'
    if isinstance(value, int) and option.maximum is not None and value > option.maximum:
        most = mib_text(option.maximum) if option.name == "memory" else str(option.maximum)
        said = mib_text(value) if option.name == "memory" else str(value)
        raise UserError(f"{option.name}={said} is more than is allowed here ({most})", f'{rule} max="{option.maximum}"/>')
    if option.values and isinstance(value, str):
        words = value.split() if option.name == "kernelargs" else [value]
        for word in words:
            if not any(fnmatchcase(word, pattern) for pattern in option.values):
                raise UserError(f"{option.name}={word} is not allowed here", f'{rule} values="{" ".join(option.values)}"/>')


def own(template: Template, name: str, path: str) -> Own:
    """Return a user's file with the limits that the template sets for it."""
    option = next(one for one in template.machine.options if one.name == name)
    return Own(path, option.maximum, option.paths)


def fits(path: str, roots: tuple[str, ...]) -> bool:
    """Whether an absolute path without links lies below one of `roots`. Compared part by part: /scratch is not /scratch2.

    A part of a root may be a pattern with * and ?, which never spans a `/`.
    """
    parts = [part for part in path.split("/") if part]
    if not path.startswith("/") or ".." in parts or "." in parts:
        return False
    for root in roots:
        wanted = [part for part in root.split("/") if part]
        below = len(parts) > len(wanted)
        if below and all(fnmatchcase(part, pattern) for part, pattern in zip(parts, wanted, strict=False)):
            return True
    return False


def fits_url(url: str, patterns: tuple[str, ...]) -> bool:
    """Whether a URL is one of `patterns`: scheme, host and port alike (the host's parts may be patterns), then the path.

    The last part of a pattern's path may be `*`, which stands for everything below; a part may be a pattern.
    """
    given = _split(url)
    return given is not None and any(_matches(given, wanted) for text in patterns if (wanted := _split(text)))


def _split(url: str) -> tuple[str, str, list[str]] | None:
    """Return scheme, host with port, and the parts of the path; None for what could be read in two ways."""
    if not re.fullmatch(r"[!-~]+", url) or re.search(r"[?#;@\\\[\]]|%2|//.*//", url.lower()):
        return None
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return None
    path = parts.path.split("/")[1:]
    if (
        not parts.scheme
        or not parts.hostname
        or parts.netloc.lower() != f"{parts.hostname}{port}"
        or {"..", "."} & set(path)
    ):
        return None
    return parts.scheme, parts.netloc.lower(), path


def _matches(given: tuple[str, str, list[str]], wanted: tuple[str, str, list[str]]) -> bool:
    if given[0] != wanted[0] or given[1].count(".") != wanted[1].count(".") or not fnmatchcase(given[1], wanted[1]):
        return False
    parts, patterns = given[2], wanted[2]
    if patterns[-1:] == ["*"]:
        return len(parts) >= len(patterns) and all(fnmatchcase(p, w) for p, w in zip(parts, patterns[:-1], strict=False))
    return len(parts) == len(patterns) and all(fnmatchcase(p, w) for p, w in zip(parts, patterns, strict=True))
