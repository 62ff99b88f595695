"""Users choose what the template opens: paths part by part, addresses by host and path, limits with the rule."""

from dataclasses import replace
from pathlib import Path

import pytest
import things
from hypothesis import given
from hypothesis import strategies as st

from vmbatch import catalogue, choices, request
from vmbatch.errors import UserError
from vmbatch.templates import Template, parse


@pytest.mark.parametrize(
    ("path", "roots", "fits"),
    [
        ("/scratch/me/a", "/scratch", True),
        ("/scratch2/me/a", "/scratch", False),  # CVE-2026-48785: no comparison of texts
        ("/scratch", "/scratch", False),
        ("/home/me/images/a", "/home/*/images", True),
        ("/home/me/other/images/a", "/home/*/images", False),
        ("/home/images/a", "/home/*/images", False),
        ("/a/../etc/shadow", "/a", False),
        ("/a/./b", "/a", False),
        ("scratch/a", "/scratch", False),
        ("/x/y", "/a /x", True),
        ("/x/y", "", False),
        ("/x/y", "/", True),
    ],
)
def test_a_path_lies_below_a_root_part_by_part(path: str, roots: str, fits: bool) -> None:
    assert choices.fits(path, tuple(roots.split())) is fits


@pytest.mark.parametrize(
    ("url", "pattern", "fits"),
    [
        ("https://h.example.org/a/b.raw", "https://h.example.org/*", True),
        ("https://h.example.org/a/b.raw", "https://h.example.org/a/*", True),
        ("https://h.example.org/b/b.raw", "https://h.example.org/a/*", False),
        ("https://h.example.org/a/../b/b.raw", "https://h.example.org/a/*", False),
        ("https://h.example.org/a/%2e%2e/b.raw", "https://h.example.org/a/*", False),
        ("http://h.example.org/a", "https://h.example.org/*", False),
        ("https://h.example.org.evil.org/a", "https://h.example.org/*", False),
        ("https://h.example.org:444/a", "https://h.example.org/*", False),
        ("https://h.example.org@evil.org/a", "https://h.example.org*/*", False),
        ("https://evil.org/h.example.org/a", "https://h.example.org/*", False),
        ("https://x.example.org/a.raw", "https://*.example.org/*", True),
        ("https://x.y.example.org/a.raw", "https://*.example.org/*", False),
        ("http://mallory?.example.org/e", "http://*.example.org/*", False),
        ("http://[::1]?.example.org/e", "http://*.example.org/*", False),
        ("https://h.example.org/mallory.raw#/el9.raw", "https://h.example.org/*/el9.raw", False),
        ("https://h.example.org//x//y", "https://h.example.org/*", False),
        ("https://H.example.org/a.raw", "https://h.example.org/*.raw", True),
        ("https://h.example.org/a/b.raw", "https://h.example.org/*.raw", False),
        ("https://h.example.org", "https://h.example.org/*", False),
    ],
)
def test_an_address_fits_by_scheme_host_port_and_path(url: str, pattern: str, fits: bool) -> None:
    assert choices.fits_url(url, (pattern,)) is fits


@given(st.text(max_size=60))
def test_no_text_breaks_the_comparison(text: str) -> None:
    assert choices.fits(text, ("/nowhere/at/all",)) in (True, False)
    assert choices.fits_url(text, ("https://h.example.org/*",)) in (True, False)


def template(options: str = "", image: str = "<vbuserimage/>") -> Template:
    text = (things.ROOT / "domain-templates" / "default.xml").read_text()
    text = text.replace("</vbconfig>", f"<vbuseroptions>{options}</vbuseroptions></vbconfig>")
    return parse("t", Path("/t.xml"), text.replace("<vbuserimage/>", image).encode())


@pytest.mark.parametrize(
    "word", ["network=nat", "tar=/a", "kernel=/a", "initrd=/a", "kernelargs=a", "root=/dev/vda", "cdrom=/a"]
)
def test_what_is_not_opened_is_closed(word: str) -> None:
    with pytest.raises(UserError, match="does not let users choose") as caught:
        choices.check(template(), request.parse(f"tiny:{word}"))
    assert "<vbuseroption name=" in caught.value.hint
    name = word.partition("=")[0]
    kernel = "<vbuseroption name='kernel'/>" if name == "initrd" else ""
    more = ":kernel=/k" if name == "initrd" else ""
    choices.check(template(f"{kernel}<vbuseroption name='{name}'/>"), request.parse(f"tiny:{word}{more}"))


def test_memory_and_cpus_are_open_and_can_be_limited() -> None:
    choices.check(template(), request.parse("tiny:memory=8G:cpus=8"))
    for option, word in (("memory' max='1024'", "memory=1025M"), ("cpus' max='2'", "cpus=3")):
        with pytest.raises(UserError, match="more than is allowed here"):
            choices.check(template(f"<vbuseroption name='{option}/>"), request.parse(f"tiny:{word}"))


def test_an_initial_ram_disk_needs_a_kernel() -> None:
    opened = template("<vbuseroption name='initrd'/>")
    with pytest.raises(UserError, match="needs a kernel="):
        choices.check(opened, request.parse("tiny:initrd=/i"))


def test_boot_parameters_for_an_image_that_boots_by_itself_are_refused(tmp_path: Path) -> None:
    opened = template("<vbuseroption name='kernelargs'/>")
    with pytest.raises(UserError, match="boots by itself"):
        things.guest(things.site(tmp_path), template=opened, request=request.parse("tiny:kernelargs=quiet"))
    image = replace(things.IMAGE, kernel=Path("/k"), kernel_args="console=ttyS0")
    made = things.guest(things.site(tmp_path), template=opened, image=image, request=request.parse("tiny:kernelargs=quiet"))
    assert made.kernel_args == "console=ttyS0 quiet"


def test_a_named_disk_must_be_there_and_a_needed_one_must_be_named(tmp_path: Path) -> None:
    named = template(image="<vbuserimage/></disk><disk><vbuserimage name='data'/><target dev='vdb'/>")
    with pytest.raises(UserError, match="has no image 'date'"):
        choices.check(named, request.parse("tiny:image.date=tiny"))
    with pytest.raises(UserError, match="names no image for it") as caught:
        things.guest(things.site(tmp_path), template=named)
    assert caught.value.hint == "add image.data=IMAGE"


def test_a_choice_replaces_the_disk_source_beside_it(tmp_path: Path) -> None:
    both = "<vbuserimage/></disk><disk><vbuserimage name='data'/><vbdisksource source='d.raw' copy_method='shared'/>"
    shape = template(image=f"{both}<target dev='vdb' bus='virtio'/>")
    conf = things.site(tmp_path)
    assert things.guest(conf, template=shape).disks[1].origin.source == str(conf.paths.images / "d.raw")
    chosen = replace(things.IMAGE, name="other", source="/images/other.qcow2")
    wish = request.parse("tiny:image.data=other")
    assert things.guest(conf, template=shape, request=wish, images={"data": chosen}).disks[1].origin.source == chosen.source


def test_a_users_own_image_needs_the_sites_word(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bring no images of their own"):
        catalogue.choose(things.site(tmp_path), request.parse("/scratch/a.qcow2"))
    conf = things.site(tmp_path, '[users]\ntemplates = ["own", "big"]\n')
    image = catalogue.choose(conf, request.parse("/scratch/a.qcow2"))[""]
    assert (image.own, image.template, image.templates) == (True, "own", ("big",))
    with pytest.raises(UserError, match="has no paths="):
        things.guest(conf, template=template(), image=image, request=request.parse("/scratch/a.qcow2"))
