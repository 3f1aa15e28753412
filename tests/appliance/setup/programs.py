#!/usr/bin/env python3
"""Stand-ins for nmcli, iw and nft that behave as a device with one radio in a small world.

The world is a JSON file that tests change: `cable` (plugged in), `air` (networks in reach with their
passwords), `radio` (the connection on the radio, or ""), `guests`; `called` collects what was asked.
Connections are the files that NetworkManager would read. Run as `programs.py NAME ARGUMENTS`, with WORLD and
HOB_ROOT set.
"""

import configparser
import fcntl
import json
import os
import sys
from pathlib import Path

WORLD = Path(os.environ.get("WORLD", "world.json"))
HINT = "\nHint: use 'journalctl -xe NM_DEVICE=wlan0' to get more details."
FOLDER = Path(os.environ.get("HOB_ROOT", "/")) / "var/lib/hob-system/connections"


def profile(name: str) -> configparser.ConfigParser | None:
    """The connection file of a name."""
    file = FOLDER / f"{name}.nmconnection"
    if not file.exists():
        return None
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.read_string(file.read_text())
    return parser


def nmcli(world: dict[str, object], arguments: list[str]) -> str:
    """What nmcli does and prints; SystemExit for its failures."""
    match [word for word in arguments if not word.startswith("--") and word not in {"no", "45", "10"}]:
        case [_, "device", "status"]:
            cable = "connected:cable" if world["cable"] else "unavailable:"
            radio = f"connected:{world['radio']}" if world["radio"] else "disconnected:"
            return f"eth0:ethernet:{cable}\nwlan0:wifi:{radio}\nlo:loopback:connected (externally):lo\n"
        case [_, "device", "wifi", "list", "yes"]:
            air = world["air"]
            assert isinstance(air, dict)
            return "".join(f"{name}:70:{'WPA2' if password else ''}\n" for name, password in air.items())
        case ["connection", "up", "id", name]:
            join(world, name)
        case ["connection", "down", "id", name]:
            if world["radio"] != name:
                sys.exit(f"Error: '{name}' is not an active connection.")
            world["radio"] = ""
        case ["connection", "reload"]:
            if world["radio"] and profile(str(world["radio"])) is None:
                world["radio"] = ""
        case ["connection", "load", _] | ["radio", "wifi", "on"]:
            pass
        case other:
            sys.exit(f"Error: this is not understood: {other}")
    return ""


def join(world: dict[str, object], name: str) -> None:
    """Bring up a connection, with NetworkManager's own words where that fails."""
    file, air = profile(name), world["air"]
    assert isinstance(air, dict)
    if file is None:
        sys.exit(f"Error: unknown connection '{name}'.")
    if file["wifi"]["mode"] == "ap":
        world["radio"] = name
        return
    ssid = bytes(int(byte) for byte in file["wifi"]["ssid"].rstrip(";").split(";")).decode()
    world["radio"] = ""
    if ssid not in air:
        sys.exit("Error: Connection activation failed: The Wi-Fi network could not be found" + HINT)
    password = file["wifi-security"]["psk"] if file.has_section("wifi-security") else ""
    if password != air[ssid]:
        sys.exit("Error: Connection activation failed: Secrets were required, but not provided" + HINT)
    world["radio"] = name


def main() -> None:
    """Do what one program is asked, in the world; one program after the other, as NetworkManager has them."""
    with WORLD.with_suffix(".lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        act()


def act() -> None:
    """Do it, while the world is ours."""
    world = json.loads(WORLD.read_text())
    name, *arguments = sys.argv[1:]
    world["called"].append(" ".join([name, *arguments]))
    try:
        if name == "nmcli":
            print(nmcli(world, arguments), end="")
        elif name == "iw" and arguments[-1] == "dump":
            print("Station 02:00:00:00:00:01 (on wlan0)\n" * int(world["guests"]), end="")
    finally:
        new = WORLD.with_suffix(".new")
        new.write_text(json.dumps(world))
        new.replace(WORLD)


if __name__ == "__main__":
    main()
