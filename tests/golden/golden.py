"""The golden cases: request + catalogue entry + template -> guest.json + domain.xml."""

from dataclasses import replace
from pathlib import Path

from things import IMAGE, NODE, config, guest, template

from vmbatch import diskplan, domain, request
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


EVERY_USE = """<domain type='kvm'>
  <vbconfig><vbpreparemethod>CDROM</vbpreparemethod><vbaddressing>dhcp</vbaddressing><vbstaging in='none'/>
    <vbtarfiles><vbtarfile tarfile='alice.tar' path='.' strip='1' option='cdrom'/></vbtarfiles></vbconfig>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><vbdisksource source='http://h.example.org/a' copy_method='shared' format='qcow2'/>
      <target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><vbdisksource source='ftp://h.example.org/b' copy_method='download' format='raw'/>
      <vbcheckhash hashfunction='sha1sum' hashvalue='da39a3ee5e6b4b0d3255bfef95601890afd80709'/>
      <source file='/vmbatch/b'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='disk'>
      <vbdisksource source='c.raw' copy_method='shared' copy_on_write='no' format='raw'/>
      <target dev='vdc' bus='virtio'/></disk>
    <disk type='file' device='disk'><vbdisksource source='d.qcow2' copy_method='shared'/>
      <target dev='vdd' bus='virtio'/><readonly/></disk>
    <disk type='file' device='disk'><vbdisksource source='e' size='10' create='always' format='vhd-util-vhd'/>
      <target dev='vde' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' cache='unsafe'/>
      <vbdisksource source='f' size='10' create='once'/>
      <target dev='vdf' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><vbpreparecdrom/><target dev='hdc' bus='ide'/><readonly/></disk>
  </devices>
</domain>"""
OWN_XML = """<domain type='kvm'>
  <vbconfig><vbuseroptions>
    <vbuseroption name='cdrom' paths='/scratch' max='700'/><vbuseroption name='kernel' paths='/scratch'/>
    <vbuseroption name='kernelargs'/><vbuseroption name='root'/><vbuseroption name='network'/>
  </vbuseroptions></vbconfig>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><vbuserimage paths='/scratch/*'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><vbuserimage name='data' paths='/scratch' optional='yes'/>
      <target dev='vdb' bus='virtio'/><readonly/></disk>
    <disk type='file' device='cdrom'><vbpreparecdrom/><target dev='hdc' bus='ide'/><readonly/></disk>
    <interface type='bridge'><source bridge='br0'/></interface>
  </devices>
</domain>"""
DISK = """<disk type='file' device='disk'><vbdisksource source='slc5.raw' copy_method='shared' format='raw'/>
      <target dev='vda' bus='virtio'/></disk>"""
OWN = Image("own", "/scratch/alice/my.qcow2", own=True)
XEN = """<bootloader>/share/vmbatch/bin/pygrub-vmbatch</bootloader>
  <os><type arch='x86_64' machine='xenpv'>linux</type></os>"""
SAMPLES = HERE.parent / "data/templates"


def own_image(path: str) -> Image:
    return Image(path, path, own=True)


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
        "fetched": (
            "fetched",
            replace(IMAGE, name="fetched", source="https://images.example.org/el9.qcow2", sha512="0" * 128),
        ),
        "every-use": ("site", Image("site")),
        "own-image": ("/scratch/alice/my.qcow2:image.data=/scratch/alice/d.raw:cdrom=/scratch/alice/a.iso", OWN),
        "own-kernel": ("/scratch/alice/fs.raw:kernel=/scratch/alice/k:root=/dev/vda:kernelargs=quiet:network=isolated", OWN),
        "slides-cdrom": ("cernvm3", Image("cernvm3")),
        "slides-disk": ("slc5", Image("slc5")),
        "slides-cdrom-xen4": ("cernvm3", Image("cernvm3")),
        "xen4": ("tiny", IMAGE),
        "xen3": ("tiny", IMAGE),
        "virtualbox": ("tiny", IMAGE),
    }


# Planned and held against libvirt's schema; the drivers that would run them need their hypervisor.
ELSEWHERE = ("slides-cdrom-xen4", "xen4", "xen3", "virtualbox")


def shape_of(name: str) -> Template:
    """The template of a case."""
    if name in ("fixed-disks", "every-use", "own-image", "own-kernel"):
        xml = {"fixed-disks": FIXED, "every-use": EVERY_USE}.get(name, OWN_XML)
        return parse(name, Path(f"/t/{name}.xml"), xml.encode())
    if name.startswith("slides-"):
        file = SAMPLES / (f"{name.removesuffix('-xen4')}.xml" if name.endswith("-xen4") else f"{name}.kvm.xml")
        xml = file.read_text()  # what the slides leave out is put in
        xml = xml.replace("<!-- Libvirt and VmBatch devices stuff -->", DISK)
        xml = xml.replace("<!-- Libvirt stuff -->", XEN if name in ELSEWHERE else "")
        return parse(name, Path(f"/t/{file.name}"), xml.encode())
    return template(name if name in ELSEWHERE else "default")


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
    shape = shape_of(name)
    node = NODE
    if name == "emulated":
        node = replace(NODE, hypervisor="qemu", accelerator="no vmx", allocation=Allocation(None, None))
    wish = request.parse(text)
    conf_ = conf(name, tmp_path)
    others = {word: own_image(value) for word, value in wish.images or ()}
    made = guest(conf_, image=image, images=others, request=wish, template=shape, node=node)
    return shape, made, domain.build(shape, replace(made, disks=diskplan.assumed(made.disks, Path("/store"))))
