"""A host name of our own under .local: found by probing (RFC 6762 §8), defended afterwards (§9).

zeroconf does both for the names of services, not for the names of hosts.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from ipaddress import ip_address

from zeroconf import (  # type: ignore[attr-defined]  # part of its interface, but left out of __all__
    DNSAddress,
    DNSIncoming,
    DNSOutgoing,
    DNSQuestion,
    RecordUpdate,
    RecordUpdateListener,
    Zeroconf,
)

from appliance.security.hosts import IPAddress

# RFC 1035 §3.2.2, §3.2.3; RFC 6762 §5.4 (unicast answers wanted), §10.2 (cache flush), §18.
TYPE_A, TYPE_AAAA, TYPE_ANY = 1, 28, 255
CLASS_IN = 1
UNIQUE = 0x8000
HOST_TTL = 120
GROUP, PORT = "224.0.0.251", 5353

PROBES = 3
PROBE_SECONDS = 0.25
# How long who is outranked waits before asking again (§8.2).
DEFER_SECONDS = 1.0


def candidates(label: str) -> Iterator[str]:
    """`hob`, `hob-2`, `hob-3`, … each at most 63 bytes long (RFC 1035 §2.3.4)."""
    yield label
    number = 2
    while True:
        yield f"{label[: 62 - len(str(number))].rstrip('-')}-{number}"
        number += 1


def wins(ours: Iterable[IPAddress], theirs: Iterable[IPAddress]) -> bool:
    """Which of two hosts with one name keeps it: the lexicographically later set of records (§8.2.1).

    Both sides compute the same, so exactly one yields.
    """
    return _records(ours) > _records(theirs)


def _records(addresses: Iterable[IPAddress]) -> list[tuple[int, bytes]]:
    return sorted((TYPE_A if address.version == 4 else TYPE_AAAA, address.packed) for address in addresses)


class Watch(RecordUpdateListener):
    """Hears when somebody else publishes addresses for a host name.

    `foreign` is called with the addresses of one packet that are not ours. Another responder on this very
    machine (Avahi with the same host name) publishes our own addresses, which is no conflict.
    """

    def __init__(
        self,
        host: str,
        own: Callable[[], frozenset[IPAddress]],
        foreign: Callable[[frozenset[IPAddress]], None],
    ) -> None:
        self._host = f"{host}.".lower()
        self._own = own
        self._foreign = foreign

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Called by zeroconf for every packet with answers."""
        found = frozenset(
            ip_address(record.new.address)
            for record in records
            if isinstance(record.new, DNSAddress)
            and record.new.name.lower() == self._host
            and not record.new.is_expired(now)
        )
        if foreign := found - self._own():
            self._foreign(foreign)


async def taken(
    zc: Zeroconf,
    host: str,
    ours: Sequence[IPAddress],
    own: Callable[[], frozenset[IPAddress]],
    contest: "Contest",
) -> bool:
    """Find out by probing whether another machine is called `host` (a name ending in .local).

    Takes about a second; longer where others probe for the same name at the same time and outrank us: then
    the question is asked again until the winner, who has the name by then, answers it or is found gone.

    Args:
        ours: the addresses we would publish.
        own: every address that is this machine's.
        contest: hears the probes of others meanwhile.
    """
    others = asyncio.Event()
    watch = Watch(host, own, lambda _: others.set())
    # Past answers count: a machine that answered a moment ago will not answer again at once.
    zc.async_add_listener(watch, [DNSQuestion(f"{host}.", kind, CLASS_IN) for kind in (TYPE_A, TYPE_AAAA)])
    try:
        # Machines that start together, as after a power cut, shall not probe together.
        await asyncio.sleep(random.uniform(0, PROBE_SECONDS))  # noqa: S311 - spreads load, protects nothing
        while True:
            contest.enter(host, ours)
            for _ in range(PROBES):
                zc.async_send(probe(host, ours))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(others.wait(), PROBE_SECONDS)
                if others.is_set():
                    return True
            if not contest.outranked:
                return False
            await asyncio.sleep(DEFER_SECONDS)
    finally:
        contest.leave()
        zc.async_remove_listener(watch)


def probe(host: str, ours: Iterable[IPAddress]) -> DNSOutgoing:
    """The question of §8.1, type ANY with our own records as authority.

    Beside it stand those for A and AAAA, since responders built on zeroconf answer only these.
    """
    out = DNSOutgoing(0)
    for kind in (TYPE_ANY, TYPE_A, TYPE_AAAA):
        out.add_question(DNSQuestion(f"{host}.", kind, CLASS_IN | UNIQUE))
    for address in ours:
        kind = TYPE_A if address.version == 4 else TYPE_AAAA
        # Not by add_authorative_answer: that and the list's type know only what zeroconf itself probes for.
        record = DNSAddress(f"{host}.", kind, CLASS_IN, HOST_TTL, address.packed)
        out.authorities.append(record)  # type: ignore[arg-type]  # written out as any other record
    return out


class Contest:
    """While we probe for a name: whether another machine probes for it too, and outranks us (§8.2)."""

    def __init__(self) -> None:
        self.host = ""
        self.outranked = False
        self._ours: Sequence[IPAddress] = ()

    def enter(self, host: str, ours: Sequence[IPAddress]) -> None:
        """We begin to probe for `host`, to publish `ours`."""
        self.host, self._ours, self.outranked = host, ours, False

    def leave(self) -> None:
        """We have ended."""
        self.host = ""

    def hear(self, theirs: Collection[IPAddress]) -> None:
        """Another machine probes for the same name, to publish `theirs`."""
        self.outranked |= wins(theirs, self._ours)


class Defender(asyncio.DatagramProtocol):
    """Hears the probes of other machines, which zeroconf takes no notice of: they ask for type ANY (§8.1).

    Those for the name we hold are answered by `answer`; those for the name we probe for go to the contest.
    Listens on a socket of its own, bound to the group's address so that it takes no unicast packet away from
    other responders.
    """

    def __init__(
        self,
        contest: Contest,
        held: Callable[[], str],
        own: Callable[[], frozenset[IPAddress]],
        answer: Callable[[], None],
    ) -> None:
        self._contest = contest
        self._held = held
        self._own = own
        self._answer = answer

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        """Called by asyncio for every multicast DNS packet."""
        message = DNSIncoming(data)
        if not message.valid or not message.is_query() or not message.is_probe():
            return
        if ip_address(str(addr[0])) in self._own():
            return
        asked = {question.name.lower() for question in message.questions if question.type == TYPE_ANY}
        if f"{self._held()}.".lower() in asked:
            self._answer()
        name = f"{self._contest.host}.".lower()
        if name in asked:
            self._contest.hear(
                [
                    ip_address(record.address)
                    for record in message.answers()
                    if isinstance(record, DNSAddress) and record.name.lower() == name
                ]
            )


async def listen(defender: Defender, addresses: Sequence[str]) -> asyncio.DatagramTransport | None:
    """Let a defender hear multicast DNS on the interfaces with these addresses; None without IPv4."""
    v4 = [address for address in addresses if ip_address(address).version == 4]
    if not v4:
        return None
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((GROUP, PORT))
        for address in v4:
            membership = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(address))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: defender, sock=sock)
    except OSError:
        sock.close()
        raise
    return transport
