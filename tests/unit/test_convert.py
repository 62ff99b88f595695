"""Domain files for Xen become domain files for KVM, and only what must change changes."""

import difflib
import re
from pathlib import Path

import libvirt
import pytest
import things
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from vmbatch import cli, domain, templates, xmltext
from vmbatch.commands import template
from vmbatch.convert import convert
from vmbatch.errors import SiteError, UserError

DATA = things.ROOT / "tests" / "data" / "templates"
SAMPLES = ("slides-cdrom", "slides-disk", "xen-pv", "xen-hvm")

# The samples of VmBatch's slides lost characters in print. (as printed, as meant); each stands there exactly once.
REPAIRS = {
    "slides-cdrom": (
        ("<--- Libvirt stuff --->", "<domain type='xen'>\n<!-- Libvirt stuff -->"),
        ("CDROM/vbpreparemethod>", "CDROM</vbpreparemethod>"),
        ("option='cdrom'/>\n  </vbconfig>", "option='cdrom'/>\n   </vbtarfiles>\n  </vbconfig>"),
        ("<!-- The boot disk --->", "<!-- The boot disk -->"),
        ("http://.../", "http://images.example.org/"),
        ("x86 64.fat", "x86_64.fat"),
        ("copy method=", "copy_method="),
        ("</devices>\n", "</devices>\n</domain>\n"),
    ),
    "slides-disk": (
        ("<vbjobpath >", "<vbjobpath>"),
        ("jobs </vbjobpath >", "jobs</vbjobpath>"),
        ("< vbdisks >", "<vbdisks>"),
        ("disk lavout --->", "disk layout -->"),
        ("</devices>\n", "</devices>\n</domain>\n"),
    ),
}


def converted(text: str) -> tuple[str, str]:
    new, notes = convert(text.encode(), "t.xml")
    return new, "\n".join(notes)


def xen(*lines: str, head: str = "") -> str:
    inside = "".join(f"    {line}\n" for line in lines)
    return f"<domain type='xen'>\n{head}  <devices>\n{inside}  </devices>\n</domain>\n"


def disk(dev: str, *more: str, bus: str = "xen", device: str = "disk") -> str:
    return f"<disk type='file' device='{device}'><target dev='{dev}' bus='{bus}'/>{''.join(more)}</disk>"


def disks(text: str) -> list[tuple[str, str, str]]:
    """(device, target, bus) of each disk; the boot disk's target has a star."""
    found = []
    for one in etree.fromstring(text.encode()).findall("devices/disk"):
        target = one.find("target")
        assert target is not None
        star = "*" if one.find("boot") is not None else ""
        found.append((str(one.get("device")), f"{target.get('dev')}{star}", str(target.get("bus"))))
    return found


def changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines gone and lines new, without indentation."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    return [x[2:].strip() for x in lines if x[:2] == "- "], [x[2:].strip() for x in lines if x[:2] == "+ "]


@pytest.mark.parametrize("name", REPAIRS)
def test_the_slides_samples_differ_from_print_by_the_listed_repairs_only(name: str) -> None:
    text = (DATA / f"{name}.txt").read_text()
    for printed, meant in REPAIRS[name]:
        assert text.count(printed) == 1, printed
        text = text.replace(printed, meant)
    assert (DATA / f"{name}.xml").read_text() == text


@pytest.mark.parametrize("name", SAMPLES)
def test_the_converted_sample_is_the_golden_one(name: str, pytestconfig: pytest.Config) -> None:
    text, notes = convert((DATA / f"{name}.xml").read_bytes(), f"{name}.xml")
    said = "".join(f"{note}\n" for note in notes)
    for file, made in ((DATA / f"{name}.kvm.xml", text), (DATA / f"{name}.notes", said)):
        if pytestconfig.getoption("--rewrite-golden"):
            file.write_text(made)
        assert file.read_text() == made, f"{file.name} differs"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_converted_file_is_left_as_it_is(name: str) -> None:
    text = (DATA / f"{name}.kvm.xml").read_text()
    assert converted(text)[0] == text


def without_tags(file: Path) -> etree._Element:
    """A file of ours as libvirt may see it: a name, memory, a card and sources in the place of our tags."""
    root = etree.fromstring(file.read_bytes(), etree.XMLParser(remove_comments=True))
    for mark in root.findall("devices/vbnic"):
        mark.getparent().replace(mark, etree.Element("interface", type="user"))  # type: ignore[union-attr]
    for one in [x for x in root.iter(etree.Element) if str(x.tag).startswith("vb")]:
        one.getparent().remove(one)  # type: ignore[union-attr]
    for disk in root.findall("devices/disk"):
        if disk.find("source") is None:
            etree.SubElement(disk, "source", file="/x")
    for tag, text in (("name", "t"), ("memory", "65536")):
        if root.find(tag) is None:
            etree.SubElement(root, tag).text = text
    return root


@pytest.mark.parametrize("name", SAMPLES)
def test_the_rest_of_a_converted_file_is_valid_for_libvirt(name: str) -> None:
    root = without_tags(DATA / f"{name}.kvm.xml")
    domain.validate(etree.tostring(root, encoding="unicode"))
    root.set("type", "test")
    connection = libvirt.open("test:///default")
    connection.defineXML(etree.tostring(root, encoding="unicode")).undefine()


@pytest.mark.parametrize("name", ["default", "xen3", "xen4", "virtualbox"])
def test_a_packaged_template_is_one_of_ours_and_valid_for_libvirt(name: str) -> None:
    file = things.ROOT / "domain-templates" / f"{name}.xml"
    templates.parse(name, file, file.read_bytes())
    domain.validate(etree.tostring(without_tags(file), encoding="unicode"))


@pytest.mark.parametrize("name", ["xen3", "xen4"])
def test_a_packaged_template_for_xen_becomes_one_for_kvm(name: str) -> None:
    made, _ = converted((things.ROOT / "domain-templates" / f"{name}.xml").read_text())
    templates.parse(name, Path("/t.xml"), made.encode())
    assert [disk[1:] for disk in disks(made)][1:] == [("hdc", "ide")]
    assert "xvda" not in re.sub("<!--.*?-->", "", made, flags=re.DOTALL)


def test_the_cernvm3_sample_boots_the_same_disk_and_has_a_drive_for_its_context() -> None:
    text = (DATA / "slides-cdrom.kvm.xml").read_text()
    assert disks(text) == [("disk", "vdb*", "virtio"), ("disk", "vdaa", "virtio"), ("cdrom", "hdc", "ide")]


def test_only_what_must_change_changes() -> None:
    before = (DATA / "slides-cdrom.xml").read_text()
    gone, new = changed(before, (DATA / "slides-cdrom.kvm.xml").read_text())
    assert gone == [
        "<domain type='xen'>",
        "<vbhypervisor>XEN4</vbhypervisor>",
        "<driver name='tap2' type='aio'/>",
        "<target dev='xvdb' bus='xen'/>",
        "<driver name='tap2' type='vhd'/>",
        "<vbdisksource source='cernvm-hd.vhd' size='20480' create='always' format='vhd-util-vhd'/>",
        "<target dev='xvdaa' bus='xen'/>",
        "<disk type='file' device='disk'>",
        "<driver name='tap2' type='aio'/>",
        "<target dev='xvdc' bus='xen'/>",
    ]
    assert len(new) == len(gone) + 5  # three lines of <os>, <boot order>, <vbnic/>


@given(st.sampled_from(SAMPLES), st.sampled_from(["\r\n", "\n"]))
def test_line_ends_and_everything_around_a_change_stay(name: str, end: str) -> None:
    before = (DATA / f"{name}.xml").read_text()
    made, _ = converted(before.replace("\n", end))
    assert made == (DATA / f"{name}.kvm.xml").read_text().replace("\n", end)


def test_a_file_on_one_line_stays_on_one_line() -> None:
    made, _ = converted(f"<domain><bootloader>pygrub</bootloader><devices>{disk('xvda')}</devices></domain>")
    assert "\n" not in made
    assert disks(made) == [("disk", "vda*", "virtio")]
    assert etree.fromstring(made).findtext("os/type") == "hvm"


@pytest.mark.parametrize("inside", ["/>", "></devices>", ">\n</devices>", ">\n <!-- a disk -->\n</devices>"])
def test_a_domain_with_nothing_in_it_gets_a_machine_and_a_card(inside: str) -> None:
    made, notes = converted(f"<domain>\n<devices{inside}\n</domain>")
    root = etree.fromstring(made)
    assert (root.get("type"), root.findtext("os/type"), len(root.findall("devices/vbnic"))) == ("kvm", "hvm", 1)
    assert notes == ""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<driver name='tap2' type='aio'/>", "<driver name='qemu' type='raw'/>"),
        ("<driver name='tap' type='aio'/>", "<driver name='qemu' type='raw'/>"),
        ("<driver name='file'/>", "<driver name='qemu' type='raw'/>"),
        ('<driver type="raw" name="phy" cache="none"/>', '<driver type="raw" name="qemu" cache="none"/>'),
        ("<driver name='tap2' type='vhd'/>", "<driver name='qemu' type='qcow2'/>"),
        ("<driver name='tap' type='qcow'/>", "<driver name='qemu' type='qcow2'/>"),
        ("<driver name='qemu' type='qcow2'/>", "<driver name='qemu' type='qcow2'/>"),
        ("<driver name='tap2' type='vmdk'/>", "<driver name='qemu' type='vmdk'/>"),
    ],
)
def test_a_driver_of_xen_becomes_qemus(before: str, after: str) -> None:
    assert after in converted(xen(disk("xvda", before)))[0]


def test_an_image_in_xens_format_is_named_in_a_note_and_a_new_disk_is_not() -> None:
    old = "<driver name='tap2' type='vhd'/><source file='/i/a.vhd'/>"
    assert (
        "the image /i/a.vhd is in Xen's format vhd: make it anew with qemu-img convert -f vpc"
        in converted(xen(disk("xvda", old)))[1]
    )
    new = "<vbdisksource source='n.vhd' size='10' create='once' format='vhd-util-vhd'/><driver name='tap2' type='vhd'/>"
    text, notes = converted(xen(disk("xvda", new)))
    assert "format='qcow2'" in text
    assert "vhd: make it anew" not in notes


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["xvdb", "xvdaa", "xvdd"], ["vdb*", "vdaa", "vdd"]),
        (["xvdaa", "xvdb"], ["vdaa", "vdb*"]),
        (["xvda2", "xvda1", "xvdb"], ["vda*", "vdb", "vdc"]),
        (["xvdb", "xvda1", "xvdc3"], ["vdb", "vda*", "vdc"]),
        (["hda", "xvda"], ["vda*", "vdb"]),
    ],
)
def test_disks_keep_their_letters_and_libvirts_order_and_stay_apart(targets: list[str], names: list[str]) -> None:
    made = disks(converted(xen(*map(disk, targets)))[0])
    assert made == [("disk", name, "virtio") for name in names]


@given(st.lists(st.from_regex("(xvd|hd)[abz]{1,2}[12]?", fullmatch=True), min_size=1, max_size=7, unique=True))
def test_the_boot_disk_is_what_libvirt_itself_takes_first_for_xen(targets: list[str]) -> None:
    before = xen(*(disk(target, f"<source file='/{target}'/>") for target in targets), head="<os><type>hvm</type></os>")
    made, _ = converted(before.replace("hvm", "linux"))
    found = etree.fromstring(made).findall("devices/disk")
    connection = libvirt.open("test:///default")
    orders = []
    for text in (before, made.replace("<vbnic/>", "")):
        root = etree.fromstring(text)
        root.set("type", "test")
        for tag, value in (("name", "order"), ("memory", "8192")):
            etree.SubElement(root, tag).text = value
        defined = connection.defineXML(etree.tostring(root, encoding="unicode"))
        orders.append([x.get("file") for x in etree.fromstring(defined.XMLDesc()).findall("devices/disk/source")])
        defined.undefine()
    assert orders[0] == orders[1]
    boot = [one.find("source").get("file") for one in found if one.find("boot") is not None]  # type: ignore[union-attr]
    assert boot == orders[0][:1]
    names = [one.find("target").get("dev") for one in found]  # type: ignore[union-attr]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("vd[a-z]+", str(name)) for name in names)


def test_a_guest_that_will_see_other_names_is_told_of_in_a_note() -> None:
    _, notes = converted(xen(disk("xvdb"), disk("xvdaa")))
    assert "vdb is /dev/vda; vdaa is /dev/vdb" in notes
    assert "(CernVM3's cache) took vdaa, and would now take vdb" in notes
    assert "/dev/" not in converted(xen(disk("xvdb"), disk("xvda")))[1]


def test_the_context_moves_to_a_free_ide_drive() -> None:
    mark = "<vbpreparecdrom/><readonly/>"
    assert disks(converted(xen(disk("xvda"), disk("xvdb", mark)))[0])[1] == ("cdrom", "hdc", "ide")
    taken = disks(converted(xen(disk("hdc", bus="ide"), disk("xvdb", mark)))[0])
    assert taken == [("disk", "hdc*", "ide"), ("cdrom", "hdd", "ide")]
    five = [disk(f"xvd{letter}", device="cdrom") for letter in "abcde"]
    with pytest.raises(SiteError, match="more CD-ROMs than IDE drives"):
        converted(xen(*five))


def test_a_cdrom_that_xen_would_boot_from_is_told_of() -> None:
    made, notes = converted(xen(disk("xvda", "<vbpreparecdrom/>"), disk("xvdb")))
    assert disks(made) == [("cdrom", "hdc", "ide"), ("disk", "vdb*", "virtio")]
    assert "on Xen xvda comes first, a CD-ROM; the boot disk is now xvdb" in notes


def test_disks_and_partitions_of_the_layout_are_renamed_with_the_disks() -> None:
    layout = "<vbdisks><vbdisk name='rootdisk' dev='{0}' partition='{0}2'/><vbdisk name='jobdisk' dev='hda'/></vbdisks>"
    made, _ = converted(xen(layout.format("xvdaa"), disk("xvdaa"), disk("hda", bus="ide")))
    assert layout.format("vdaa") in made
    made, _ = converted(xen(layout.format("xvda"), disk("xvda1"), disk("xvda2")))
    assert "dev='vda' partition='vdb'" in made


@pytest.mark.parametrize("loader", ["pygrub", "/share/vmbatch/bin/pygrub-vmbatch"])
def test_a_boot_loader_of_the_host_gives_way_to_a_machine(loader: str) -> None:
    before = xen(disk("xvda"), head=f"  <bootloader>{loader}</bootloader>\n  <bootloader_args>-q</bootloader_args>\n")
    made, notes = converted(before)
    gone, new = changed(before, made)
    assert f"<bootloader>{loader}</bootloader>" in gone
    assert "<type arch='x86_64' machine='pc'>hvm</type>" in new
    assert "bootloader" not in made
    assert f"{loader} is left out" in notes
    assert "the boot loader's arguments are left out: -q" in notes


def test_boot_tags_of_a_paravirtual_guest_go_and_those_of_a_machine_stay() -> None:
    system = "  <os><type>{}</type><boot dev='hd'/></os>\n"
    made, _ = converted(xen(disk("xvda"), head=system.format("linux")))
    assert ("<boot dev" in made, "<boot order='1'/>" in made) == (False, True)
    made, _ = converted(xen(disk("xvda"), head=system.format("hvm")))
    assert ("<boot dev" in made, "<boot order='1'/>" in made) == (True, False)


def test_a_domain_with_vbnic_keeps_its_other_cards_and_one_without_gives_its_first() -> None:
    card = "<interface type='bridge'><source bridge='{}'/><model type='netfront'/><script path='vif'/></interface>"
    made, _ = converted(xen("<vbnic/>", card.format("br1")))
    assert "<vbnic/>\n    <interface type='bridge'><source bridge='br1'/><model type='virtio'/></interface>" in made
    made, notes = converted(xen(card.format("br1"), card.format("br2")))
    assert made.count("<vbnic/>") == 1
    assert "br1" not in made
    assert "br2" in made
    assert "the first <interface> (bridge, br1, netfront, vif) is now the job's network card" in notes


@pytest.mark.parametrize(
    "element",
    [
        "<emulator>/usr/lib/xen/bin/qemu-dm</emulator>",
        "<console type='pty'><target type='xen'/></console>",
        "<serial type='pty'/>",
        "<input type='mouse' bus='xen'/>",
        "<video><model type='xen'/></video>",
        "<controller type='xenbus'/>",
        "<memballoon model='xen'/>",
    ],
)
def test_what_kvm_would_refuse_is_left_out_with_a_note(element: str) -> None:
    before = xen("<vbnic/>", element, "<rng/>")
    made, notes = converted(before)
    assert element not in made
    assert made.count("\n") == before.count("\n") - 1 + 3  # one line gone, three of <os>
    assert re.search("^line 4: .* is left out: ", notes, re.MULTILINE)


@pytest.mark.parametrize(
    "element",
    [
        "<emulator>/usr/bin/qemu-system-x86_64</emulator>",
        "<console type='pty'><target type='serial' port='0'/></console>",
        "<serial type='pty'><target port='1'/></serial>",
        "<input type='tablet' bus='usb'/>",
        "<video><model type='cirrus'/></video>",
        "<memballoon model='none'/>",
    ],
)
def test_what_kvm_takes_stays(element: str) -> None:
    made, notes = converted(xen("<vbnic/>", element))
    assert element in made
    assert notes == ""


def test_what_still_speaks_of_xen_is_noted_with_its_line() -> None:
    head = "  <os><type>linux</type><kernel>/k</kernel><cmdline>root=/dev/xvda1</cmdline></os>\n"
    _, notes = converted(xen("<vbnic/>", "<interface><source bridge='xenbr0'/></interface>", head=head))
    assert "line 2: the kernel /k must be one that starts on hardware" in notes
    assert "line 2: <cmdline> still says 'root=/dev/xvda1'" in notes
    assert "line 5: <source> still says 'xenbr0'" in notes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"<domain>\n<disk copy method='download'/></domain>", "f.xml:2: not well-formed XML"),
        (b"<domain>\n<a>x/a>\n</domain>", "f.xml:3: not well-formed XML: mismatched tag"),
        (b"", "f.xml:1: not well-formed XML: no element found"),
        (b"<network/>", "f.xml:1: the root element is <network>"),
        (b"<domain type='xen'/>", "f.xml:1: the domain has no <devices>"),
        (b"<domain type='vbox'/>", "f.xml:1: a domain of type 'vbox' cannot be converted"),
        (b"<!DOCTYPE domain [<!ENTITY a 'b'>]>\n<domain/>", "f.xml:1: a template has no DOCTYPE"),
        (b"<domain>\n<!-- caf\xe9 --></domain>", "f.xml:2: the text is not UTF-8; iconv"),
        (b"<?xml version='1.0' encoding='iso-8859-1'?><domain/>", "declared as iso-8859-1, not UTF-8"),
        ("<domain/>".encode("utf-16"), "not UTF-8"),
        ("<domain/>".encode("utf-16-le"), "not UTF-8"),
        (b"<a>" * 300, "f.xml:1: elements are nested too deep"),
        (b"<domain><devices><disk><target dev='foo'/></disk></devices></domain>", "f.xml: target dev='foo' is no disk name"),
    ],
)
def test_what_cannot_be_converted_names_the_file_and_the_line(text: bytes, said: str) -> None:
    with pytest.raises(SiteError) as caught:
        convert(text, "f.xml")
    assert said in str(caught.value)


@pytest.mark.parametrize("name", REPAIRS)
def test_a_sample_as_printed_is_refused_not_repaired(name: str) -> None:
    with pytest.raises(SiteError, match=r"\.txt:\d+: not well-formed XML"):
        convert((DATA / f"{name}.txt").read_bytes(), f"{name}.txt")


def test_blanks_quotes_comments_and_a_byte_order_mark_around_a_value_stay() -> None:
    marked = "<vbhypervisor><!-- XEN4 --> XEN4\n</vbhypervisor >"
    before = f'\ufeff<domain\n type = "xen" ><vbconfig >{marked}</vbconfig >\n<devices/></domain >'
    made, _ = converted(before)
    assert '\ufeff<domain\n type = "kvm" >' in made
    assert "<vbhypervisor><!-- XEN4 --> AUTO\n</vbhypervisor >" in made


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=30)
)
def test_text_of_any_kind_stays_where_it_is(text: str) -> None:
    element = etree.Element("description", note=text)
    element.text = text
    kept = etree.tostring(element, encoding="unicode")
    made, _ = converted(xen(kept, "<emulator>qemu-dm</emulator>", disk("xvda")))
    assert kept in made
    assert etree.fromstring(made.encode()).find("devices/description").text in (text, text or None)  # type: ignore[union-attr]


def test_changes_within_a_removed_element_are_lost_with_it() -> None:
    root = xmltext.parse(b"<a><b x='1'><c/></b>\n</a>", "t")
    inner, outer = root.findall("b/c")[0], root.findall("b")[0]
    edits = [xmltext.remove(inner), xmltext.set_attribute(outer, "x", "2"), xmltext.remove(outer)]
    assert xmltext.apply(b"<a><b x='1'><c/></b>\n</a>", edits) == b"<a>\n</a>"


def test_the_command_prints_the_file_and_tells_the_changes_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = cli.parser(("template",)).parse_args(["template", "convert", str(DATA / "slides-disk.xml")])
    assert template.main(options) == 0
    said = capsys.readouterr()
    assert said.out == (DATA / "slides-disk.kvm.xml").read_text()
    assert "-<domain type='xen'>\n+<domain type='kvm'>" in said.err
    out = tmp_path / "new.xml"
    words = ["template", "convert", "-q", "-o", str(out), str(DATA / "slides-cdrom.xml")]
    assert template.main(cli.parser(("template",)).parse_args(words)) == 0
    assert out.read_text() == (DATA / "slides-cdrom.kvm.xml").read_text()
    assert capsys.readouterr() == ("", "")


def test_the_command_overwrites_no_original_and_says_what_it_cannot_read_or_write(tmp_path: Path) -> None:
    def said(*words: str) -> str:
        with pytest.raises((UserError, SiteError)) as caught:
            template.main(cli.parser(("template",)).parse_args(["template", "convert", *words]))
        return str(caught.value)

    old, link = tmp_path / "old.xml", tmp_path / "link.xml"
    old.write_text(xen("<vbnic/>"))
    link.symlink_to(old)
    assert "is the file to convert; name a new file with -o" in said(str(old), "-o", str(link))
    assert old.read_text() == xen("<vbnic/>")
    assert "cannot read /nowhere/x.xml: No such file" in said("/nowhere/x.xml", "-o", str(old))
    assert "cannot write /nowhere/x.xml: No such file" in said(str(old), "-o", "/nowhere/x.xml")


def test_the_list_names_each_template_with_the_file_that_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "templates" / "default.xml"
    own.parent.mkdir()
    own.write_text("broken")
    things.site(tmp_path)
    words = ["--config", str(tmp_path / "vmbatch.toml"), "template", "list"]
    assert template.main(cli.parser(("template",)).parse_args(words)) == 0
    listed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert listed["default"] == str(own)
    assert listed["xen4"].endswith("/xen4.xml")
    assert list(listed) == sorted(listed)


def test_a_floppy_is_no_boot_disk_and_a_mark_that_is_there_stays_the_only_one() -> None:
    made, _ = converted(xen(disk("fda", bus="fdc", device="floppy"), disk("xvdb")))
    assert disks(made) == [("floppy", "fda", "fdc"), ("disk", "vdb*", "virtio")]
    made, _ = converted(xen(disk("xvda"), disk("xvdb", "<boot order='1'/>")))
    assert [name for _, name, _ in disks(made)] == ["vda", "vdb*"]
    made, _ = converted(xen("<vbnic/>", "<interface type='user'><boot order='1'/></interface>", disk("xvda")))
    assert [name for _, name, _ in disks(made)] == ["vda"]


def test_a_domain_for_kvm_gets_no_boot_mark_and_a_machine_without_a_type_gets_one() -> None:
    text = f"<domain type='kvm'><os/><devices><vbnic/>{disk('vda', bus='virtio')}</devices></domain>"
    made, _ = converted(text)
    assert disks(made) == [("disk", "vda", "virtio")]
    assert etree.fromstring(made).findtext("os/type") == "hvm"
