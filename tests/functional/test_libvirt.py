"""libvirt: bounded in time even when it hangs; the golden domains are real to it."""

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import daemons
import golden
import libvirt as api
import pytest

from vmbatch.errors import SiteError
from vmbatch.hypervisor import Hypervisor, LibvirtError
from vmbatch.pids import find


@pytest.fixture
def private(alice: pwd.struct_passwd, tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A libvirtd of alice's own, and its URI for a process that runs as she does."""
    runtime = Path("/run") / f"vmbpriv{os.getpid()}"
    runtime.mkdir(mode=0o700)
    os.chown(runtime, alice.pw_uid, alice.pw_gid)
    env = {"XDG_RUNTIME_DIR": str(runtime), "HOME": alice.pw_dir, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    server = subprocess.Popen(
        ["/usr/sbin/libvirtd"], env=env, user=alice.pw_uid, group=alice.pw_gid, extra_groups=[], cwd="/",
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    socket = runtime / "libvirt" / "libvirt-sock"
    daemons.wait_for(socket.exists, 30, "the private libvirtd")
    yield f"qemu+unix:///session?socket={socket}", server
    for number in (signal.SIGCONT, signal.SIGKILL):
        server.send_signal(number)
    server.wait()
    subprocess.run(["rm", "-rf", runtime], check=True)


def test_a_stopped_libvirtd_cannot_hang_a_call(private: tuple[str, "subprocess.Popen[bytes]"]) -> None:
    uri, server = private
    with Hypervisor(uri, 20) as hypervisor:
        assert hypervisor.version()["libvirt"]
        server.send_signal(signal.SIGSTOP)
        hypervisor.timeout_s = 1
        for call in (hypervisor.version, hypervisor.domains, lambda: hypervisor.destroy("x")):
            began = time.monotonic()
            with pytest.raises(SiteError, match="did not answer within 1 s"):
                call()
            assert time.monotonic() - began < 3
        server.send_signal(signal.SIGCONT)
        hypervisor.timeout_s = 20
        assert hypervisor.version()["qemu"]


def test_a_libvirtd_that_is_down_says_what_to_start(private: tuple[str, "subprocess.Popen[bytes]"]) -> None:
    uri, server = private
    server.kill()
    server.wait()
    with Hypervisor(uri, 10) as hypervisor, pytest.raises(LibvirtError, match="libvirt") as caught:
        hypervisor.version()
    assert "start it" in caught.value.hint


def test_what_libvirt_says_is_passed_on(libvirt: None) -> None:
    with Hypervisor("qemu:///system", 20) as hypervisor, pytest.raises(LibvirtError, match="warp"):
        hypervisor.start("<domain type='warp'><name>x</name></domain>")


def test_destroying_what_is_not_there_is_fine(libvirt: None) -> None:
    with Hypervisor("qemu:///system", 20) as hypervisor:
        hypervisor.destroy("vmbatch-nosuch")
        assert hypervisor.exists("vmbatch-nosuch") is False


def test_the_child_ends_with_its_parent(libvirt: None) -> None:
    hypervisor = Hypervisor("qemu:///system", 20)
    hypervisor.version()
    pid = hypervisor._pid
    hypervisor.close()
    assert not Path(f"/proc/{pid}").exists()


# libvirt takes the own ones with their open files only: tests with guests show them
HERE = sorted(set(golden.images()) - {*golden.ELSEWHERE, "own-image", "own-kernel"})


@pytest.mark.parametrize("name", HERE)
def test_the_test_driver_defines_every_golden_domain(name: str, tmp_path: Path) -> None:
    connection = api.open("test:///default")
    xml = golden.case(name, tmp_path)[2].replace('type="kvm"', 'type="test"', 1).replace('type="qemu"', 'type="test"', 1)
    assert connection.defineXML(xml).name() == "vmbatch-slurm-prod-n-1-4711.1"


@pytest.mark.parametrize("name", HERE)
def test_the_real_driver_makes_a_command_line_of_every_golden_domain(name: str, tmp_path: Path, libvirt: None) -> None:
    connection = api.open("qemu:///system")
    xml = golden.case(name, tmp_path)[2].replace('<domain type="kvm"', '<domain type="qemu"', 1)
    xml = xml.replace('<source network="vmbatch"/>', '<source bridge="br0"/>').replace('type="network"', 'type="bridge"')
    if name == "firmware-efi":
        assert Path("/usr/share/OVMF").is_dir()
    line = connection.domainXMLToNative("qemu-argv", xml, 0)
    assert "qemu-system-x86_64" in line
    image = golden.images()[name][1]
    if golden.shape_of(name).name == "default":
        assert {"virtio": "virtio-blk-pci", "ide": "ide-hd", "sata": "ide-hd"}[image.disk_bus] in line
        assert {"virtio": "virtio-net-pci", "e1000": "e1000", "rtl8139": "rtl8139"}[image.nic_model] in line


def test_no_process_of_the_tests_is_left(libvirt: None) -> None:
    assert find("-uuid", "b15d7d65-1fb2-56ff-86fe-3ff9c61052d4") == []
