"""nmcli's terse listings."""

from appliance.admin.messages import WifiNetwork
from appliance.setup import nm


def test_fields_with_colons_and_backslashes() -> None:
    """nmcli puts a backslash before both."""
    assert nm.fields(r"AA\:BB:home\\sweet:70:") == ["AA:BB", r"home\sweet", "70", ""]
    assert nm.fields("") == [""]
    assert nm.fields("broken\\") == ["broken"]


def test_networks() -> None:
    """Strongest first, each name once; hidden ones and lines that are none left out."""
    listing = "\n".join(
        [
            "Warning: nmcli (1.52.1) and NetworkManager (1.52.0) versions don't match.",
            "home:40:WPA2",
            "home:85:WPA2 WPA3",
            ":99:WPA2",
            r"a\:b:60:",
            "work:70:WPA2 802.1X",
            "old:50:WEP",
            "new:30:WPA3",
        ]
    )
    assert nm.networks(listing) == [
        WifiNetwork(ssid="home", signal=85, secure=True),
        WifiNetwork(ssid="work", signal=70, secure=True, usable=False),
        WifiNetwork(ssid="a:b", signal=60, secure=False),
        WifiNetwork(ssid="old", signal=50, secure=True, usable=False),
        WifiNetwork(ssid="new", signal=30, secure=True),
    ]
