"""What Raspberry Pi Imager writes onto the boot partition of an image of kind `cloudinit`.

Imager asks for a name, a Wi-Fi network, a time zone and SSH keys, and writes them as `user-data` and
`network-config`, a few lines of cloud-init's language (its source: `customization_generator.cpp`; the
language: cloud-init's NoCloud source and network configuration version 2). Hob reads exactly these lines and
runs nothing: commands, packages and passwords of Linux users are left out, each with a note. Whoever needs
more of cloud-init needs another system.
"""

from collections.abc import Mapping

import yaml  # type: ignore[import-untyped]  # PyYAML comes without types

# What Imager writes for Debian in general and means nothing on a device with one program.
IGNORED = {"manage_etc_hosts", "packages", "apt", "keyboard", "enable_ssh", "ssh_pwauth", "instance-id"}

Table = dict[str, object]


def read(user_data: str, network_config: str) -> tuple[Table, list[str]]:
    """The wishes in the words of `hob.toml`, still to be checked, and a note on each thing left out."""
    notes: list[str] = []
    table: Table = {}
    user = _parse("user-data", user_data, notes)
    for key, value in user.items():
        match key:
            case "hostname" | "timezone" | "locale":
                table[key] = value
            case "users":
                _users(value, table, notes)
            case "ssh_authorized_keys":
                _keys(value, table)
            case "runcmd":
                _commands(value, notes)
            case _ if key in IGNORED:
                pass
            case _:
                notes.append(f"user-data: {key} was left out; Hob does nothing with it.")
    network = _parse("network-config", network_config, notes)
    inner = network.get("network", network)
    _network(inner if isinstance(inner, dict) else {}, table, notes)
    return table, notes


def _parse(name: str, text: str, notes: list[str]) -> Mapping[str, object]:
    """The mapping in a YAML text; empty for anything else."""
    if text.startswith("#!"):
        notes.append(f"{name} is a program, which Hob does not run.")
        return {}
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 1}" if place else ""
        notes.append(f"{name} is not valid YAML{where}, so nothing in it was taken.")
        return {}
    if found is None:
        return {}
    if not isinstance(found, dict):
        notes.append(f"{name} is not a list of settings, so nothing in it was taken.")
        return {}
    return {str(key): value for key, value in found.items()}


def _users(value: object, table: Table, notes: list[str]) -> None:
    """The SSH keys of the user that Imager describes; there are no users to make."""
    for user in value if isinstance(value, list) else []:
        if not isinstance(user, dict):
            continue  # "default": the user that another system would make by itself
        _keys(user.get("ssh_authorized_keys"), table)
        if user.get("passwd") or user.get("plain_text_passwd"):
            notes.append(
                "The password for a Linux user was left out: nobody logs in to Hob by password. "
                "With an SSH key, the login is root."
            )


def _keys(value: object, table: Table) -> None:
    if isinstance(value, list) and value:
        known = table.setdefault("ssh_keys", [])
        assert isinstance(known, list)
        known.extend(key for key in value if key not in known)


def _commands(value: object, notes: list[str]) -> None:
    """Imager's own commands switch the radio on, which Hob does anyway; others are not run."""
    commands = value if isinstance(value, list) else [value]
    if any("rfkill" not in str(command) for command in commands):
        notes.append("user-data: runcmd was left out; Hob runs no commands from the boot partition.")


def _network(network: Mapping[str, object], table: Table, notes: list[str]) -> None:
    """The Wi-Fi network and its country. Cables need no settings."""
    notes.extend(
        f"network-config: {key} was left out; Hob takes Wi-Fi settings alone."
        for key in network
        if key not in {"version", "wifis", "ethernets", "renderer"}
    )
    if any(isinstance(cable, dict) and "addresses" in cable for cable in _values(network.get("ethernets"))):
        notes.append("network-config: fixed addresses were left out; give Hob one in the router.")
    for radio in _values(network.get("wifis")):
        if not isinstance(radio, dict):
            continue
        wifi: Table = {}
        if "regulatory-domain" in radio:
            wifi["country"] = radio["regulatory-domain"]
        points = radio.get("access-points")
        if isinstance(points, dict) and points:
            name, point = next(iter(points.items()))
            if len(points) > 1:
                notes.append(f"network-config: of several networks, only {name!r} was taken.")
            wifi |= {"ssid": str(name)} | _point(point if isinstance(point, dict) else {}, notes)
        if wifi:
            table["wifi"] = wifi
            return


def _point(point: Mapping[str, object], notes: list[str]) -> Table:
    """Password and visibility of a network."""
    found: Table = {"hidden": point.get("hidden") is True}
    password = point.get("password", "")
    auth = point.get("auth")
    if isinstance(auth, dict):
        if auth.get("key-management") not in {None, "none", "psk", "sae"}:
            notes.append("network-config: networks that ask for a user name are not supported.")
        password = auth.get("password", password)
    found["password"] = "" if password is None else str(password)
    return found


def _values(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else []
