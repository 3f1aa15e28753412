"""NetworkManager's connection files, read back by the rules of GLib's key files."""

import configparser

import pytest

from appliance.setup import connection
from appliance.setup.wishes import Wifi


def parsed(text: str) -> configparser.ConfigParser:
    """A file as sections and values."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.read_string(text)
    return parser


@pytest.mark.parametrize(
    "name", ["home", "1;2;3;", "Café", " spaces ", "a\\;b", "[x]", "a=b", "#no comment", "日本"]
)
def test_no_name_means_something_else(name: str) -> None:
    """Names are written as bytes: whatever a neighbour calls the network, it is a name."""
    ssid = parsed(connection.wifi(Wifi(ssid=name)))["wifi"]["ssid"]
    assert bytes(int(byte) for byte in ssid.rstrip(";").split(";")).decode() == name


@pytest.mark.parametrize(
    ("password", "written"),
    [
        ("correct horse", "correct horse"),
        ("  two before", "\\s\\stwo before"),
        ("back\\slash", "back\\\\slash"),
        ("semi;colon#hash", "semi;colon#hash"),
    ],
)
def test_passwords_are_escaped(password: str, written: str) -> None:
    """As GLib's key files want it: backslashes, and spaces at the beginning."""
    assert f"\npsk={written}\n" in connection.wifi(Wifi(ssid="home", password=password))


def test_an_open_network_has_no_security() -> None:
    """No section at all, or NetworkManager would ask for a key."""
    assert not parsed(connection.wifi(Wifi(ssid="cafe"))).has_section("wifi-security")


def test_the_set_up_network_is_closed_to_strangers() -> None:
    """WPA2 with the device's code; it is never joined by itself, and leads nowhere else."""
    file = parsed(connection.set_up("Hob-3F2A", "K7WQ-3MZP-XR5T"))
    assert file["wifi"]["mode"] == "ap"
    assert dict(file["wifi-security"]) == {
        "key-mgmt": "wpa-psk",
        "proto": "rsn",
        "pairwise": "ccmp",
        "group": "ccmp",
        "pmf": "1",
        "psk": "K7WQ-3MZP-XR5T",
    }
    assert file["connection"]["autoconnect"] == "false"
    assert file["ipv4"]["address1"] == "10.42.0.1/24"


def test_devices_differ_in_the_set_up_networks_name() -> None:
    """Two in one house can be told apart, and each keeps its name."""
    names = {connection.set_up_name(f"{number:032x}") for number in range(50)}
    assert len(names) == 50
    assert all(name.startswith("Hob-") and len(name) == 8 for name in names)
    assert connection.set_up_name("a" * 32) == connection.set_up_name("a" * 32)


def test_connections_keep_their_ids() -> None:
    """The same on every start, each its own: NetworkManager remembers by them."""
    ids = [
        parsed(text)["connection"]["uuid"]
        for text in (connection.cable(), connection.wifi(Wifi(ssid="a")), connection.set_up("b", "c" * 12))
    ]
    assert len(set(ids)) == 3
    assert parsed(connection.wifi(Wifi(ssid="other")))["connection"]["uuid"] == ids[1]
