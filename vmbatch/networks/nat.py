"""nat: a libvirt network of our own on every node. A guest's address and card follow from its slot.

The bridge has no spanning tree and no forward delay: libvirt's `default` network makes every new guest wait 4 s.
Guests cannot reach each other (isolated ports), cannot use another's address (nftables, bridge family), and reach of
the node only DNS, DHCP and ping. An `isolated` guest reaches nothing else either.
"""

import ipaddress
import json

from lxml import etree

from vmbatch.config import Config
from vmbatch.hypervisor import Hypervisor
from vmbatch.journal import Journal
from vmbatch.model import Guest, Nic
from vmbatch.names import tap_prefix
from vmbatch.process import run


def network_xml(config: Config) -> str:
    """Return the libvirt network, with a DHCP reservation for every slot. Pure."""
    subnet = ipaddress.ip_network(config.network.subnet)
    root = etree.Element("network")
    etree.SubElement(root, "name").text = config.network.name
    etree.SubElement(root, "forward", mode="nat")
    etree.SubElement(root, "bridge", name=config.network.bridge, stp="off", delay="0")
    ip = etree.SubElement(root, "ip", address=str(subnet[1]), netmask=str(subnet.netmask))
    if config.network.addressing == "dhcp":
        dhcp = etree.SubElement(ip, "dhcp")
        for index in range(config.limits.max_guests):
            mac = f"52:54:00:76:{index >> 8:02x}:{index & 255:02x}"
            etree.SubElement(dhcp, "host", mac=mac, ip=str(subnet[16 + index]))
    return etree.tostring(root, encoding="unicode")


def rules(config: Config) -> str:
    """Return the nftables rules that all guests share. May be loaded again at any time. Pure."""
    bridge, table = json.dumps(config.network.bridge), config.network.name
    deny = "".join(f"add rule inet {table} onward iifname {bridge} ip daddr {net} drop\n" for net in config.network.deny)
    return f"""
add table bridge {table}
add set bridge {table} cards {{ type ifname . ether_addr; }}
add set bridge {table} addresses {{ type ifname . ipv4_addr; }}
add chain bridge {table} from_guests {{ type filter hook prerouting priority -300; }}
flush chain bridge {table} from_guests
add rule bridge {table} from_guests iifname != "{tap_prefix(table)}*" accept
add rule bridge {table} from_guests iifname . ether saddr != @cards drop
add rule bridge {table} from_guests ether type arp iifname . arp saddr ip != @addresses drop
add rule bridge {table} from_guests ether type arp accept
add rule bridge {table} from_guests ip saddr 0.0.0.0 udp dport 67 accept
add rule bridge {table} from_guests ether type ip iifname . ip saddr @addresses accept
add rule bridge {table} from_guests drop
add table inet {table}
add chain inet {table} to_node {{ type filter hook input priority -10; }}
add set inet {table} isolated {{ type ipv4_addr; }}
add chain inet {table} onward {{ type filter hook forward priority -10; }}
add chain inet {table} to_guests {{ type filter hook output priority -10; }}
flush chain inet {table} to_node
flush chain inet {table} to_guests
flush chain inet {table} onward
add rule inet {table} to_node iifname {bridge} ct state established,related accept
add rule inet {table} to_node iifname {bridge} udp dport {{ 53, 67 }} accept
add rule inet {table} to_node iifname {bridge} tcp dport 53 accept
add rule inet {table} to_node iifname {bridge} icmp type echo-request accept
add rule inet {table} to_node iifname {bridge} drop
add rule inet {table} to_guests oifname != {bridge} accept
add rule inet {table} to_guests ct state established,related accept
add rule inet {table} to_guests meta skuid 0 accept
add rule inet {table} to_guests tcp dport 22 accept
add rule inet {table} to_guests udp sport {{ 53, 67 }} accept
add rule inet {table} to_guests meta l4proto tcp reject with tcp reset
add rule inet {table} to_guests drop
add rule inet {table} onward iifname {bridge} ip saddr @isolated drop
{deny}"""


def _elements(nic: Nic) -> tuple[str, str]:
    return f"{nic.host_device} . {nic.mac}", f"{nic.host_device} . {nic.ssh_host}"


def prepare(nic: Nic, journal: Journal, config: Config, hypervisor: Hypervisor) -> None:
    """Make sure that the network is up, and let this guest's card and address through."""
    hypervisor.ensure_network(config.network.name, network_xml(config))
    card, address = _elements(nic)
    table = nic.source
    journal.will("filter", nic.host_device, table=table, card=card, address=address)
    closed = f"add element inet {table} isolated {{ {nic.ssh_host} }}\n" if nic.network == "isolated" else ""
    allow = f"add element bridge {table} cards {{ {card} }}\nadd element bridge {table} addresses {{ {address} }}\n"
    run(["nft", "-f", "-"], stdin=(rules(config) + closed + allow).encode(), timeout_s=20)


def element(nic: Nic) -> etree._Element:
    """Return the domain's <interface>. Pure."""
    interface = etree.Element("interface", type="network")
    etree.SubElement(interface, "mac", address=nic.mac)
    etree.SubElement(interface, "source", network=nic.source)
    etree.SubElement(interface, "target", dev=nic.host_device)
    etree.SubElement(interface, "model", type=nic.model)
    etree.SubElement(interface, "port", isolated="yes")
    return interface


def started(nic: Nic, guest: Guest, hypervisor: Hypervisor) -> None:
    """Nothing: the bridge carries the guest as soon as it runs."""


def remove(table: str, card: str, address: str) -> None:
    """Take a guest's card and address out of the filter; absent is fine (added first, so that deleting never fails)."""
    sets = (("bridge", "cards", card), ("bridge", "addresses", address), ("inet", "isolated", address.rpartition(" ")[2]))
    lines = [f"add table inet {table}\nadd set inet {table} isolated {{ type ipv4_addr; }}\n"]
    lines += [
        f"{verb} element {family} {table} {name} {{ {member} }}\n"
        for family, name, member in sets
        for verb in ("add", "delete")
    ]
    run(["nft", "-f", "-"], stdin="".join(lines).encode(), timeout_s=20, check=False)
