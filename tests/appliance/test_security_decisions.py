"""The decisions of security that need no server: hosts, origins, areas, redirects, delays."""

from collections.abc import Mapping
from ipaddress import ip_address

import pytest

from appliance.errors import RateLimitError, SettingsError
from appliance.security.access import LOCAL, NOBODY, Area, Caller, admits, area, is_local, local_path
from appliance.security.hosts import AllowedHosts, IPAddress, interface_addresses
from appliance.security.origin import foreign, proven_own
from appliance.security.owner import new_setup_code, plain_code
from appliance.security.throttle import BURST, REMEMBERED, Throttle, delay
from appliance.setup.code import ALPHABET


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def hosts(*own: str, extra: tuple[str, ...] = (), clock: Clock | None = None) -> AllowedHosts:
    """Hosts of a machine with these addresses."""
    return AllowedHosts(
        "hob",
        extra,
        addresses=lambda: frozenset(ip_address(address) for address in own),
        clock=clock or Clock(),
    )


@pytest.mark.parametrize(
    "header",
    [
        "localhost",
        "LOCALHOST:8080",
        "127.0.0.1:8080",
        "127.8.9.1",
        "[::1]:8080",
        "hob.local",
        "Hob.Local.:80",
        "192.0.2.2:8080",
        "[fd00::2]",
        "[FE80::1%25eth0]:8080",
        "chat.example.org",
    ],
)
def test_own_names_are_answered(header: str) -> None:
    """Loopback, own addresses, the LAN name and what the settings add; ports and case do not matter."""
    assert hosts("192.0.2.2", "fd00::2", "fe80::1", extra=("Chat.example.org",)).allows(header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "evil.example",
        "hob.local.evil.example",
        "evil.example:80@hob.local",
        "hob-2.local",
        "xhob.local",
        "192.0.2.3",
        "[fd00::3]",
        "localhost:80:80",
        "localhost:123456",
        "hob.local/",
        "hob.local evil",
        "[::1",
        "::1",
        "0x7f.1",
        "2130706433",
        "[v1.x]",
        ".",
        "hob.local\n",
    ],
)
def test_foreign_and_malformed_hosts_are_not(header: str | None) -> None:
    """A name that is not ours, or that another reader may take for ours, is refused."""
    assert not hosts("192.0.2.2").allows(header)


def test_settings_name_hosts() -> None:
    """Names may be written with a port; what is no name is refused by name."""
    assert hosts(extra=("Chat.example.org:8443",)).allows("chat.example.org")
    with pytest.raises(SettingsError, match="http://chat"):
        hosts(extra=("http://chat.example.org",))


def test_the_announced_name_counts_while_it_is_announced() -> None:
    """When discovery had to take hob-2.local, that name is answered, until another one is announced."""
    own = hosts()
    own.announced("hob-2.local.")
    assert own.allows("hob-2.local:8080")
    own.announced("hob-3.local")
    assert not own.allows("hob-2.local")
    assert own.allows("hob-3.local")


def test_a_new_address_is_found() -> None:
    """An address that an interface got later is answered, but strangers do not make us scan all the time."""
    clock = Clock()
    scans = 0
    current: frozenset[IPAddress] = frozenset()

    def scan() -> frozenset[IPAddress]:
        nonlocal scans
        scans += 1
        return current

    own = AllowedHosts("hob", addresses=scan, clock=clock)
    assert not own.allows("192.0.2.9")
    current = frozenset({ip_address("192.0.2.9")})
    assert not own.allows("192.0.2.9")
    assert scans == 1
    clock.now += 2
    assert own.allows("192.0.2.9")


def test_interfaces_include_loopback() -> None:
    """The scan sees the machine's real interfaces."""
    assert ip_address("127.0.0.1") in interface_addresses()


HOST = {"host": "hob.local:8080"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://hob.local:8080"},
        {"origin": "https://HOB.local:8080"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
    ],
)
def test_own_pages_and_programs_are_not_foreign(headers: Mapping[str, str]) -> None:
    """Our own pages, typed addresses, followed links and programs without a browser pass."""
    assert foreign(HOST | dict(headers)) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://evil.example"},
        {"origin": "http://hob.local"},
        {"origin": "http://hob.local:8081"},
        {"origin": "http://hob.local:8080.evil.example"},
        {"origin": "chrome-extension://hob.local:8080"},
        {"origin": "http://evil.example", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
    ],
)
def test_other_sites_are_foreign(headers: Mapping[str, str]) -> None:
    """Another host, another port, no origin at all, frames and images on foreign pages."""
    assert foreign(HOST | dict(headers)) is not None


def test_what_a_browser_vouches_for() -> None:
    """A matching Origin or Fetch Metadata prove our own page; silence proves nothing."""
    assert proven_own({"origin": "http://hob.local"})
    assert proven_own({"sec-fetch-site": "same-origin"})
    assert not proven_own({})


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_local(peer: str) -> None:
    """Every form of a loopback address is this machine."""
    assert is_local(peer, {})


@pytest.mark.parametrize("peer", [None, "", "192.0.2.7", "::ffff:192.0.2.7", "fe80::1%eth0", "localhost"])
def test_everything_else_is_not_local(peer: str | None) -> None:
    """LAN addresses, Unix sockets and names are not."""
    assert not is_local(peer, {})


@pytest.mark.parametrize("header", ["forwarded", "x-forwarded-for", "x-forwarded-port", "x-real-ip", "via"])
def test_a_proxy_on_this_machine_is_not_local(header: str) -> None:
    """Whoever stands behind a proxy is unknown, whatever the header claims."""
    assert not is_local("127.0.0.1", {header: "127.0.0.1"})


def test_areas_and_who_enters() -> None:
    """Strangers enter the open area, keys the API besides, people everything; unknown paths are private."""
    assert area("/healthz") is Area.OPEN
    assert area("/static/app.js") is Area.OPEN
    assert area("/v1/models") is Area.API
    assert {area(path) for path in ("/", "/v1", "/healthz/", "/staticx", "//static/", "/new")} == {Area.PAGES}
    entered = {
        who.kind: [where.value for where in Area if admits(where, who)]
        for who in (NOBODY, LOCAL, Caller("owner", "1"), Caller("key", "1"))
    }
    assert entered == {
        "nobody": ["open"],
        "local": ["open", "api", "pages"],
        "owner": ["open", "api", "pages"],
        "key": ["open", "api"],
    }


@pytest.mark.parametrize("target", ["/", "/chats/3", "/search?q=a+b&x=%2F", "/chats/3#m4"])
def test_next_may_lead_to_a_local_path(target: str) -> None:
    """After sign-in people get where they wanted to go."""
    assert local_path(target) == target


@pytest.mark.parametrize(
    "target",
    [
        None,
        "",
        "chats",
        "http://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        " //evil.example",
        "javascript:alert(1)",
        "/login",
        "/logout?x",
    ],
)
def test_next_leads_nowhere_else(target: str | None) -> None:
    """Anything a browser might read as another site ends at the front page."""
    assert local_path(target) == "/"


def test_guesses_slow_down() -> None:
    """Four guesses are free; then the wait doubles up to a quarter of an hour."""
    assert [delay(n) for n in (0, 4, 5, 6, 9, 15, 1000)] == [0, 0, 1, 2, 16, 900, 900]
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(5):
        throttle.admit("192.0.2.7")
    with pytest.raises(RateLimitError) as caught:
        throttle.admit("192.0.2.7")
    assert caught.value.retry_after == 1
    throttle.admit("192.0.2.8")
    clock.now += 1
    throttle.admit("192.0.2.7")
    with pytest.raises(RateLimitError) as caught:
        throttle.admit("192.0.2.7")
    assert caught.value.retry_after == 2


def test_a_right_guess_wipes_the_slate() -> None:
    """After signing in, an address starts anew."""
    throttle = Throttle(Clock())
    for _ in range(20):
        throttle.admit("192.0.2.7")
        throttle.succeeded("192.0.2.7")


def test_many_addresses_share_one_budget() -> None:
    """Who owns many addresses still guesses no faster than one every two seconds."""
    clock = Clock()
    throttle = Throttle(clock)
    for n in range(int(BURST)):
        throttle.admit(f"192.0.2.{n}")
    with pytest.raises(RateLimitError) as caught:
        throttle.admit("198.51.100.1")
    assert caught.value.retry_after == 2
    clock.now += 2
    throttle.admit("198.51.100.1")


def test_an_ipv6_network_is_one_guesser() -> None:
    """Addresses of one /64 count together, IPv4-mapped ones as IPv4."""
    throttle = Throttle(Clock())
    for n in range(5):
        throttle.admit(f"fd00::{n + 1:x}")
    with pytest.raises(RateLimitError):
        throttle.admit("fd00::ffff")
    throttle.admit("fd00:0:0:1::1")
    throttle.admit("::ffff:192.0.2.7")


def test_memory_of_strangers_is_bounded_and_fades() -> None:
    """However many addresses guess, few are remembered; after an hour a guesser is forgotten."""
    clock = Clock()
    throttle = Throttle(clock)
    for n in range(REMEMBERED + 100):
        clock.now += 2
        throttle.admit(f"198.18.{n // 256}.{n % 256}")
    assert len(throttle._records) == REMEMBERED
    for _ in range(5):
        throttle.admit("192.0.2.7")
    clock.now += 3601
    for _ in range(5):
        throttle.admit("192.0.2.7")


def test_setup_codes_are_easy_to_type() -> None:
    """Eight letters without look-alikes; case, spaces and hyphens do not matter; no two alike."""
    code = new_setup_code()
    assert len(code) == 9
    assert set(code) <= set(ALPHABET) | {"-"}
    assert set("0O1ILU").isdisjoint(ALPHABET)
    assert plain_code(f" {code.lower().replace('-', ' ')} ") == code.replace("-", "")
    assert len({new_setup_code() for _ in range(100)}) == 100
