"""vmbatch image import, list, show, verify, remove, gc; vmbatch check and template: without a guest."""

import hashlib
import pwd
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import fileserver
import pytest
from devsite import ROOT, VMBATCH, Site

WHOLE = (ROOT / "domain-templates/default.xml").read_text()


@pytest.fixture(autouse=True)
def own(site: Site) -> Iterator[None]:
    """Each test begins with an empty store and only the tiny image in the catalogue."""
    site.own_images()
    yield
    subprocess.run(["rm", "-rf", site.folder / "store"], check=True)
    for file in (site.folder / "images.d").glob("*.toml"):
        if file.stem != "tiny":
            file.unlink()


def vmdk(tmp_path: Path) -> Path:
    (tmp_path / "a.raw").write_bytes(b"content".ljust(4 << 20, b"\0"))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", tmp_path / "a.raw", tmp_path / "a.vmdk"]
    subprocess.run(convert, check=True)
    return tmp_path / "a.vmdk"


def test_an_import_is_converted_registered_listed_shown_verified_and_removed(site: Site, tmp_path: Path) -> None:
    file = vmdk(tmp_path)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    done = site.call("image", "import", file, "--checksum", f"sha256:{sha256}", "--name", "appliance")
    assert done.returncode == 0 and "converts it from vmdk to qcow2" in done.stderr, done.stderr
    entry = tomllib.loads((site.folder / "images.d/appliance.toml").read_text())
    assert entry["format"] == "qcow2" and entry["source"] == f"sha512:{entry['sha512']}"
    assert "appliance" in site.call("image", "list").stdout
    listed = site.call("image", "list", "--store").stdout
    assert entry["sha512"][:12] in listed and "pinned" in listed and str(file) in listed
    shown = site.call("image", "show", "appliance").stdout
    assert (
        "guest sees       4194304 bytes" in shown and "converted from   vmdk" in shown and "in use by        nobody" in shown
    )
    assert site.call("image", "show", entry["sha512"][:10]).stdout in shown
    assert site.call("image", "verify").stdout.count(": ok\n") == 2  # and the tiny image
    assert site.call("image", "gc", "--unused").stdout == ""  # the catalogue names it
    done = site.call("image", "remove", "appliance")
    assert done.returncode == 0 and "objects" in done.stdout
    assert list((site.folder / "store/objects").iterdir()) == []
    assert site.call("check", "appliance").returncode == 1


def test_a_damaged_image_is_found_and_not_used(site: Site, tmp_path: Path) -> None:
    site.call("image", "import", vmdk(tmp_path), "--name", "appliance", "-q")
    (file,) = (site.folder / "store/objects").iterdir()
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.seek(70000)
        stream.write(b"changed")
    done = site.call("image", "verify", "appliance")
    assert done.returncode == 1 and "has the sha512" in done.stdout
    done = site.call("run", "--image", "appliance:in=none", "--", "true")
    assert done.returncode == 125 and "has been changed since it was fetched" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{file}", "--checksum", "md5:" + "0" * 32], 1, "its md5 is"),
        (["{file}", "--checksum", "0" * 32], 1, "names no hash function; write sha256:HEX"),
        (["{file}", "--checksum", "crc32:00"], 3, "unknown hash function 'crc32'"),
        (["{file}", "--format", "qcow2"], 1, "content is vmdk"),
        (["/none.qcow2"], 1, "cannot read /none.qcow2"),
        (["gopher://h/x"], 1, "is no address that images come from"),
        (["{server}/none.qcow2"], 1, "404"),
        (["{server}/page.raw"], 1, "looks like text"),
        (["{file}", "--name", "../x"], 1, "cannot be an image's name"),
    ],
)
def test_what_cannot_be_imported_is_said_and_leaves_nothing(
    site: Site, server: fileserver.Server, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    server.put("page.raw", b"<html><body>Not found</body></html>\n".ljust(512, b" "))
    file = vmdk(tmp_path)
    done = site.call("image", "import", "-q", *(word.format(file=file, server=server.url) for word in words))
    assert done.returncode == code, done.stderr
    assert said in (done.stderr.replace("\n  try: ", "; ")) and "Traceback" not in done.stderr
    if "--name" not in words:
        assert not list((site.folder / "store").glob("objects/*"))


def test_an_import_shows_a_bar_on_a_terminal(site: Site, server: fileserver.Server) -> None:
    url = server.put("slow.raw", b"\1" + bytes((8 << 20) - 1)) + "?drip=0.02&piece=262144"
    command = f"{VMBATCH} --config {site.config} image import '{url}'"
    shown = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, text=True, check=True).stdout
    assert "% " in shown and "MiB/s" in shown and "left" in shown


def test_the_limits_of_the_store_hold_when_something_new_comes_in(site: Site, server: fileserver.Server) -> None:
    for name in "abc":
        site.call("image", "import", "-q", server.put(f"{name}.raw", b"\1" + name.encode() * ((1 << 20) - 1)))
    site.configure(store={"high_mib": 2, "low_mib": 1})
    dry = site.call("image", "gc", "--dry-run").stdout
    assert dry.count("would be removed") == 2 and len(list((site.folder / "store/objects").iterdir())) == 3
    assert site.call("image", "gc").stdout.count(" removed (") == 2
    site.configure()
    assert len(list((site.folder / "store/objects").iterdir())) == 1


def test_an_image_by_address_is_one_of_the_catalogue_to_all_commands(site: Site, server: fileserver.Server) -> None:
    url = server.put("net.raw", b"\1" + bytes((1 << 20) - 1))
    site.offer("net", source=url, format="raw")
    assert site.call("image", "import", "-q", url, "--format", "raw").returncode == 0
    assert "net: ok" in site.call("image", "verify", "net").stdout
    assert "fetched from" in site.call("image", "show", "net").stdout
    assert site.call("image", "gc", "--unused").stdout == ""
    assert "objects" in site.call("image", "remove", "net").stdout


def test_a_user_who_may_not_write_there_gets_a_sentence(site: Site, alice: pwd.struct_passwd, tmp_path: Path) -> None:
    for words in (("image", "import", "/etc/hostname"), ("image", "remove", "tiny")):
        done = site.call(*words, user=alice.pw_uid, cwd="/")
        assert done.returncode != 0 and "Traceback" not in done.stderr and done.stderr.startswith("vmbatch: "), done.stderr


# --- check and template ---


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("<type arch='x86_64' machine='pc'>hvm</type>", "", "libvirt would not take the domain"),
        ("<on_poweroff>destroy", "<on_poweroff>explode", "libvirt would not take the domain"),
        ("<vbpreparemethod>CDROM", "<vbpreparemethod>ROOTSSH", "ROOTSSH is not in this version"),
        ("dev='hdc'", "dev='vda'", "two disks have <target dev='vda'>"),
        ("<vbuserimage/>", "<vbuserimage size='1'/>", "line"),
    ],
)
def test_a_template_is_checked_as_far_as_a_start_would(
    site: Site, tmp_path: Path, before: str, after: str, said: str
) -> None:
    file = tmp_path / "mine.xml"
    file.write_text(WHOLE)
    done = subprocess.run([VMBATCH, "check", "--template", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{file}: ok; AUTO, context by CDROM, 2 disks with tags\n"), done.stderr
    file.write_text(WHOLE.replace(before, after, 1))
    done = subprocess.run([VMBATCH, "check", "--template", file], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and str(file) in done.stderr and (said in done.stderr or said == "line"), done.stderr


@pytest.mark.parametrize("name", ["default", "xen3", "xen4", "virtualbox"])
def test_every_packaged_template_is_right(name: str) -> None:
    file = ROOT / "domain-templates" / f"{name}.xml"
    done = subprocess.run([VMBATCH, "check", "--template", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_request_whose_image_is_missing_is_refused_by_check(site: Site) -> None:
    site.offer("missing", source="missing.qcow2")
    done = site.call("check", "missing")
    assert done.returncode == 1 and "missing.qcow2 is missing" in done.stdout


def test_the_schema_is_printed_for_editors() -> None:
    from lxml import etree

    done = subprocess.run([VMBATCH, "template", "schema"], capture_output=True, text=True, check=True)
    assert etree.RelaxNG(etree.fromstring(done.stdout)).validate(etree.fromstring(WHOLE.encode()))
