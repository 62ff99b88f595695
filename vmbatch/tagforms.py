"""What a vb tag may hold: the shape of the table in tags.py."""

from collections.abc import Iterator
from dataclasses import dataclass

ANY = r"[\s\S]*"
WORD = r"[A-Za-z0-9][A-Za-z0-9_.\-]*"
DEVICE = r"[a-z]{2,4}[a-z]{1,2}[0-9]*"
ABSOLUTE = r"/[^\s]*"
NUMBER = r"[0-9]{1,9}"
LIST = r"[^\s]+(\s+[^\s]+)*"
HEX = r"[0-9A-Fa-f]{32,128}"


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute: a set of values, or a pattern (regular expression for the whole value) where there is none."""

    name: str
    help: str
    values: tuple[str, ...] = ()
    pattern: str = ANY
    shape: str = "text"  # the pattern, for people
    default: str = ""
    required: bool = False
    slides: bool = True  # as in VmBatch's slides; else ours


@dataclass(frozen=True, slots=True)
class Tag:
    """One vb tag. `forms`: ways to use it, each with its own attributes; exactly one of them must fit."""

    parents: tuple[str, ...]
    help: str
    example: str
    forms: tuple[tuple[Attribute, ...], ...] = ((),)
    values: tuple[str, ...] = ()  # allowed text
    pattern: str = ""  # or its pattern; both empty: no text
    shape: str = ""
    many: bool = False  # may stand more than once below one parent
    slides: bool = True
    default: str = ""
    own: tuple[str, ...] = ()  # values that are ours, in a tag of the slides
    second: str = ""  # an example of the second form

    def attributes(self) -> Iterator[Attribute]:
        """Yield every attribute once, in the order of the forms."""
        seen = set()
        for form in self.forms:
            for one in form:
                if one.name not in seen:
                    seen.add(one.name)
                    yield one
