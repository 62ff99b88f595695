"""Hashes that an image must have, as a template or a catalogue entry states them."""

import re
from dataclasses import dataclass

from vmbatch.errors import SiteError

DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}


@dataclass(frozen=True, slots=True)
class Check:
    """`function` is md5, sha1, sha256 or sha512; `value` its lower-case hexadecimal digits."""

    function: str
    value: str


def read_check(where: str, hashfunction: str, hashvalue: str) -> Check:
    """Read what <vbcheckhash> says: the hash function, also as the path of a program (`/usr/bin/md5sum`), and the value.

    Nothing named here is ever run. Raises SiteError, opening with `where`, for an unknown function or a wrong value.
    """
    word = hashfunction.rpartition("/")[2].lower().replace("-", "").replace("_", "")
    name = word.removesuffix("sum")
    if name not in DIGITS:
        known = ", ".join(DIGITS)
        raise SiteError(f"{where}: unknown hash function {hashfunction!r}", f"it is one of {known}, or /usr/bin/md5sum etc.")
    if not re.fullmatch(rf"[0-9a-fA-F]{{{DIGITS[name]}}}", hashvalue):
        raise SiteError(
            f"{where}: {hashvalue!r} is no {name} hash", f"{name} has {DIGITS[name]} hexadecimal digits: {name}sum FILE"
        )
    return Check(name, hashvalue.lower())
