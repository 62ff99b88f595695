"""What the guest is told, and the files that tell it. Pure; the same whichever way it is brought."""

import json
import shlex

from vmbatch.model import Guest, Nic, Payload

_CLOUD_START = (
    "context=/run/vmbatch-context; disk=/run/vmbatch-disk; "
    "[ -d $context ] || { mkdir -p $disk && mount -o ro /dev/disk/by-label/cidata $disk && "
    "cp -r $disk/vmbatch $context; umount $disk; }; "
    "sh $context/init.sh start-cloud $context && "
    "(setsid sh $context/init.sh ready $context < /dev/null > /dev/null 2>&1 &)"
)


def payload(guest: Guest, client_public_key: str, host_private_key: str, host_public_key: str) -> Payload:
    """Say who the guest is for and how it is reached."""
    return Payload(
        person=guest.person,
        hostname=guest.hostname,
        instance=guest.uuid,
        workdir=guest.workdir,
        job_path=guest.job_path or "",
        nics=guest.nics,
        client_public_key=client_public_key,
        host_private_key=host_private_key,
        host_public_key=host_public_key,
    )


def files(told: Payload, init: bytes, helper: bytes) -> dict[str, tuple[bytes, int]]:
    """Return relative path -> (content, mode): the folder `vmbatch` for init.sh, and NoCloud's files for cloud-init."""
    return {
        "vmbatch/init.sh": (init, 0o500),
        "vmbatch/runjob": (helper, 0o500),
        "vmbatch/params": (params(told).encode(errors="surrogateescape"), 0o400),
        "vmbatch/client.pub": (told.client_public_key.encode(), 0o400),
        "vmbatch/host_key": (told.host_private_key.encode(), 0o400),
        "vmbatch/host_key.pub": (told.host_public_key.encode(), 0o400),
        "vmbatch/udhcpc.sh": (_UDHCPC, 0o500),
        "user-data": (user_data().encode(), 0o400),
        "meta-data": (meta_data(told).encode(), 0o400),
        "network-config": (network_config(told.nics).encode(), 0o400),
    }


def params(told: Payload) -> str:
    """Spell the parameters of guest/init.sh: assignments of POSIX shell, every value quoted."""
    nic = told.nics[0]
    groups = " ".join(f"{name}:{gid}" for name, gid in told.person.groups)
    values = {
        "USER": told.person.name,
        "UID": str(told.person.uid),
        "GID": str(told.person.gid),
        "GROUPS": groups,
        "HOME": str(told.person.home),
        "HOSTNAME": told.hostname,
        "WORKDIR": str(told.workdir),
        "JOBPATH": told.job_path,
        "MAC": nic.mac,
        "ADDRESS": nic.address or "",
        "GATEWAY": nic.gateway or "",
        "DNS": " ".join(nic.dns),
    }
    return "".join(f"VMBATCH_{name}={shlex.quote(value)}\n" for name, value in values.items())


def meta_data(told: Payload) -> str:
    """NoCloud's meta-data (JSON is YAML)."""
    return json.dumps({"instance-id": told.instance, "local-hostname": told.hostname}) + "\n"


def user_data() -> str:
    """A cloud-config that leaves everything to our init.sh, before sshd starts. Holds nothing of the job."""
    config = {
        "bootcmd": [["sh", "-c", _CLOUD_START]],
        # nothing else of cloud-init is needed, and it would take longer than all the rest of the boot
        "cloud_init_modules": ["bootcmd"],
        "cloud_config_modules": [],
        "cloud_final_modules": [],
    }
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"


def network_config(nics: tuple[Nic, ...]) -> str:
    """Network configuration version 1 of cloud-init."""
    entries = []
    for number, nic in enumerate(nics):
        subnet: dict[str, object] = {"type": "dhcp4"}
        if nic.address:
            subnet = {"type": "static", "address": nic.address, "dns_nameservers": list(nic.dns)}
            if nic.gateway:
                subnet["gateway"] = nic.gateway
        entries.append({"type": "physical", "name": f"eth{number}", "mac_address": nic.mac, "subnets": [subnet]})
    return json.dumps({"version": 1, "config": entries}) + "\n"


_UDHCPC = b"""#!/bin/sh
# What udhcpc calls with an answer: give the card its address.
case $1 in
bound | renew)
	ifconfig "$interface" "$ip" netmask "${subnet:-255.255.255.0}" up
	[ -z "$router" ] || route add default gw "${router%% *}"
	for server in $dns; do echo "nameserver $server"; done > /etc/resolv.conf
	;;
esac
"""
