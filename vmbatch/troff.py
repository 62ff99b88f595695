"""The few macros of man(7) that our pages use."""

from collections.abc import Iterator

from vmbatch import __version__


def escape(text: str) -> str:
    """Spell text for troff: nothing in it is a request or an escape."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\\&" + text if text.startswith((".", "\\(aq")) else text


def head(name: str, section: int, purpose: str) -> str:
    return f'.TH {name.upper()} {section} "" "vmbatch {__version__}"\n.SH NAME\n{escape(name)} \\- {escape(purpose)}\n'


def items(items: Iterator[tuple[str, str]] | tuple[tuple[str, str], ...]) -> str:
    return "".join(f".TP\n.B {escape(word)}\n{escape(text)}\n" for word, text in items)


def section(title: str, text: str) -> str:
    return f".SH {title}\n{text}"


def see(*pages: str) -> str:
    return section("SEE ALSO", "".join(f".BR {escape(p[:-3])} {p[-3:]}\n" for p in pages))
