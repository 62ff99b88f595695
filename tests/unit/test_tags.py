"""One table of tags: its schema and its checks agree, its examples are right, its page shows all of it."""

from pathlib import Path

import pytest
import things
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from vmbatch import tagschema, templates
from vmbatch.errors import SiteError
from vmbatch.manual import pages
from vmbatch.tags import TAGS

OF_THE_SLIDES = (
    "vbconfig vbpreparemethod vbhypervisor vbjobpath vbtarfiles vbtarfile vbdisks vbdisk vbdisksource vbcheckhash "
    "vbpreparecdrom vbuserimage"
).split()
WHOLE = (things.ROOT / "domain-templates" / "default.xml").read_text()
RULES = etree.RelaxNG(tagschema.schema())


def test_all_tags_of_the_slides_are_there_and_no_other_claims_to_be() -> None:
    assert {name for name, tag in TAGS.items() if tag.slides} == set(OF_THE_SLIDES)


def tree(xml: str) -> etree._Element:
    return etree.fromstring(xml.encode(), etree.XMLParser(remove_comments=True))


def complaint(root: etree._Element) -> str:
    """What the checks of the table say; "" where they are content."""
    try:
        for element in root.iter(etree.Element):
            if str(element.tag).startswith("vb"):
                templates._check(Path("/t.xml"), element)
    except SiteError as error:
        return str(error)
    return ""


def put(name: str, example: str) -> str:
    """A template that holds a tag where it belongs, and nothing else of ours."""
    place = TAGS[name].parents[0]
    body = example.replace("...", "")
    while place in TAGS:
        outer = TAGS[place]
        start = outer.example.partition(">")[0].removesuffix("/")
        body, place = f"{start}>{body}</{place}>", outer.parents[0]
    inner = {"domain": body, "devices": f"<devices>{body}</devices>"}
    return f"<domain type='kvm'>{inner.get(place, f'<devices><disk>{body}</disk></devices>')}</domain>"


@pytest.mark.parametrize("name", TAGS)
def test_every_example_is_right(name: str) -> None:
    root = tree(put(name, TAGS[name].example))
    assert complaint(root) == ""
    assert RULES.validate(root), RULES.error_log


_WORDS = "nat yes no KVM CDROM download shared once always 12 x.raw vda vda2 rootdisk data cdrom static /a memory none md5"
VALUES = st.sampled_from(
    [*_WORDS.split(), "", " ", "a b", "0123456789abcdef0123456789abcdef", "http://h.example.org/x", "-1", "Ä"]
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_the_schema_and_the_checks_are_of_one_mind(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TAGS)))
    tag = TAGS[name]
    every = [one.name for one in tag.attributes()]
    given_ = data.draw(st.dictionaries(st.sampled_from([*every, "other", "size", "name"]), VALUES, max_size=5))
    text = data.draw(VALUES) if tag.pattern or tag.values else ""
    root = tree(put(name, f"<{name}/>"))
    element = next(root.iter(name))
    for word, value in given_.items():
        element.set(word, value)
    element.text = text
    assert RULES.validate(root) == (complaint(root) == ""), (etree.tostring(root), complaint(root), RULES.error_log)


@pytest.mark.parametrize("wrong", ["<vbnic/><vbnic/>", "<disk><vbnic/></disk>", "<disk><vbcheckhash/></disk>"])
def test_the_schema_knows_places_and_numbers_too(wrong: str) -> None:
    assert RULES.validate(tree(WHOLE))
    assert not RULES.validate(tree(WHOLE.replace("<vbnic/>", wrong)))


def test_the_page_has_every_tag_attribute_value_default_and_where_it_is_from() -> None:
    page = pages()["vmbatch-template.5"].replace("\\-", "-").replace("\\(aq", "'")
    for name, tag in TAGS.items():
        part = (
            page[page.index(f".SS <{name}> ({'VmBatch 2015' if tag.slides else 'new'})") :]
            .partition(".SS ")[2]
            .partition(".SS ")[0]
        )
        assert tag.help in part and tag.example in part
        assert all(value in part for value in tag.values) and tag.default in part
        for one in tag.attributes():
            assert f".B {one.name}\n" in part and one.help in part and one.default in part
            assert all(value in part for value in one.values)


def test_the_hypervisor_is_taken_from_the_domains_type_where_no_tag_says_it() -> None:
    for kind, wanted in {"kvm": "AUTO", "qemu": "QEMU", "xen": "XEN4", "vbox": "VIRTUALBOX"}.items():
        xml = WHOLE.replace("<vbhypervisor>AUTO</vbhypervisor>", "").replace("type='kvm'", f"type='{kind}'")
        assert templates.parse("t", Path("/t.xml"), xml.encode()).machine.hypervisor == wanted
