"""Being found on the LAN: names, probes and conflicts, with Avahi as the independent neighbour."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from subprocess import Popen

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli.discover import command
from appliance.discovery.announce import Announcer, instance, properties
from appliance.discovery.browse import Found
from appliance.discovery.hostname import Contest, Defender, candidates, probe, wins
from appliance.discovery.interfaces import Reach, reach
from appliance.security.hosts import IPAddress
from tests.appliance.lan import Lan, Machine, a_lan, ip, missing, python, wait_for

REASON = missing()
lan_test = pytest.mark.skipif(bool(REASON), reason=REASON)

# What the service does with an announcer, alone: tell each name it wins, say goodbye when asked to end.
ANNOUNCE = """
import asyncio, signal, sys
from appliance.discovery.announce import Announcer

async def main():
    announcer = Announcer("hob", 8080, on_host=lambda host: print("host", host, flush=True))
    task = asyncio.create_task(announcer.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await asyncio.wait([task])

asyncio.run(main())
"""


class Hob:
    """An announcing process and what it told."""

    def __init__(self, machine: Machine, log: Path) -> None:
        self.machine = machine
        self.log = log

    def announce(self) -> AbstractContextManager[Popen[bytes]]:
        """Announce until the block ends."""
        return self.machine.start(*python(ANNOUNCE), log=self.log)

    def host(self) -> str:
        """The name it holds now; "" while it has none."""
        told = self.log.read_text().splitlines()
        return told[-1].removeprefix("host").strip() if told else ""


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    """An empty LAN."""
    with a_lan(tmp_path) as lan:
        yield lan


def named(hob: Hob, host: str) -> None:
    """Wait until a Hob holds this name."""
    wait_for(host, lambda: hob.host() == host)


@pytest.mark.slow
@pytest.mark.lan
@lan_test
def test_avahi_finds_hob_and_hears_it_leave(lan: Lan, tmp_path: Path) -> None:
    """Avahi resolves hob.local and lists the service with port and TXT; after a goodbye both are gone."""
    avahi = lan.avahi(lan.machine(), "neighbour")
    hob = Hob(lan.machine(), tmp_path / "hob.log")
    with hob.announce():
        named(hob, "hob.local")
        assert avahi.resolve("hob.local") == hob.machine.address
        (service,) = avahi.services()
        assert service[2] == "Hob"
        assert service[5:8] == ["hob.local", hob.machine.address, "8080"]
        for text in ('"path=/"', '"product=hob"', '"name=hob"', '"version='):
            assert text in service[8]
    wait_for("the goodbye to take effect", lambda: avahi.services() == [])


@pytest.mark.slow
@pytest.mark.lan
@lan_test
def test_a_second_hob_takes_another_name_and_discover_lists_both(lan: Lan, tmp_path: Path) -> None:
    """The second becomes hob-2.local; `hob discover` sees both, from elsewhere and from one of the two."""
    avahi = lan.avahi(lan.machine(), "neighbour")
    first, second = (Hob(lan.machine(), tmp_path / name) for name in ("first.log", "second.log"))
    with first.announce():
        named(first, "hob.local")
        with second.announce():
            named(second, "hob-2.local")
            assert avahi.resolve("hob.local") == first.machine.address
            assert avahi.resolve("hob-2.local") == second.machine.address
            for machine in (avahi.machine, first.machine):
                found = json.loads(machine.run(*lan.hob("discover", "--json", "--seconds", "3")))
                assert [(hob["host"], hob["addresses"], hob["port"]) for hob in found] == [
                    ("hob-2.local", [second.machine.address], 8080),
                    ("hob.local", [first.machine.address], 8080),
                ]
                assert [hob["name"] for hob in found] == ["Hob (hob-2)", "Hob"]


@pytest.mark.slow
@pytest.mark.lan
@lan_test
def test_a_name_that_avahi_holds_is_left_to_it(lan: Lan, tmp_path: Path) -> None:
    """A machine of another make called hob keeps its name; its web services are not listed as Hobs."""
    avahi = lan.avahi(lan.machine(), "hob")
    hob = Hob(lan.machine(), tmp_path / "hob.log")
    with hob.announce():
        named(hob, "hob-2.local")
        assert avahi.resolve("hob-2.local") == hob.machine.address
        assert avahi.host_name() == "hob.local"


@pytest.mark.slow
@pytest.mark.lan
@lan_test
def test_hob_defends_its_name_against_a_later_avahi(lan: Lan, tmp_path: Path) -> None:
    """A machine that comes later and wants to be hob hears that the name is taken, and takes hob-2 itself."""
    hob = Hob(lan.machine(), tmp_path / "hob.log")
    with hob.announce():
        named(hob, "hob.local")
        time.sleep(2)  # past its announcements, so that it is the answer to the probe that counts
        avahi = lan.avahi(lan.machine(), "hob")
        assert avahi.host_name() == "hob-2.local"
        assert avahi.resolve("hob.local") == hob.machine.address
        assert hob.host() == "hob.local"


@pytest.mark.slow
@pytest.mark.lan
@lan_test
def test_avahi_on_the_same_machine_is_no_rival(lan: Lan, tmp_path: Path) -> None:
    """A board whose own host name is hob runs Avahi too; both say the same, and nobody is renamed."""
    machine = lan.machine()
    avahi = lan.avahi(machine, "hob")
    hob = Hob(machine, tmp_path / "hob.log")
    with hob.announce():
        named(hob, "hob.local")
        assert avahi.host_name() == "hob.local"
        neighbour = lan.avahi(lan.machine(), "neighbour")
        assert neighbour.resolve("hob.local") == machine.address


@pytest.mark.slow
@pytest.mark.lan
@lan_test
def test_two_networks_that_meet_settle_who_is_who(lan: Lan, tmp_path: Path) -> None:
    """Two Hobs won the same name apart; once they hear each other, one keeps it and the other moves on."""
    avahi = lan.avahi(lan.machine(), "neighbour")
    hobs = [Hob(lan.machine(), tmp_path / name) for name in ("first.log", "second.log")]
    for hob in hobs:
        hob.machine.isolate("on")
    with hobs[0].announce(), hobs[1].announce():
        for hob in hobs:
            named(hob, "hob.local")
        for hob in hobs:
            hob.machine.isolate("off")
        # Silence tells nothing; a question makes both answer, and each hears the other.
        avahi.machine.run(*lan.hob("discover", "--seconds", "1"))
        wait_for("two names", lambda: {hob.host() for hob in hobs} == {"hob.local", "hob-2.local"})
        # The later address wins: both can tell without asking each other.
        assert hobs[1].host() == "hob.local"
        wait_for("Avahi to see it", lambda: avahi.resolve("hob-2.local") == hobs[0].machine.address)


@pytest.mark.slow
@pytest.mark.lan
@lan_test
def test_hobs_that_start_together_agree_at_once(lan: Lan, tmp_path: Path) -> None:
    """After a power cut all probe for one name; the rule gives each its own, and none is taken back."""
    hobs = [Hob(lan.machine(), tmp_path / f"{number}.log") for number in range(3)]
    with ExitStack() as stack:
        for hob in hobs:
            stack.enter_context(hob.announce())
        names = {"hob.local", "hob-2.local", "hob-3.local"}
        wait_for("three names", lambda: {hob.host() for hob in hobs} == names)
        assert all(hob.log.read_text().count("host") == 1 for hob in hobs)


@pytest.mark.slow
@pytest.mark.lan
@lan_test
def test_a_new_address_is_announced(lan: Lan, tmp_path: Path) -> None:
    """When the router gives another address, or the cable comes late, hob.local follows."""
    avahi = lan.avahi(lan.machine(), "neighbour")
    hob = Hob(lan.machine(), tmp_path / "hob.log")
    hob.machine.plug("down")
    with hob.announce():
        assert avahi.resolve("hob.local") == ""
        hob.machine.plug("up")
        wait_for("hob.local", lambda: avahi.resolve("hob.local") == hob.machine.address)
        hob.machine.move("10.77.0.200")
        wait_for("the new address", lambda: avahi.resolve("hob.local") == "10.77.0.200")
        assert hob.host() == "hob.local"


@pytest.mark.slow
@pytest.mark.lan
@lan_test
def test_machines_with_ipv6_alone_take_part(lan: Lan, tmp_path: Path) -> None:
    """Hobs with and without IPv4 hear each other, agree on names, and are found from either kind."""
    plain, both = (Hob(lan.machine(), tmp_path / name) for name in ("plain.log", "both.log"))
    visitor = lan.machine()
    for machine, address in ((plain.machine, "fd77::1"), (both.machine, "fd77::2"), (visitor, "fd77::3")):
        machine.add_ipv6(address)
    plain.machine.drop_ipv4()
    with plain.announce():
        named(plain, "hob.local")
        with both.announce():
            named(both, "hob-2.local")
            for drop in (False, True):
                if drop:
                    visitor.drop_ipv4()
                found = json.loads(visitor.run(*lan.hob("discover", "--json")))
                assert {(hob["host"], *hob["addresses"]) for hob in found} == {
                    ("hob.local", "fd77::1"),
                    ("hob-2.local", both.machine.address, "fd77::2"),
                }


@pytest.mark.lan
@lan_test
def test_bridges_of_containers_are_not_announced(lan: Lan) -> None:
    """An address that only this machine reaches is not given to others."""
    machine = lan.machine()
    show = python("from appliance.discovery.interfaces import reach; print(*reach().announced)")
    for name, address in (("docker0", "172.17.0.1"), ("eth1", "192.0.2.1")):
        # A pair of which both ends are up looks like a bridge with a container on it, or a second cable.
        ip("-n", machine.namespace, "link", "add", name, "type", "veth", "peer", "name", f"{name}peer")
        ip("-n", machine.namespace, "address", "add", f"{address}/24", "dev", name)
        ip("-n", machine.namespace, "link", "set", f"{name}peer", "up")
        ip("-n", machine.namespace, "link", "set", name, "up")
    announced = machine.run(*show).split()
    assert {address for address in announced if ":" not in address} == {machine.address, "192.0.2.1"}


def test_names_are_tried_in_order_and_fit() -> None:
    """hob, hob-2, hob-3; long names are cut so that a label never has more than 63 bytes."""
    assert list(islice(candidates("hob"), 3)) == ["hob", "hob-2", "hob-3"]
    long = list(islice(candidates("x" * 63), 12))
    assert len(set(long)) == 12
    assert {len(label) for label in long} == {63}
    assert list(islice(candidates("y" * 60 + "-z0"), 2))[1] == "y" * 60 + "-2"


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=63))
def test_what_is_announced_fits_its_fields(label: str) -> None:
    """Service names have at most 63 bytes, TXT strings at most 255 (RFC 6763 §6.1, §7.2)."""
    assert len(instance(label).encode()) <= 63
    assert all(len(f"{key}={value}".encode()) <= 230 for key, value in properties(label).items())


addresses = st.sets(st.ip_addresses(), min_size=1, max_size=4)


@given(addresses, addresses)
def test_of_two_rivals_exactly_one_wins(ours: set[IPAddress], theirs: set[IPAddress]) -> None:
    """Both sides apply the rule on their own and agree."""
    if ours != theirs:
        assert wins(ours, theirs) != wins(theirs, ours)


def test_rivals_compare_like_the_standard_says() -> None:
    """RFC 6762 §8.2: the greater address wins, and more records win over a prefix of them."""
    low, high = ip_address("169.254.99.200"), ip_address("169.254.200.50")
    assert wins([high], [low])
    assert not wins([low], [high])
    assert wins([low, high], [low])
    assert wins([ip_address("::1")], [high])


@given(addresses, addresses)
def test_probes_of_others_are_weighed_while_probing(ours: set[IPAddress], theirs: set[IPAddress]) -> None:
    """Another machine's probe for the same name outranks ours or not, by the same rule for both."""
    contest = Contest()
    answered: list[bool] = []
    defender = Defender(contest, lambda: "held.local", frozenset, lambda: answered.append(True))
    contest.enter("Hob.local", sorted(ours, key=str))

    def hear(host: str) -> None:
        for packet in probe(host, theirs).packets():
            defender.datagram_received(packet, ("192.0.2.7", 5353))

    hear("other.local")
    assert not contest.outranked
    hear("hob.local")
    assert contest.outranked == wins(theirs, ours)
    assert not answered
    hear("held.local")
    assert answered


def test_our_own_probes_are_not_weighed() -> None:
    """Multicast comes back to its sender, who must not outrank itself."""
    contest = Contest()
    low, high = ip_address("192.0.2.1"), ip_address("192.0.2.9")
    defender = Defender(
        contest, lambda: "hob.local", lambda: frozenset({high}), lambda: pytest.fail("answered")
    )
    contest.enter("hob.local", [low])
    (packet,) = probe("hob.local", [high]).packets()
    defender.datagram_received(packet, (str(high), 5353))
    assert not contest.outranked


@given(st.binary(max_size=200))
def test_malformed_packets_are_ignored(data: bytes) -> None:
    """Whatever arrives from the network, the listener goes on and answers nothing."""
    answered: list[bool] = []
    defender = Defender(Contest(), lambda: "hob.local", frozenset, lambda: answered.append(True))
    defender.datagram_received(data, ("192.0.2.7", 5353))
    assert answered == []


def test_only_reachable_interfaces_count() -> None:
    """Loopback is never announced."""
    now = reach()
    assert not any(address.is_loopback for address in now.announced)
    assert not any(ip_address(address).is_loopback for address in now.multicast)


@pytest.mark.anyio
async def test_without_a_network_the_announcer_waits() -> None:
    """No interface, no error: it stays quiet until it is cancelled."""
    told: list[str] = []
    announcer = Announcer("hob", 8080, on_host=told.append, look=lambda: Reach((), ()))
    task = asyncio.create_task(announcer.run())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == []
    assert announcer.host == ""


def test_urls_leave_out_port_80() -> None:
    """`hob discover` prints what a person can open."""
    assert Found("Hob", "hob.local", ("192.0.2.2",), 80, "").url == "http://hob.local"
    assert Found("Hob", "hob.local", ("192.0.2.2",), 8080, "").url == "http://hob.local:8080"


def test_discover_says_when_there_is_none() -> None:
    """On a network without a Hob the command says so, and prints an empty list as JSON."""
    result = CliRunner().invoke(command, ["--seconds", "0.1", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    assert isinstance(json.loads(result.stdout), list)
