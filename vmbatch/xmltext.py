"""XML as a text with positions, for changes that leave every other byte of a file as it was.

A tree that is written anew loses quotes, indentation and line breaks within tags. Here an element knows where its tags
stand, and an Edit replaces a range. Positions are byte offsets into UTF-8 text.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from vmbatch.errors import SiteError

_ATTRIBUTE = rb"\s+([^\s=>/]+)\s*=\s*(\"[^\"]*\"|'[^']*')"
_HEAD = re.compile(rb"<[^\s/>]+(?:" + _ATTRIBUTE.replace(b"(", b"(?:") + rb")*\s*/?>")
_DEEPEST = 256  # as libxml2 takes it
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Element:
    """An element in its text: start, inner and inner_end (around its content), end. `text`: its own, without blanks."""

    source: bytes = field(repr=False)
    tag: str
    attributes: dict[str, str]
    line: int
    start: int
    inner: int
    inner_end: int
    end: int
    text: str
    children: tuple["Element", ...]

    @property
    def head(self) -> bytes:
        """The start tag."""
        return self.source[self.start : self.inner]

    def get(self, name: str) -> str | None:
        return self.attributes.get(name)

    def findall(self, path: str) -> list["Element"]:
        """Return the elements at a path of tags: devices/disk."""
        found = [self]
        for step in path.split("/"):
            found = [child for element in found for child in element.children if child.tag == step]
        return found

    def find(self, path: str) -> "Element | None":
        return next(iter(self.findall(path)), None)


@dataclass(frozen=True, slots=True)
class Edit:
    """Put `text` in the place of the bytes from start to end."""

    start: int
    end: int
    text: str = ""


def parse(xml: bytes, file: str | Path) -> Element:
    """Return the root element. Raises SiteError, with the line, for what is not well-formed XML in UTF-8 without DOCTYPE."""
    if b"\0" in xml:  # UTF-16, which expat would take without a declaration
        raise SiteError(f"{file}: the text is not UTF-8", f"iconv -f UTF-16 -t UTF-8 {file}")
    try:
        xml.decode()
    except UnicodeDecodeError as error:
        line = xml.count(b"\n", 0, error.start) + 1
        raise SiteError(f"{file}:{line}: the text is not UTF-8", _recode(file)) from None
    return _Reader(xml, file).read()


def _recode(file: str | Path) -> str:
    return f"iconv -f ISO-8859-1 -t UTF-8 {file}, and say so in the first line"


class _Reader:
    """Builds the tree from expat's events; elements whose end has not come yet are on a stack."""

    def __init__(self, xml: bytes, file: str | Path) -> None:
        self.xml, self.file = xml, file
        self.parser = expat.ParserCreate()
        self.parser.XmlDeclHandler = self._declaration
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.heads: list[tuple[str, dict[str, str], int, int]] = []
        self.texts: list[list[str]] = []
        self.children: list[list[Element]] = [[]]

    def read(self) -> Element:
        try:
            self.parser.Parse(self.xml, True)
        except expat.ExpatError as error:
            why = expat.ErrorString(error.code).removeprefix("not well-formed ")
            raise SiteError(f"{self.file}:{error.lineno}: not well-formed XML: {why}", "repair it by hand") from None
        return self.children[0][0]

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if (encoding or "utf-8").lower() not in ("utf-8", "us-ascii"):
            raise SiteError(f"{self.file}: the text is declared as {encoding}, not UTF-8", _recode(self.file))

    def _doctype(self, *words: object) -> None:
        raise SiteError(f"{self.file}:{self.parser.CurrentLineNumber}: a template has no DOCTYPE", "remove it")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self.heads) == _DEEPEST:
            raise SiteError(
                f"{self.file}:{self.parser.CurrentLineNumber}: elements are nested too deep", "repair it by hand"
            )
        self.heads.append((tag, attributes, self.parser.CurrentLineNumber, self.parser.CurrentByteIndex))
        self.texts.append([])
        self.children.append([])

    def _text(self, text: str) -> None:
        self.texts[-1].append(text)

    def _end(self, tag: str) -> None:
        _, attributes, line, start = self.heads.pop()
        head = _HEAD.match(self.xml, start)
        assert head is not None
        inner = inner_end = end = head.end()
        if not head[0].endswith(b"/>"):
            inner_end = self.parser.CurrentByteIndex
            end = self.xml.index(b">", inner_end) + 1
        text, children = "".join(self.texts.pop()).strip(), tuple(self.children.pop())
        made = Element(self.xml, tag, attributes, line, start, inner, inner_end, end, text, children)
        self.children[-1].append(made)


def set_attribute(element: Element, name: str, value: str) -> Edit:
    """Give an attribute a value; a new one comes last, quoted as the ones before it. The value is plain text of ours."""
    last = None
    for last in re.finditer(_ATTRIBUTE, element.head):
        if last[1].decode() == name:
            return Edit(element.start + last.start(2) + 1, element.start + last.end(2) - 1, value)
    quote = last[2][:1].decode() if last else "'"
    place = element.start + (last.end() if last else len(element.tag.encode()) + 1)
    return Edit(place, place, f" {name}={quote}{value}{quote}")


def drop_attribute(element: Element, name: str) -> Edit:
    """Take an attribute and the blanks before it away. It must be there."""
    found = next(one for one in re.finditer(_ATTRIBUTE, element.head) if one[1].decode() == name)
    return Edit(element.start + found.start(), element.start + found.end())


def set_text(element: Element, text: str) -> Edit:
    """Put the text of an element without children in its place: blanks and comments around it stay."""
    plain = _COMMENT.sub(lambda comment: b" " * len(comment[0]), element.source[element.inner : element.inner_end])
    start = element.inner + len(plain) - len(plain.lstrip())
    return Edit(start, start + len(plain.strip()), text)


def remove(element: Element) -> Edit:
    """Take an element away, with its line where nothing else stands on it."""
    xml = element.source
    begin = xml.rfind(b"\n", 0, element.start) + 1
    end = xml.find(b"\n", element.end) + 1 or len(xml)
    before, after = xml[begin : element.start].strip(), xml[element.end : end].strip()
    if before:
        return Edit(element.start, element.end)
    return Edit(element.start, xml.index(after, element.end)) if after else Edit(begin, end)


def replace(element: Element, text: str) -> Edit:
    """Put other elements, given as lines without indentation, in an element's place."""
    return Edit(element.start, element.end, _between(element).join(text.splitlines()))


def insert_before(element: Element, text: str) -> Edit:
    """Put elements before one, on lines of their own where it has one."""
    between = _between(element)
    return Edit(element.start, element.start, between.join(text.splitlines()) + between)


def insert_after(element: Element, text: str) -> Edit:
    """Put elements after one, on lines of their own where it has one."""
    between = _between(element)
    return Edit(element.end, element.end, between + between.join(text.splitlines()))


def append(parent: Element, text: str) -> Edit:
    """Put elements into a parent, after its last child."""
    if parent.children:
        return insert_after(parent.children[-1], text)
    between = _between(parent)
    inside = between and between + "  "
    body = inside + inside.join(text.splitlines())
    if parent.head.endswith(b"/>"):
        return Edit(parent.end - 2, parent.end, f">{body}{between}</{parent.tag}>")
    return Edit(
        parent.inner, parent.inner, body if b"\n" in parent.source[parent.inner : parent.inner_end] else body + between
    )


def _between(element: Element) -> str:
    """What separates an element from a neighbour: a line break and its indentation, or nothing within a line."""
    xml = element.source
    begin = xml.rfind(b"\n", 0, element.start) + 1
    blanks = xml[begin : element.start]
    if blanks.strip():
        return ""
    return ("\r\n" if b"\r\n" in xml else "\n") + blanks.decode()


def apply(xml: bytes, edits: Iterable[Edit]) -> bytes:
    """Make the changes. One that lies within a larger one is lost with it; others may not overlap."""
    made, edge = b"", 0
    for edit in sorted(edits, key=lambda one: (one.start, -one.end)):
        if edit.end <= edge and edit.start < edge:
            continue
        assert edit.start >= edge, f"{edit} overlaps another change"
        made += xml[edge : edit.start] + edit.text.encode()
        edge = edit.end
    return made + xml[edge:]
