"""Sizes, addresses, names."""

from dataclasses import replace
from pathlib import Path

import pytest
import things
from hypothesis import given
from hypothesis import strategies as st

from vmbatch import domain, plan
from vmbatch.errors import SiteError, UserError
from vmbatch.model import Allocation, Request, Slot
from vmbatch.templates import Template, parse


def node(cpus: int | None, memory_mib: int | None) -> object:
    return replace(things.NODE, allocation=Allocation(cpus, memory_mib))


@given(st.integers(1, 4_000_000))
def test_guest_and_overhead_fit_into_the_allocation(memory_mib: int) -> None:
    conf = CONFIG
    try:
        size = plan.size(conf, things.IMAGE, Request("tiny"), node(1, memory_mib))  # type: ignore[arg-type]
    except UserError:
        assert memory_mib < 128 + 96 + 3
    else:
        assert size.host_memory_mib <= memory_mib
        assert size.host_memory_mib >= memory_mib - 2


def test_the_hint_names_memory_that_is_enough(tmp_path: Path) -> None:
    conf = things.config(tmp_path)
    with pytest.raises(UserError, match="needs at least 128 MiB") as caught:
        plan.size(conf, things.IMAGE, Request("tiny"), node(1, 100))  # type: ignore[arg-type]
    wanted = int("".join(c for c in caught.value.hint.partition("--mem=")[2] if c.isdigit()))
    assert plan.size(conf, things.IMAGE, Request("tiny"), node(1, wanted)).memory_mib >= 128  # type: ignore[arg-type]


def test_a_request_can_only_lower_what_was_granted(tmp_path: Path) -> None:
    conf = things.config(tmp_path)
    granted = node(4, 1024)
    assert plan.size(conf, things.IMAGE, Request("tiny", memory_mib=300, cpus=2), granted).memory_mib == 300  # type: ignore[arg-type]
    for request, said in ((Request("tiny", memory_mib=1024), "memory=1024M"), (Request("tiny", cpus=8), "cpus=8")):
        with pytest.raises(UserError, match=said):
            plan.size(conf, things.IMAGE, request, granted)  # type: ignore[arg-type]


def test_without_a_scheduler_the_image_and_the_request_decide(tmp_path: Path) -> None:
    conf = things.config(tmp_path)
    free = node(None, None)
    assert plan.size(conf, things.IMAGE, Request("tiny"), free).memory_mib == 512  # type: ignore[arg-type]
    assert plan.size(conf, things.IMAGE, Request("tiny", memory_mib=4096, cpus=3), free).cpus == 3  # type: ignore[arg-type]


def test_address_card_and_port_follow_from_the_slot(tmp_path: Path) -> None:
    conf = replace(things.site(tmp_path), root=True)
    conf = replace(conf, network=replace(conf.network, default="nat"))
    nic = things.guest(conf, slot=Slot(300, 1)).nic
    assert (nic.address, nic.gateway, nic.mac) == ("10.213.1.60/22", "10.213.0.1", "52:54:00:76:01:2c")
    nic = things.guest(replace(conf, network=replace(conf.network, addressing="dhcp")), slot=Slot(0, 1)).nic
    assert (nic.address, nic.gateway, nic.ssh_host) == (None, None, "10.213.0.16")
    nic = things.guest(replace(conf, network=replace(conf.network, default="user")), slot=Slot(2, 22202)).nic
    assert (nic.network, nic.ssh_host, nic.ssh_port) == ("user", "127.0.0.1", 22202)


def test_scratch_paths_may_name_job_user_and_tmpdir(tmp_path: Path) -> None:
    conf = things.site(tmp_path)
    conf = replace(conf, paths=replace(conf.paths, scratch=Path("/s/%u/%j/%t")))
    job = replace(things.JOB, id="29[3].x", tmpdir=Path("/tmp/j"))
    assert str(things.guest(conf, job=job).scratch).startswith("/s/alice/29~5b3~5d.x/tmp/j/slurm-")
    with pytest.raises(SiteError, match="no TMPDIR"):
        things.guest(conf)


def machine(hypervisor: str) -> Template:
    template = things.template()
    return replace(template, machine=replace(template.machine, hypervisor=hypervisor))


def test_a_template_that_wants_kvm_is_not_run_on_emulation(tmp_path: Path) -> None:
    wants = machine("KVM")
    emulated = replace(things.NODE, hypervisor="qemu", accelerator="no vmx")
    with pytest.raises(SiteError, match="no vmx"):
        things.guest(things.site(tmp_path), template=wants, node=emulated)
    assert plan.hypervisor(machine("QEMU"), things.NODE) == "qemu"


def test_another_template_only_where_the_image_allows_it() -> None:
    image = replace(things.IMAGE, templates=("gpu", "big"))
    assert plan.choose_template(image, Request("tiny", template="gpu")) == "gpu"
    with pytest.raises(UserError, match="cannot be used with template 'gpuu'") as caught:
        plan.choose_template(image, Request("tiny", template="gpuu"))
    assert "gpu" in caught.value.hint


@pytest.fixture(autouse=True)
def _config(tmp_path: Path) -> None:
    global CONFIG
    CONFIG = things.config(tmp_path)


def test_guests_of_two_sites_never_share_a_uuid(tmp_path: Path) -> None:
    conf = things.config(tmp_path)
    other = replace(conf, paths=replace(conf.paths, state=tmp_path / "other"))
    assert things.guest(conf).uuid == things.guest(conf).uuid != things.guest(other).uuid


def test_nothing_larger_than_the_node_or_the_machine_reaches_libvirt(tmp_path: Path) -> None:
    conf = things.config(tmp_path)
    untracked = replace(things.NODE, allocation=Allocation(None, None), memory_mib=4000)
    with pytest.raises(UserError, match="more than node n-1 has"):
        plan.size(conf, things.IMAGE, Request("tiny", memory_mib=3950), untracked)
    with pytest.raises(UserError, match="more than a guest can have"):
        plan.size(conf, things.IMAGE, Request("tiny", cpus=300), untracked)
    assert plan.size(conf, things.IMAGE, Request("tiny"), node(400, 4000)).cpus == plan.MAX_CPUS


PARAVIRTUAL = """<domain type='xen'>
  <bootloader>/usr/local/libexec/vmbatch/pygrub-vmbatch</bootloader>
  <os><type>linux</type></os>
  <vbconfig><vbbootparameters>quiet</vbbootparameters></vbconfig>
  <devices>
    <disk type='file' device='disk'><vbdisksource source='cache' size='10' create='once'/>
      <target dev='CACHE' bus='xen'/></disk>
    <disk type='file' device='disk'><vbuserimage/><target dev='BOOT' bus='xen'/></disk>
    <disk type='file' device='disk'><vbpreparecdrom/><target dev='xvdc' bus='xen'/><readonly/></disk>
  </devices>
</domain>"""


def paravirtual(cache: str, boot: str) -> Template:
    xml = PARAVIRTUAL.replace("CACHE", cache).replace("BOOT", boot)
    return parse("pv", Path("/t/pv.xml"), xml.encode())


def test_a_paravirtual_guest_that_libvirt_would_boot_from_another_disk_is_refused_with_names_that_work(
    tmp_path: Path,
) -> None:
    with pytest.raises(SiteError, match="the domain would boot from xvda, not from xvdb") as caught:
        things.guest(things.site(tmp_path), template=paravirtual("xvda", "xvdb"))
    assert "use dev=xvdb for the boot disk and xvdaa for xvda" in caught.value.hint


def test_the_boot_line_parameters_of_a_paravirtual_guest_reach_its_boot_loader(tmp_path: Path) -> None:
    shape = paravirtual("xvdaa", "xvdb")
    made = things.guest(things.site(tmp_path), template=shape)
    assert made.hypervisor == "xen" and [disk.target for disk in made.disks] == ["xvdaa", "xvdb"]
    assert "<cmdline>quiet</cmdline>" in domain.build(shape, made)
