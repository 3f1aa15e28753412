"""NetworkManager, through `nmcli` in its terse form (nmcli(1)), and `ip`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.admin.messages import Link, WifiNetwork
from appliance.admin.program import run
from appliance.errors import AdminError
from appliance.setup.connection import SET_UP

JOIN_SECONDS = 45
"""How long joining a network may take: scan, handshake, address."""


@dataclass(frozen=True)
class Interface:
    """A network interface as NetworkManager sees it: kind "ethernet" or "wifi"; `connection` "" for none."""

    name: str
    kind: str
    state: str
    connection: str

    @property
    def connected(self) -> bool:
        """Whether it has an address."""
        return self.state == "connected"


def fields(line: str) -> list[str]:
    """The fields of a terse line: separated by colons; a backslash takes the next character as it is."""
    found = [""]
    characters = iter(line)
    for character in characters:
        if character == "\\":
            found[-1] += next(characters, "")
        elif character == ":":
            found.append("")
        else:
            found[-1] += character
    return found


def rows(text: str, width: int) -> Iterator[list[str]]:
    """The lines of a terse listing that have `width` fields; nmcli writes warnings between them."""
    for line in text.splitlines():
        if len(row := fields(line)) == width:
            yield row


async def _nmcli(*arguments: str, seconds: float = 30.0, hint: str = "") -> str:
    return await run("nmcli", "--terse", "--colors", "no", *arguments, seconds=seconds, hint=hint)


async def interfaces() -> list[Interface]:
    """Cables and radios; bridges, loopback and the like are left out."""
    text = await _nmcli("--fields", "DEVICE,TYPE,STATE,CONNECTION", "device", "status")
    return [Interface(*row) for row in rows(text, 4) if row[1] in {"ethernet", "wifi"}]


async def scan() -> list[WifiNetwork]:
    """Networks in reach, strongest first; looks for them anew, which takes some seconds."""
    text = await _nmcli("--fields", "SSID,SIGNAL,SECURITY", "device", "wifi", "list", "--rescan", "yes")
    return networks(text)


def networks(listing: str) -> list[WifiNetwork]:
    """The networks of a listing: hidden ones left out, each name once."""
    best: dict[str, WifiNetwork] = {}
    for name, signal, security in rows(listing, 3):
        if not name or not signal.isdecimal():
            continue
        strength = int(signal)
        if name not in best or best[name].signal < strength:
            kinds = set(security.split())
            best[name] = WifiNetwork(
                ssid=name,
                signal=strength,
                secure=bool(kinds),
                usable=not kinds or (bool(kinds & {"WPA1", "WPA2", "WPA3"}) and "802.1X" not in kinds),
            )
    return sorted(best.values(), key=lambda network: -network.signal)


async def load(file: str) -> None:
    """Have NetworkManager read a connection's file."""
    await _nmcli("connection", "load", file)


async def reload() -> None:
    """Have NetworkManager read all connections' files, and forget those that are gone."""
    await _nmcli("connection", "reload")


async def up(connection: str) -> None:
    """Bring a connection up and wait until it is.

    Raises:
        AdminError: it did not come up; the message is NetworkManager's.
    """
    await _nmcli("--wait", str(JOIN_SECONDS), "connection", "up", "id", connection, seconds=JOIN_SECONDS + 10)


async def down(connection: str) -> None:
    """Take a connection down; one that is not up stays so."""
    try:
        await _nmcli("--wait", "10", "connection", "down", "id", connection)
    except AdminError as error:
        if "not an active connection" not in error.message:
            raise


async def radio_on() -> None:
    """Switch the radio on, where it was off by software."""
    await _nmcli("radio", "wifi", "on")


async def links() -> list[Link]:
    """Interfaces with their networks and addresses; the set-up network is named as such."""
    addresses: dict[str, list[str]] = {}
    for entry in json.loads(await run("ip", "-json", "address")):
        addresses[entry["ifname"]] = [
            address["local"] for address in entry["addr_info"] if address["scope"] == "global"
        ]
    return [
        Link(
            interface=interface.name,
            kind=interface.kind,
            network=interface.connection if interface.connected else "",
            addresses=addresses.get(interface.name, []),
        )
        for interface in await interfaces()
    ]


async def guests(interface: str) -> int:
    """How many devices are on the set-up network."""
    return (await run("iw", "dev", interface, "station", "dump")).count("Station ")


async def admit_guests(interface: str) -> None:
    """Let the firewall give out addresses and names on this interface (the set `set_up` of nftables.conf)."""
    await run("nft", "add", "element", "inet", "hob", "set_up", "{", interface, "}")


async def turn_guests_away() -> None:
    """The opposite, for all interfaces."""
    await run("nft", "flush", "set", "inet", "hob", "set_up")


async def obey(country: str) -> None:
    """Let the radio obey a country's rules."""
    await run("iw", "reg", "set", country)


def on_air(found: list[Interface]) -> Interface | None:
    """The radio that carries the set-up network, if there is one."""
    return next((interface for interface in found if interface.connection == SET_UP), None)
