"""user: QEMU's own user networking (slirp), for guests of an ordinary user. No root, no lease, no collision.

Every guest is 10.0.2.15 in a world of its own; ssh comes in through a forwarded port on 127.0.0.1. The guest reaches
what its owner reaches, the node's loopback services at 10.0.2.2 included: QEMU runs as that same user.
"""

from lxml import etree

from vmbatch.config import Config
from vmbatch.errors import SiteError
from vmbatch.hypervisor import Hypervisor
from vmbatch.journal import Journal
from vmbatch.model import Guest, Nic


def prepare(nic: Nic, journal: Journal, config: Config, hypervisor: Hypervisor) -> None:
    """Nothing stands on the host; root does not use it, since QEMU's uid would reach the node's services."""
    if config.root:
        raise SiteError("network 'user' is for ordinary users only", 'set network.default = "nat"')


def element(nic: Nic) -> etree._Element:
    """Return the domain's <interface>. Pure."""
    interface = etree.Element("interface", type="user")
    etree.SubElement(interface, "mac", address=nic.mac)
    etree.SubElement(interface, "model", type=nic.model)
    return interface


def started(nic: Nic, guest: Guest, hypervisor: Hypervisor) -> None:
    """Forward the slot's port to the guest's sshd. QEMU answers only when something is wrong."""
    answer = hypervisor.monitor(guest.name, f"hostfwd_add tcp:{nic.ssh_host}:{nic.ssh_port}-:22").strip()
    if answer:
        raise SiteError(f"QEMU cannot forward port {nic.ssh_port} on {nic.ssh_host}: {answer}", "set network.port_base")
