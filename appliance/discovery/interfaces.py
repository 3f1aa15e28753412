"""The network interfaces on which other machines may be, and this machine's addresses there."""

import socket
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import psutil

from appliance.security.hosts import IPAddress

# Bridges and pairs that container and virtual machine software makes. Nobody looks for Hob there, and an
# address that only this machine can reach, announced on the LAN, costs every visitor a time-out.
VIRTUAL = ("docker", "br-", "veth", "virbr", "cni", "flannel", "podman", "lxc", "lxd", "vmnet", "vbox")

TENTATIVE, DAD_FAILED = 0x40, 0x08


@dataclass(frozen=True)
class Reach:
    """How this machine is reached at the moment.

    Attributes:
        multicast: addresses to send multicast from, per interface its IPv4 addresses and one IPv6 address.
        announced: addresses to publish, sorted; link-local ones only where an interface has no others.
    """

    multicast: tuple[str, ...]
    announced: tuple[IPAddress, ...]


def reach() -> Reach:
    """Look at the interfaces now: up, able to multicast, not loopback, not virtual."""
    multicast: list[str] = []
    announced: set[IPAddress] = set()
    states = psutil.net_if_stats()
    unsettled = _unsettled()
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
        addresses = [address for address in addresses if address not in unsettled]
        v6 = [address for address in addresses if address.version == 6]
        multicast += [str(address) for address in addresses if address.version == 4]
        # A link-local source is right for every neighbour, whatever prefixes it knows.
        multicast += [str(address) for address in sorted(v6, key=lambda a: not a.is_link_local)[:1]]
        announced |= {address for address in addresses if not address.is_link_local} or set(addresses)
    return Reach(tuple(sorted(multicast)), tuple(sorted(announced, key=lambda a: (a.version, a.packed))))


def _unsettled() -> frozenset[IPAddress]:
    """IPv6 addresses that Linux is still checking for duplicates, or found to be some: not to be used.

    Columns of the file: address, index, prefix length, scope, flags (as in rtnetlink(7)), interface.
    """
    table = Path("/proc/net/if_inet6")
    if not table.exists():
        return frozenset()
    rows = (line.split() for line in table.read_text().splitlines())
    return frozenset(
        IPv6Address(bytes.fromhex(row[0])) for row in rows if int(row[4], 16) & (TENTATIVE | DAD_FAILED)
    )
