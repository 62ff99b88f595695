"""Template errors name file, line, tag, and what is allowed."""

from pathlib import Path

import pytest
import things

from vmbatch import templates
from vmbatch.errors import SiteError

WHOLE = (things.ROOT / "domain-templates" / "default.xml").read_text()
DISK = "<disk><vbpreparecdrom/><target dev='hdc'/></disk>"


def wrong(text: str) -> str:
    with pytest.raises(SiteError) as caught:
        templates.parse("t", Path("/t.xml"), text.encode())
    assert "/t.xml" in str(caught.value)
    return str(caught.value)


def test_the_packaged_template_is_whole() -> None:
    template = things.template()
    assert (template.context, template.hypervisor) == ("CDROM", "AUTO")


def test_a_tag_error_names_line_tag_value_and_what_is_allowed() -> None:
    said = wrong(WHOLE.replace("<vbpreparemethod>CDROM", "<vbpreparemethod>FLOPPY"))
    line = WHOLE[: WHOLE.index("<vbpreparemethod>")].count("\n") + 1
    assert f"/t.xml:{line}: <vbpreparemethod> holds 'FLOPPY'" in said
    assert "CDROM, CLOUDINIT" in said


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("<vbnic/>", "<vbnick/>", "<vbnick> is no tag of vmbatch; the nearest is <vbnic>"),
        ("<vbnic/>", "<vbnic/><vbnic/>", "exactly one <vbnic/>"),
        ("<vbnic/>", "", "exactly one <vbnic/>"),
        ("<vbnic/>", "<vbnic model='x'/>", "unknown attribute 'model'"),
        ("<vbnic/>", "<vbnic>x</vbnic>", "holds 'x'"),
        ("<vbuserimage/>", "<vbuserimage/><vbnic/>", "wrong place"),
        ("<vbuserimage/>", "<vbdisksource copy_method='shared'/>", "lacks the attribute 'source'"),
        ("<vbuserimage/>", "<vbdisksource source='x' copy_method='twice'/>", "allowed are: shared"),
        ("<vbuserimage/>", "<vbuserimage/></disk><disk><vbuserimage/>", "more than one <vbuserimage>"),
        ("<vbpreparecdrom/>", "", "exactly one <vbpreparecdrom/>"),
        ("<domain type='kvm'>", "<!DOCTYPE domain [<!ENTITY x 'y'>]><domain type='kvm'>", "no DOCTYPE"),
        ("</domain>", "", "not well-formed"),
        ("<domain", "<network", "not well-formed"),
    ],
)
def test_a_wrong_template_says_what_is_wrong(before: str, after: str, said: str) -> None:
    assert said in wrong(WHOLE.replace(before, after, 1))


def test_an_unknown_template_lists_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no domain template 'defualt'") as caught:
        templates.read(things.site(tmp_path), "defualt")
    assert "default" in caught.value.hint


@pytest.mark.parametrize("name", ["../default", "/etc/passwd", "", "x/../default"])
def test_a_template_is_named_never_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(SiteError):
        templates.read(things.site(tmp_path), name)


def test_the_sites_own_template_comes_before_the_packaged_one(tmp_path: Path) -> None:
    conf = things.site(tmp_path)
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "default.xml").write_text(WHOLE.replace("AUTO", "QEMU"))
    assert templates.read(conf, "default").hypervisor == "QEMU"
