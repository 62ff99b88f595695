"""The golden cases: request + catalogue entry + template -> guest.json + domain.xml."""

from dataclasses import replace
from pathlib import Path

from things import IMAGE, NODE, config, guest, template

from vmbatch import domain, request
from vmbatch.config import Config
from vmbatch.model import Allocation, Guest, Image
from vmbatch.templates import Template, parse

HERE = Path(__file__).parent
FIXED = """<domain type='kvm'>
  <vbconfig><vbpreparemethod>CDROM</vbpreparemethod><vbhypervisor>QEMU</vbhypervisor></vbconfig>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><vbdisksource source='site.qcow2' copy_method='shared'/>
      <target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/>
      <vbdisksource source='data.raw' copy_method='shared'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><vbpreparecdrom source='context.iso'/>
      <target dev='sda' bus='scsi'/><readonly/></disk>
    <controller type='scsi' model='virtio-scsi'/>
    <vbnic/>
  </devices>
</domain>"""


def images() -> dict[str, tuple[str, Image]]:
    """Case -> (request, image)."""
    return {
        "plain": ("tiny", IMAGE),
        "memory-and-cpus": ("tiny:memory=300M:cpus=1", IMAGE),
        "inputs": ("tiny:in=data:in=a%20b", IMAGE),
        "direct-kernel": (
            "tiny",
            replace(IMAGE, kernel=Path("/images/k"), initrd=Path("/images/i"), kernel_args="console=ttyS0 quiet"),
        ),
        "cloudinit": ("debian12", replace(IMAGE, name="debian12", context="CLOUDINIT")),
        "raw": ("tiny", replace(IMAGE, format="raw", source="/images/tiny.raw")),
        "disk-bus-ide": ("tiny", replace(IMAGE, disk_bus="ide")),
        "disk-bus-sata": ("tiny", replace(IMAGE, disk_bus="sata")),
        "nic-model-e1000": ("tiny", replace(IMAGE, nic_model="e1000")),
        "firmware-efi": ("tiny", replace(IMAGE, firmware="efi")),
        "clock-localtime": ("tiny", replace(IMAGE, clock="localtime")),
        "video-cirrus": ("tiny", replace(IMAGE, video="cirrus")),
        "video-none": ("tiny", replace(IMAGE, video="none")),
        "input-tablet": ("tiny", replace(IMAGE, input="tablet")),
        "old-windows": (
            "win",
            replace(
                IMAGE, name="win", disk_bus="ide", nic_model="rtl8139", clock="localtime", video="cirrus", input="tablet"
            ),
        ),
        "user-network": ("tiny", IMAGE),
        "emulated": ("tiny", IMAGE),
        "fixed-disks": ("tiny", IMAGE),
        "dhcp": ("tiny", IMAGE),
    }


def conf(name: str, tmp_path: Path) -> Config:
    made = config(tmp_path)
    network = replace(made.network, default="user" if name == "user-network" else "nat")
    if name == "dhcp":
        network = replace(network, addressing="dhcp")
    paths = replace(
        made.paths, images=Path("/images"), state=Path("/state"), run=Path("/run/vmbatch"), scratch=Path("/scratch")
    )
    return replace(made, network=network, paths=paths)


def case(name: str, tmp_path: Path) -> tuple[Template, Guest, str]:
    """Return (template, guest, XML) of a case."""
    text, image = images()[name]
    shape = parse("fixed", Path("/t/fixed.xml"), FIXED.encode()) if name == "fixed-disks" else template()
    node = NODE
    if name == "emulated":
        node = replace(NODE, hypervisor="qemu", accelerator="no vmx", allocation=Allocation(None, None))
    made = guest(conf(name, tmp_path), image=image, request=request.parse(text), template=shape, node=node)
    return shape, made, domain.build(shape, made)
