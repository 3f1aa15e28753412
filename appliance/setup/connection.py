"""NetworkManager's connections (nm-settings-keyfile(5)): cables, the owner's Wi-Fi, the set-up network."""

import re
import uuid

from appliance.setup.wishes import Wifi

CABLE = "cable"
"""The connection of every cable."""

WIFI = "wifi"
"""The connection to the owner's network; also the name of its file."""

SET_UP = "set-up"
"""The connection that is the set-up network."""

SET_UP_ADDRESS = "10.42.0.1"

_SPACE = uuid.UUID("6f1c0e2a-9a52-5f6e-8d5c-0b5f6a0e7d11")
"""Connections have the same id on every start, so that NetworkManager knows them again."""


def cable() -> str:
    """The file for all cables: an address from the router, or one of Hob's own choosing where none is given.

    So a laptop on a single cable reaches Hob too (RFC 3927, and the name by multicast DNS).
    """
    return "\n".join(
        [
            "[connection]",
            f"id={CABLE}",
            f"uuid={uuid.uuid5(_SPACE, CABLE)}",
            "type=ethernet",
            "autoconnect-priority=10",
            "autoconnect-retries=0",
            "multi-connect=3",
            "",
            "[ipv4]",
            "method=auto",
            "link-local=4",
            "dhcp-timeout=2147483647",
            "",
            "[ipv6]",
            "method=auto",
            "",
        ]
    )


def wifi(network: Wifi) -> str:
    """The file that joins `network` whenever it is in reach, by WPA3 or WPA2, whichever both sides have."""
    lines = [
        "[connection]",
        f"id={WIFI}",
        f"uuid={uuid.uuid5(_SPACE, WIFI)}",
        "type=wifi",
        "autoconnect=true",
        "autoconnect-retries=0",
        "",
        "[wifi]",
        "mode=infrastructure",
        f"ssid={_bytes(network.ssid)}",
        f"hidden={str(network.hidden).lower()}",
        "",
    ]
    if network.password:
        lines += ["[wifi-security]", "key-mgmt=wpa-psk", f"psk={_escaped(network.password)}", ""]
    lines += ["[ipv4]", "method=auto", "dhcp-timeout=2147483647", "", "[ipv6]", "method=auto", ""]
    return "\n".join(lines)


def set_up(name: str, password: str) -> str:
    """The file that opens the set-up network `name`: WPA2 on 2.4 GHz, which every phone and radio can do.

    Without protected management frames: the firmware of several built-in radios fails with them.
    NetworkManager gives out addresses; nothing is passed on to other networks.
    """
    return "\n".join(
        [
            "[connection]",
            f"id={SET_UP}",
            f"uuid={uuid.uuid5(_SPACE, SET_UP)}",
            "type=wifi",
            "autoconnect=false",
            "",
            "[wifi]",
            "mode=ap",
            "band=bg",
            f"ssid={_bytes(name)}",
            "",
            "[wifi-security]",
            "key-mgmt=wpa-psk",
            "proto=rsn",
            "pairwise=ccmp",
            "group=ccmp",
            "pmf=1",
            f"psk={_escaped(password)}",
            "",
            "[ipv4]",
            "method=shared",
            f"address1={SET_UP_ADDRESS}/24",
            "",
            "[ipv6]",
            "method=disabled",
            "",
        ]
    )


def set_up_name(machine_id: str) -> str:
    """The set-up network's name: "Hob-" and four digits that tell two of them apart."""
    return f"Hob-{uuid.uuid5(_SPACE, machine_id).hex[:4].upper()}"


def _bytes(name: str) -> str:
    """A network's name as a list of bytes: the one spelling in which no name means something else."""
    return "".join(f"{byte};" for byte in name.encode())


def _escaped(text: str) -> str:
    """A string value, with the escapes of GLib's key files."""
    text = text.replace("\\", "\\\\")
    return re.sub("^ +", lambda spaces: "\\s" * len(spaces[0]), text)
