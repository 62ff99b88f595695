"""Golden files. `make test-unit ARGS=--rewrite-golden` writes them anew; read the difference before you commit it."""

import tempfile
from pathlib import Path

import golden
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from things import ROOT, guest, site, template

from vmbatch import domain
from vmbatch.errors import SiteError
from vmbatch.records import to_json
from vmbatch.templates import parse


@pytest.mark.parametrize("name", golden.images())
def test_the_guest_and_its_domain_are_the_golden_ones(name: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    _, made, xml = golden.case(name, tmp_path)
    for file, text in ((golden.HERE / f"{name}.guest.json", to_json(made)), (golden.HERE / f"{name}.domain.xml", xml)):
        if pytestconfig.getoption("--rewrite-golden"):
            file.write_text(text)
        assert file.read_text() == text, f"{file.name} differs"


@pytest.mark.parametrize("name", golden.images())
def test_libvirts_own_schema_takes_the_domain(name: str, tmp_path: Path) -> None:
    domain.validate(golden.case(name, tmp_path)[2])


def test_there_is_no_golden_file_without_a_case() -> None:
    cases = {file.name.partition(".")[0] for file in golden.HERE.glob("*.domain.xml")}
    assert cases == set(golden.images())


def test_a_domain_that_libvirt_would_not_take_is_the_sites_error(tmp_path: Path) -> None:
    xml = golden.case("plain", tmp_path)[2].replace("<acpi/>", "<acpi/><warp/>")
    with pytest.raises(SiteError, match="libvirt would not take the domain"):
        domain.validate(xml)


def test_the_overlay_chain_ends_and_no_format_is_left_to_guess(tmp_path: Path) -> None:
    root = etree.fromstring(golden.case("raw", tmp_path)[2].encode())
    backing = root.find("devices/disk/backingStore")
    assert backing is not None and backing.find("format").get("type") == "raw"  # type: ignore[union-attr]
    assert backing.find("backingStore") is not None and len(backing.find("backingStore")) == 0  # type: ignore[arg-type]


def skeleton(xml: str) -> list[tuple[str, tuple[str, ...]]]:
    """The structure of a domain: tags and attribute names, without any value."""
    root = etree.fromstring(xml.encode())
    return [(str(element.tag), tuple(sorted(map(str, element.attrib)))) for element in root.iter()]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=40) | st.sampled_from(
    ["'/><hostdev mode='subsystem'/>", '"><x a="', "]]>", "&lt;", "<!--", "\x01", "\n<disk/>", "..", "\ufffe"]
)


@settings(max_examples=150, deadline=None)
@given(TEXT, TEXT, TEXT, TEXT)
def test_no_text_of_a_user_changes_the_structure(image: str, job: str, user: str, path: str) -> None:
    from dataclasses import replace

    from things import IMAGE, JOB, PERSON

    with tempfile.TemporaryDirectory() as folder:
        conf = site(Path(folder))
        harmless = domain.build(template(), guest(conf))
        hostile = guest(
            conf,
            image=replace(IMAGE, name=image, source=f"/images/{path}"),
            job=replace(JOB, id=job, user=user, workdir=Path("/", path)),
            person=replace(PERSON, name=user, home=Path("/home", user)),
        )
        xml = domain.build(template(), hostile)
    assert skeleton(xml) == skeleton(harmless)
    etree.fromstring(xml.encode())


def test_a_tag_that_does_not_fit_is_never_left_over(tmp_path: Path) -> None:
    shape = template()
    text = (ROOT / "domain-templates/default.xml").read_text().replace("<rng", "<vbnic/><rng", 1)
    with pytest.raises(SiteError):
        parse("t", Path("/t.xml"), text.encode())
    made = guest(site(tmp_path))
    two = shape.root.find("devices/disk/vbuserimage")
    assert two is not None
    assert "<vb" not in domain.build(shape, made).replace("<vmbatch", "")
