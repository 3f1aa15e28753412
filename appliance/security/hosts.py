"""By which names this machine may be called: the Host allow-list that stops DNS rebinding.

A foreign page can point its own name at our address and so become same-origin with us; but then the browser
sends that name as Host. Only names that are ours by definition are answered.
"""

import re
import socket
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

import psutil

from appliance.errors import SettingsError

IPAddress = IPv4Address | IPv6Address

# RFC 9110 §7.2: uri-host [ ":" port ], narrowed to the names and literals that browsers send.
HOST = re.compile(
    r"(?P<name>[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}(%[a-z0-9._~%-]{1,32})?\])(:[0-9]{0,5})?", re.I
)

# Interfaces are read again when an unknown address is asked for, but not more often than this.
RESCAN_SECONDS = 1.0


def interface_addresses() -> frozenset[IPAddress]:
    """The IPv4 and IPv6 addresses of all interfaces that are up, loopback included, without zones."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return frozenset(
        ip_address(entry.address.partition("%")[0])
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    )


class AllowedHosts:
    """The names and addresses by which this Hob answers. Ports are ignored.

    Allowed: `localhost`, loopback, this machine's interface addresses (as they change), its host name with
    and without `.local`, `<name>.local`, the name announced on the LAN at the moment, and `extra`.
    """

    def __init__(
        self,
        name: str,
        extra: Iterable[str] = (),
        *,
        addresses: Callable[[], frozenset[IPAddress]] = interface_addresses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        machine = socket.gethostname().lower().removesuffix(".local")
        self._names = {"localhost", machine, f"{machine}.local", f"{name.lower()}.local"}
        self._names |= {_own_name(host) for host in extra}
        self._announced = ""
        self._addresses = addresses
        self._clock = clock
        self._known: frozenset[IPAddress] = frozenset()
        self._scanned = float("-inf")

    def announced(self, host: str) -> None:
        """Take the name that discovery has won (`hob-2.local`) in place of the one before; "" for none."""
        self._announced = host.lower().removesuffix(".")

    def allows(self, header: str | None) -> bool:
        """Whether a Host header names this machine. A missing or malformed one does not."""
        host = host_name(header)
        if not host:
            return False
        if host in self._names or host == self._announced:
            return True
        address = _address(host)
        return address is not None and (address.is_loopback or self._own(address))

    def _own(self, address: IPAddress) -> bool:
        if address not in self._known and self._clock() - self._scanned >= RESCAN_SECONDS:
            self._known = self._addresses()
            self._scanned = self._clock()
        return address in self._known


def host_name(header: str | None) -> str:
    """The name or literal in a Host header, in lower case, without port and final dot; "" if malformed."""
    parsed = HOST.fullmatch(header or "")
    return parsed["name"].lower().removesuffix(".") if parsed else ""


def is_loopback(header: str | None) -> bool:
    """Whether a Host header names the machine the browser itself runs on."""
    host = host_name(header)
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> IPAddress | None:
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _own_name(setting: str) -> str:
    name = host_name(setting)
    if not name:
        raise SettingsError(
            f"allowed_hosts: {setting!r} is not a host name",
            hint="Write names alone, as in chat.example.org.",
        )
    return name
