"""What runs in the guest: POSIX sh (init.sh), and a small static helper (runjob) that the installation compiles."""

from pathlib import Path

from vmbatch.errors import SiteError

HERE = Path(__file__).parent
INIT = HERE / "init.sh"
SOURCES = (HERE / "runjob.c", HERE / "collect.c")


def helper() -> bytes:
    """Return the helper program. Raises SiteError where the installation could not compile it."""
    try:
        return (HERE / "runjob").read_bytes()
    except FileNotFoundError:
        raise SiteError(
            f"{HERE}/runjob is missing: no C compiler was there when vmbatch was installed",
            "apt-get install musl-tools, then install vmbatch again",
        ) from None
