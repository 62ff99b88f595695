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
    assert (template.machine.context, template.machine.hypervisor) == ("CDROM", "AUTO")


def test_a_tag_error_names_line_tag_value_and_what_is_allowed() -> None:
    said = wrong(WHOLE.replace("<vbpreparemethod>CDROM", "<vbpreparemethod>FLOPPY"))
    line = WHOLE[: WHOLE.index("<vbpreparemethod>")].count("\n") + 1
    assert f"/t.xml:{line}: <vbpreparemethod> holds 'FLOPPY'" in said
    assert "CDROM, DISK, ROOTSSH, CLOUDINIT" in said


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("<vbnic/>", "<vbnick/>", "<vbnick> is no tag of vmbatch; the nearest is <vbnic>"),
        ("<vbnic/>", "<vbnic/><vbnic/>", "<vbnic> stands here twice"),
        ("<vbnic/>", "<vbnic model='x'/>", "unknown attribute 'model'"),
        ("<vbnic/>", "<vbnic>x</vbnic>", "holds 'x'"),
        ("<vbuserimage/>", "<vbuserimage/><vbnic/>", "wrong place"),
        ("<vbuserimage/>", "<vbdisksource copy_method='shared'/>", "lacks the attribute 'source'"),
        ("<vbuserimage/>", "<vbdisksource source='x' copy_method='twice'/>", "allowed are: download, shared"),
        ("<vbuserimage/>", "<vbuserimage/></disk><disk><vbuserimage/>", "more than one <vbuserimage> without a name"),
        ("<vbuserimage/>", "<vbdisksource source='x' size='1' copy_method='shared'/>", "cannot have 'copy_method' here"),
        ("<vbuserimage/>", "<vbdisksource source='x' size='big' create='once'/>", "has size='big'; it must be: number"),
        ("<vbuserimage/>", "<vbdisksource source='x' create='always'/>", "lacks the attribute 'size'"),
        (
            "<vbuserimage/>",
            "<vbuserimage/><vbcheckhash hashfunction='/bin/rm' hashvalue='00000000000000000000000000000000'/>",
            "unknown hash function '/bin/rm'",
        ),
        (
            "<vbuserimage/>",
            "<vbuserimage/><vbcheckhash hashfunction='md5' hashvalue='0123456789012345678901234567890123'/>",
            "md5 has 32 hexadecimal digits",
        ),
        ("<vbuserimage/>", "<vbuserimage name='Data'/>", "name='Data'; it must be: name"),
        ("</vbconfig>", "<vbjobpath>jobs</vbjobpath></vbconfig>", "holds 'jobs'; it must be: absolute path"),
        (
            "</vbconfig>",
            "<vbuseroptions><vbuseroption name='disk'/></vbuseroptions></vbconfig>",
            "name='disk'; allowed are: memory",
        ),
        ("</vbconfig>", "</vbconfig><vbconfig/>", "<vbconfig> stands here twice"),
        ("</vbconfig>", "<vbtarfile tarfile='x'/></vbconfig>", "belongs in <vbtarfiles>"),
        ("<vbpreparecdrom/>", "", "CDROM needs a disk with <vbpreparecdrom/>"),
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
    assert templates.read(conf, "default").machine.hypervisor == "QEMU"
