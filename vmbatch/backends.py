"""Families of back ends: the folder is the registry. One file is one back end; nothing is imported before it is used."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from vmbatch.errors import SiteError, nearest


def names(family: str) -> tuple[str, ...]:
    """Return the back ends of `schedulers`, `contexts` or `networks`."""
    folder = Path(__file__).parent / family
    return tuple(sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__"))


def load(family: str, name: str) -> ModuleType:
    """Import one back end. Raises SiteError with the nearest names where there is none."""
    if name not in names(family):
        raise SiteError(f"there is no {family[:-1]} '{name}'", f"the nearest are: {nearest(name, names(family))}")
    return import_module(f"vmbatch.{family}.{name}")
