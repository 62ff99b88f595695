"""Images and files that users bring: opened with the user's uid, within the template's rules, and refused with the rule."""

import os
import pwd
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import devsite
import fileserver
import pytest
from devsite import DEV, ROOT, Site

from vmbatch import config, lifecycle
from vmbatch.errors import UserError

pytestmark = pytest.mark.usefixtures("no_leaks")
OPTIONS = """<vbuseroptions>
  <vbuseroption name='memory' max='256'/>
  <vbuseroption name='network' values='isolated'/>
  <vbuseroption name='kernel' paths='{own}' max='64'/>
  <vbuseroption name='initrd' paths='{own}'/>
  <vbuseroption name='kernelargs' values='quiet console=*'/>
  <vbuseroption name='root' values='/dev/vd?'/>
  <vbuseroption name='cdrom' paths='{own}' max='10'/>
  <vbuseroption name='tar' paths='{own}' max='10'/>
</vbuseroptions></vbconfig>"""
EXTRA = """<disk type='file' device='disk'>
      <vbuserimage name='data' paths='{own}' optional='yes'/><target dev='vdb' bus='virtio'/>
    </disk>
    <vbnic/>"""


@pytest.fixture(scope="module")
def own(site: Site, alice: pwd.struct_passwd) -> Path:
    """alice's folder, which only she can enter; with her images in it."""
    folder = site.folder / "home" / "alice"
    folder.mkdir(parents=True)
    devsite.image("tiny-small")
    subprocess.run(["cp", DEV / "images/tiny-small.qcow2", folder / "my.qcow2"], check=True)
    convert = ["qemu-img", "convert", "-f", "qcow2", folder / "my.qcow2", "-O"]
    for kind in ("raw", "vmdk"):
        subprocess.run([*convert, kind, folder / f"my.{kind}"], check=True)
    (folder / "data.raw").write_bytes(b"alice's data\n".ljust(1 << 20, b"\0"))
    for name in ("vmlinuz", "initrd"):
        subprocess.run(["cp", DEV / f"images/tiny-small.{name}", folder / name], check=True)
    for path in (folder, *folder.iterdir()):
        os.chown(path, alice.pw_uid, alice.pw_gid)
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


@pytest.fixture(scope="module")
def open_site(site: Site, own: Path, server: fileserver.Server) -> Site:
    """A site whose template `own` lets users bring things from alice's folder and from one server."""
    allowed = f"paths='{own.parent}/*' urls='{server.url}/*' formats='raw qcow2' maxsize='200'"
    xml = (ROOT / "domain-templates/default.xml").read_text()
    xml = xml.replace("<vbuserimage/>", f"<vbuserimage {allowed}/>").replace("</vbconfig>", OPTIONS.format(own=own))
    site.template("own", xml.replace("<vbnic/>", EXTRA.format(own=own)))
    site.sections["users"] = {"templates": ["own"]}
    site.configure()
    return site


@pytest.fixture
def run(open_site: Site, start: Callable[..., Any], alice: pwd.struct_passwd) -> Callable[..., str]:
    """Run a command as alice in a guest of her request; the guest goes with the test."""
    started: list[str] = []

    def begin(request: str, command: str, workdir: Path | None = None) -> str:
        running = start(alice, request, workdir)
        started.append(running.guest.key)
        done = running.shell(b"sh", b"-c", command.encode())
        return (done.stdout + done.stderr).decode()

    yield begin  # type: ignore[misc]
    for key in started:
        lifecycle.stop(config.load(open_site.config), key)


@pytest.mark.parametrize("name", ["my.qcow2", "my.raw"])
def test_a_users_own_image_boots_and_is_not_written(run: Callable[..., str], own: Path, name: str) -> None:
    before = (own / name).read_bytes()
    said = run(f"{own}/{name}:in=none", "id -un; echo x > /tmp/x; grep -c ' / ' /proc/mounts")
    assert said == "vmbalice\n1\n"
    assert (own / name).read_bytes() == before
    assert (own / name).stat().st_uid == own.stat().st_uid  # libvirt has not taken it


def test_an_own_image_by_address_is_fetched_with_the_users_uid(
    run: Callable[..., str], own: Path, server: fileserver.Server
) -> None:
    url = server.put("my.qcow2", (own / "my.qcow2").read_bytes())
    assert run(f"{url}:in=none", "id -un") == "vmbalice\n"


def test_a_disk_by_name_is_the_users_own_or_one_of_the_catalogue_or_left_out(run: Callable[..., str], own: Path) -> None:
    look = "head -c 13 /dev/vdb 2>/dev/null || echo none"
    sudo = "ls /sys/block | grep -c '^vd'"
    assert run(f"{own}/my.qcow2:in=none:image.data={own}/data.raw", sudo) == "2\n"
    assert run(f"{own}/my.qcow2:in=none", f"{sudo}; {look}") == "1\nnone\n"
    assert run("own:image.data=tiny:in=none".replace("own:", f"{own}/my.qcow2:"), sudo) == "2\n"


def test_an_image_without_a_partition_table_boots_with_the_users_own_kernel(run: Callable[..., str], own: Path) -> None:
    start = 2048 * 512
    (own / "root.ext4").write_bytes((own / "my.raw").read_bytes()[start:])
    os.chown(own / "root.ext4", own.stat().st_uid, own.stat().st_gid)
    request = (
        f"{own}/root.ext4:in=none:kernel={own}/vmlinuz:initrd={own}/initrd:root=/dev/vda:kernelargs=console=ttyS0%20quiet"
    )
    said = run(request, "grep ' / ' /proc/mounts; cat /proc/cmdline")
    assert said.startswith("/dev/vda / ext4"), said
    assert "console=ttyS0 quiet root=/dev/vda" in said


def test_a_users_iso_is_in_a_second_drive(run: Callable[..., str], own: Path) -> None:
    (own / "read.me").write_text("from alice's ISO\n")
    subprocess.run(["xorrisofs", "-quiet", "-R", "-o", own / "my.iso", own / "read.me"], check=True, capture_output=True)
    os.chown(own / "my.iso", own.stat().st_uid, own.stat().st_gid)
    said = run(f"{own}/my.qcow2:in=none:cdrom={own}/my.iso", "cat /sys/block/sr*/size")
    assert str((own / "my.iso").stat().st_size // 512) in said.split()


def test_a_users_tar_file_is_unpacked_in_the_working_directory(run: Callable[..., str], own: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("unpacked\n")
    with tarfile.open(own / "software.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "x", "software/x")
    os.chown(own / "software.tar.gz", own.stat().st_uid, own.stat().st_gid)
    assert (
        run(f"{own}/my.qcow2:in=none:tar={own}/software.tar.gz", "cat software/x; stat -c %U software/x")
        == "unpacked\nvmbalice\n"
    )


def test_an_isolated_guest_reaches_nothing_but_the_node(run: Callable[..., str], own: Path) -> None:
    said = run(f"{own}/my.qcow2:in=none:network=isolated", "ip route | grep -c default; nc -w 2 192.0.2.1 80 || echo closed")
    assert "closed" in said
    rules = subprocess.run(["nft", "list", "set", "inet", devsite.NETWORK, "isolated"], capture_output=True, text=True)
    assert "elements = { 10.214." in rules.stdout


def stop_all(site: Site) -> None:
    """A refusal is kept where the job's shell reads it, until the job ends."""
    for folder in (site.folder / "state" / "jobs").iterdir():
        lifecycle.stop(config.load(site.config), folder.name)


def refused(site: Site, start: Callable[..., Any], alice: pwd.struct_passwd, request: str) -> str:
    with pytest.raises(UserError) as caught:
        start(alice, request)
    stop_all(site)
    return str(caught.value)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("/etc/shadow", "cannot open /etc/shadow as vmbalice"),
        ("/etc/hostname", "lies where no files may come from; allowed are: {own.parent}/*"),
        ("{own}/../../../../../../../etc/hostname", "lies where no files may come from"),
        ("{own}/link", "which is /etc/hostname, lies where no files may come from"),
        ("{own}/none.qcow2", "cannot open {own}/none.qcow2 as vmbalice: No such file"),
        ("{own}/fifo", "is no regular file"),
        ("{own}", "is no regular file"),
        ("/proc/self/fd/0", "cannot open /proc/self/fd/0"),
        ("{own}/big.raw", "200 MiB"),
        ("{own}/backing.qcow2", "backing"),
        ("{own}/my.vmdk", "is a vmdk image; allowed are: raw, qcow2"),
        ("http://127.0.0.1:9/x.raw", "does not allow images from http://127.0.0.1:9/x.raw"),
        ("file:///etc/passwd", "is no address that images come from"),
        ("{own}/my.qcow2:memory=300M", 'max="256"'),
        ("{own}/my.qcow2:network=nat", 'values="isolated"'),
        ("{own}/my.qcow2:kernel=/boot/vmlinuz", "cannot open /boot/vmlinuz"),
        ("{own}/my.qcow2:kernel={own}/no.kernel", "QEMU does not take what the job brings along"),
        ("{own}/my.qcow2:kernelargs=init=/bin/sh", 'values="quiet console=*"'),
        ("{own}/my.qcow2:root=/dev/vda1", 'values="/dev/vd?"'),
        ("{own}/my.qcow2:cdrom=/etc/hostname", "lies where no files may come from"),
        ("{own}/my.qcow2:image.nothing=tiny", "has no image 'nothing' to choose; it has: image.data="),
        ("tiny:network=isolated", "does not let users choose network="),
    ],
)
def test_what_is_not_allowed_is_refused_with_the_rule(
    open_site: Site, start: Callable[..., Any], alice: pwd.struct_passwd, own: Path, request_: str, said: str
) -> None:
    (own / "link").unlink(missing_ok=True)
    (own / "link").symlink_to("/etc/hostname")
    if not (own / "fifo").exists():
        os.mkfifo(own / "fifo")
        with (own / "big.raw").open("wb") as file:
            file.truncate(201 << 20)
        base = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname", own / "backing.qcow2", "1M"]
        subprocess.run(base, check=True)
        (own / "no.kernel").write_bytes(bytes(600))
        for name in ("fifo", "big.raw", "backing.qcow2", "no.kernel"):
            os.chown(own / name, alice.pw_uid, alice.pw_gid)
    assert said.format(own=own) in refused(open_site, start, alice, request_.format(own=own))


def test_without_the_sites_word_users_bring_nothing(open_site: Site, own: Path) -> None:
    site = open_site
    done = site.call("check", f"{own}/my.qcow2", "--grant-memory", "300M")
    assert done.returncode == 0 and "template    own" in done.stdout, done.stdout + done.stderr
    site.configure(users={"templates": []})
    try:
        done = site.call("check", f"{own}/my.qcow2")
        assert done.returncode == 1 and "bring no images of their own" in done.stdout
    finally:
        site.configure()


def test_an_image_that_somebody_writes_to_is_copied_and_looked_at_again(
    open_site: Site, run: Callable[..., str], own: Path
) -> None:
    with (own / "my.qcow2").open("r+b"):  # a writer: the kernel gives no lease
        assert run(f"{own}/my.qcow2:in=none", "id -un") == "vmbalice\n"
