"""What libvirt sorts is read back from libvirt itself: its test driver shares the disk code with the Xen driver."""

import re
from collections.abc import Sequence

import libvirt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from vmbatch.deviceorder import check_boot_disk, guest_order, libvirt_order, split, working_names
from vmbatch.errors import SiteError

BUSES = {"xvd": "xen", "vd": "virtio", "hd": "ide", "sd": "scsi"}
LETTERS = st.text("abz", min_size=1, max_size=3)
TARGETS = st.lists(
    st.builds(lambda prefix, letters, part: prefix + letters + part, st.sampled_from(list(BUSES)), LETTERS, st.just("")),
    min_size=1,
    max_size=8,
    unique=True,
)
XEN = st.lists(LETTERS.map("xvd".__add__), min_size=1, max_size=8, unique=True)


@pytest.fixture(scope="module")
def connection() -> libvirt.virConnect:
    libvirt.registerErrorHandler(lambda context, error: None, None)
    return libvirt.open("test:///default")


def in_libvirt(connection: libvirt.virConnect, targets: Sequence[str]) -> tuple[str, ...]:
    """Define a domain with these disks and return the order in which libvirt gives them back."""
    disks = ""
    for number, target in enumerate(targets):
        bus = BUSES[split(target)[0]]
        disks += f"<disk type='file'><source file='/{number}'/><target dev='{target}' bus='{bus}'/></disk>"
    head = "<domain type='test'><name>order</name><memory>8192</memory><os><type>hvm</type></os>"
    domain = connection.defineXML(f"{head}<devices>{disks}</devices></domain>")
    try:
        root = etree.fromstring(domain.XMLDesc())
    finally:
        domain.undefine()
    return tuple(str(target.get("dev")) for target in root.findall("devices/disk/target"))


def test_libvirt_and_the_guest_sort_the_cernvm3_disks_differently() -> None:
    targets = ("xvdc", "xvdaa", "xvdb")
    assert libvirt_order(targets) == ("xvdb", "xvdc", "xvdaa")
    assert guest_order(targets) == ("xvdaa", "xvdb", "xvdc")


@pytest.mark.parametrize(
    "targets",
    [
        ("xvdc", "xvdaa", "xvdb"),
        ("xvdaaa", "xvdzz", "xvdba", "xvdz"),
        ("xvda2", "xvda1", "xvda", "xvdb"),
        ("xvdb", "sda", "xvda", "hda", "vda"),
        ("hdc", "xvdb", "hda", "xvdaa"),
    ],
)
def test_libvirt_itself_sorts_like_libvirt_order(connection: libvirt.virConnect, targets: tuple[str, ...]) -> None:
    assert in_libvirt(connection, targets) == libvirt_order(targets)


@settings(max_examples=200, deadline=None)
@given(targets=TARGETS)
def test_libvirt_itself_sorts_any_disks_like_libvirt_order(connection: libvirt.virConnect, targets: list[str]) -> None:
    assert in_libvirt(connection, targets) == libvirt_order(targets)


@pytest.mark.parametrize("name", ["xvd", "xvdB", "foo", "xvda1x", "", "/dev/xvda", "vda b", "xvdzzzzzzz"])
def test_a_name_that_libvirt_would_not_take_is_refused(connection: libvirt.virConnect, name: str) -> None:
    with pytest.raises(SiteError, match=re.escape(f"dev='{name}' is no disk name")):
        split(name)
    if len(name) < 10:  # libvirt counts too many letters wrongly instead of refusing them
        disk = f"<disk type='file'><source file='/x'/><target dev='{name}'/></disk>"
        head = "<domain type='test'><name>no</name><memory>8192</memory><os><type>hvm</type></os>"
        with pytest.raises(libvirt.libvirtError):
            connection.defineXML(f"{head}<devices>{disk}</devices></domain>")


def test_a_boot_disk_that_libvirt_takes_first_is_fine() -> None:
    check_boot_disk("xvdb", ("xvdb", "xvdaa", "xvdc"))
    check_boot_disk("xvda", ("xvda",))


def test_another_boot_disk_is_refused_with_names_that_work() -> None:
    with pytest.raises(SiteError) as caught:
        check_boot_disk("xvdb", ("xvda", "xvdb"))
    assert "would boot from xvda, not from xvdb" in caught.value.message
    assert "use dev=xvdb for the boot disk and xvdaa for xvda" in caught.value.hint


def test_a_boot_disk_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SiteError, match="'xvdq' is none of the domain's disks \\(xvda, xvdb\\)"):
        check_boot_disk("xvdq", ("xvda", "xvdb"))


@settings(deadline=None)
@given(data=st.data(), targets=XEN)
def test_the_hinted_names_boot_the_right_disk_and_keep_the_guests_order(
    connection: libvirt.virConnect, data: st.DataObject, targets: list[str]
) -> None:
    boot = data.draw(st.sampled_from(targets))
    names = working_names(boot, targets)
    renamed = [names[target] for target in targets]
    assert len(set(renamed)) == len(targets)
    check_boot_disk(names[boot], renamed)
    assert in_libvirt(connection, renamed)[0] == names[boot]
    assert guest_order(renamed) == tuple(names[target] for target in guest_order(targets))


@pytest.mark.parametrize("place", [0, 1, 30, 59])
def test_the_hint_holds_for_more_disks_than_letters(connection: libvirt.virConnect, place: int) -> None:
    targets = [f"xvd{a}{b}" for a in "abc" for b in "abcdefghijklmnopqrst"]
    names = working_names(targets[place], targets)
    assert in_libvirt(connection, list(names.values()))[0] == names[targets[place]] == "xvdb"
    assert guest_order(list(names.values())) == tuple(names.values())
    assert list(names) == sorted(targets)
