"""A machine with a second disk, which a test is about."""

import subprocess
from typing import Any

from devsite import DEV, VMBATCH, Site

MACHINE = """<domain type='kvm'>
  <vbconfig><vbpreparemethod>CDROM</vbpreparemethod></vbconfig>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/><apic/></features>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <disk type='file' device='disk'>
      <vbdisksource source='BOOT' copy_method='shared'/>
      <driver name='qemu' type='qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      SOURCE
      <target dev='TARGET' bus='virtio'/>READONLY
    </disk>
    <disk type='file' device='cdrom'><vbpreparecdrom/><target dev='hdc' bus='ide'/><readonly/></disk>
    <vbnic/>
  </devices>
</domain>"""


READ = "head -1 /dev/vdb"
WRITE = "read line < /dev/vdb; echo $line; echo written | dd of=/dev/vdb conv=notrunc 2>/dev/null && sync; head -1 /dev/vdb"


def machine(site: Site, name: str, source: str, readonly: bool = False, target: str = "vdb") -> None:
    """A template whose second disk is what a test is about, and its catalogue entry, which boots quickly."""
    xml = MACHINE.replace("BOOT", str(DEV / "images/tiny.qcow2")).replace("SOURCE", source).replace("TARGET", target)
    kernel = {"kernel": str(DEV / "images/tiny.vmlinuz"), "initrd": str(DEV / "images/tiny.initrd")}
    xml = xml.replace("READONLY", "<readonly/>" if readonly else "")
    site.template(name, xml, kernel_args="console=ttyS0 panic=1", **kernel)


def popen(site: Site, image: str, command: str) -> "subprocess.Popen[str]":
    argv = [VMBATCH, "--config", site.config, "run", "--image", f"{image}:in=none", "--", "sh", "-c", command]
    return subprocess.Popen(
        [str(word) for word in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd="/tmp",
    )  # fmt: skip


def run(site: Site, image: str, command: str) -> Any:
    return site.call("run", "--image", f"{image}:in=none", "--", "sh", "-c", command, cwd="/tmp")
