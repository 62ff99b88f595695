"""Amounts with units, as people write them: `512M`, `2G`, `90s`, `5m`."""

import re

_MEMORY = {"": 1, "M": 1, "G": 1024, "T": 1024**2, "K": 1 / 1024}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def memory_mib(text: str) -> int:
    """Return MiB for `512`, `512M`, `512MiB`, `2G`, `1.5G`, `1T`; bare numbers are MiB. ValueError says what is allowed."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([KMGT]?)(?:i?B)?", text, re.ASCII)
    if not match:
        raise ValueError("expected an amount of memory such as 512M or 2G")
    return int(float(match[1]) * _MEMORY[match[2]])


def seconds(text: str) -> int:
    """Return seconds for `90`, `90s`, `5m`, `2h`, `7d`. ValueError says what is allowed."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text, re.ASCII)
    if not match:
        raise ValueError("expected a time such as 90s or 5m")
    return int(match[1]) * _SECONDS[match[2]]


def mib_text(mib: int) -> str:
    """Spell an amount of MiB for a person: `512 MiB`, `2 GiB`, `1.5 GiB`."""
    if mib < 1024:
        return f"{mib} MiB"
    return f"{mib / 1024:.4g} GiB"
