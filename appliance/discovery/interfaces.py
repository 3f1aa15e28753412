"""The network interfaces on which other machines may be, and this machine's addresses there."""

import socket
from dataclasses import dataclass
from ipaddress import ip_address

import psutil

from appliance.security.hosts import IPAddress

# Bridges and pairs that container and virtual machine software makes. Nobody looks for Hob there, and an
# address that only this machine can reach, announced on the LAN, costs every visitor a time-out.
VIRTUAL = ("docker", "br-", "veth", "virbr", "cni", "flannel", "podman", "lxc", "lxd", "vmnet", "vbox")


@dataclass(frozen=True)
class Reach:
    """How this machine is reached at the moment.

    Attributes:
        multicast: addresses to send multicast from, one IP version per interface, IPv4 where there is any.
        announced: addresses to publish, sorted; link-local ones only where an interface has no others.
    """

    multicast: tuple[str, ...]
    announced: tuple[IPAddress, ...]


def reach() -> Reach:
    """Look at the interfaces now: up, able to multicast, not loopback, not virtual."""
    multicast: list[str] = []
    announced: set[IPAddress] = set()
    states = psutil.net_if_stats()
    for name, entries in psutil.net_if_addrs().items():
        state = states.get(name)
        if state is None or not state.isup or name.startswith(VIRTUAL):
            continue
        flags = state.flags.split(",")
        if "loopback" in flags or "multicast" not in flags:
            continue
        addresses = [
            ip_address(entry.address.partition("%")[0])
            for entry in entries
            if entry.family in (socket.AF_INET, socket.AF_INET6)
        ]
        v4 = [address for address in addresses if address.version == 4]
        multicast += [str(address) for address in v4 or addresses[:1]]
        announced |= {address for address in addresses if not address.is_link_local} or set(addresses)
    return Reach(tuple(sorted(multicast)), tuple(sorted(announced, key=lambda a: (a.version, a.packed))))
