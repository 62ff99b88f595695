"""What differs between the hypervisors that <vbhypervisor> names: one line each.

KVM and QEMU run guests. The others are here so that a site's templates for them are planned, checked and written as
libvirt wants them; nothing of them has been started by vmbatch's tests.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """`overlays` are the copy-on-write formats that it takes, as <driver type=...> names them; the first is the default."""

    domain: str  # libvirt's domain type
    overlays: tuple[str, ...]
    vhd: str  # what `vhd-util-vhd` is called there
    virtio: bool = False


KINDS = {
    "KVM": Kind("kvm", ("qcow2",), "vpc", virtio=True),
    "QEMU": Kind("qemu", ("qcow2",), "vpc", virtio=True),
    "AUTO": Kind("kvm", ("qcow2",), "vpc", virtio=True),
    "XEN4": Kind("xen", ("vhd", "qcow2"), "vhd"),
    "XEN3": Kind("xen", ("qcow", "qcow2"), "vhd"),
    "VIRTUALBOX": Kind("vbox", ("vdi",), "vpc"),
}
EMULATED = ("kvm", "qemu")  # domain types that QEMU runs


def overlay_format(hypervisor: str, driver: str | None) -> str:
    """Return the format of overlays: what the template's <driver type=...> says where it can be one."""
    kind = KINDS[hypervisor]
    return driver if driver in kind.overlays else kind.overlays[0]
