"""The RELAX NG schema of the vb tags, made from their table (relaxng.org, structure 1.0)."""

from typing import cast

from lxml import etree

from vmbatch.tagforms import Attribute, Tag
from vmbatch.tags import TAGS

_RNG = "http://relaxng.org/ns/structure/1.0"


def schema() -> etree._Element:
    """Return the schema of a whole template; libvirt's own elements may be anything."""
    grammar = _element("grammar", datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes")
    grammar.append(_element("start", _place("domain", root=True)))
    for name, tag in TAGS.items():
        grammar.append(_element("define", _tag(name, tag), name=name))
    inner = {parent for tag in TAGS.values() for parent in tag.parents if parent not in TAGS}
    for place in sorted(inner - {"domain"}):
        grammar.append(_element("define", _place(place), name=f"in-{place}"))
    names = _element("anyName", _element("except", *(_element("name", text=one) for one in (*TAGS, *sorted(inner)))))
    every = _choice(*(_element("ref", name=f"in-{place}") for place in sorted(inner - {"domain"})), _ref("other"))
    grammar.append(_element("define", every, name="any"))
    grammar.append(_element("define", _element("element", names, _content()), name="other"))
    return grammar


def _content(*own: etree._Element) -> etree._Element:
    """Anything of libvirt's, and our own tags among it."""
    more = _element("zeroOrMore", _choice(_ref("any"), _element("text"), _element("attribute", _element("anyName"))))
    return _element("interleave", *own, more) if own else more


def _place(name: str, root: bool = False) -> etree._Element:
    own = []
    for tag, one in TAGS.items():
        if name in one.parents:
            own.append(_element("zeroOrMore" if one.many else "optional", _ref(tag)))
    return _element("element", _content(*own), name=name)


def _tag(name: str, tag: Tag) -> etree._Element:
    parts = []
    children = [_element("zeroOrMore" if one.many else "optional", _ref(word)) for word, one in TAGS.items()
                if name in one.parents]  # fmt: skip
    if len(tag.forms) > 1:
        parts.append(_choice(*(_element("group", *map(_attribute, form)) for form in tag.forms)))
    else:
        parts += list(map(_attribute, tag.forms[0]))
    if children:
        parts.append(_element("interleave", *children))
    if tag.values:
        parts.append(_choice(*(_element("value", text=value, type="token") for value in tag.values)))
    elif tag.pattern:
        parts.append(_data(tag.pattern, "token"))
    return _element("element", *(parts or [_element("empty")]), name=name)


def _attribute(one: Attribute) -> etree._Element:
    inner = _choice(*(_element("value", text=v, type="string") for v in one.values)) if one.values else _data(one.pattern)
    attribute = _element("attribute", inner, name=one.name)
    return attribute if one.required else _element("optional", attribute)


def _data(pattern: str, kind: str = "string") -> etree._Element:
    return _element("data", _element("param", text=pattern, name="pattern"), type=kind)


def _choice(*parts: etree._Element) -> etree._Element:
    return parts[0] if len(parts) == 1 else _element("choice", *parts)


def _ref(name: str) -> etree._Element:
    return _element("ref", name=name)


def _element(tag: str, *children: etree._Element, text: str = "", **attributes: str) -> etree._Element:
    made = etree.Element(f"{{{_RNG}}}{tag}", attributes, nsmap=cast("dict[str, str]", {None: _RNG}))
    made.text = text or None
    made.extend(children)
    return made
