"""What may stand in hob.toml, and what is said about what may not."""

import re
from pathlib import Path

import pytest

from appliance.setup.wishes import CHECKS, WIFI_KEYS, Wifi, Wishes, read
from tests.appliance.setup.device import KEY, make


@pytest.fixture
def zones(tmp_path: Path) -> Path:
    """A small time zone database."""
    return make(tmp_path).zones


def test_everything_at_once(zones: Path) -> None:
    """A file with every key, as people write it."""
    wishes, problems = read(
        f"""
        hostname = "Kitchen"
        locale = "de_DE.UTF-8"
        timezone = "Europe/Berlin"
        ssh_keys = ["{KEY}"]
        setup_code = "K7WQ-3MZP-XR5T"
        ntp = ["ntp.example.org", "192.168.1.1"]
        [wifi]
        ssid = "Café am Eck"
        password = "correct horse"
        country = "de"
        hidden = true
        """,
        zones,
    )
    assert problems == []
    assert wishes == Wishes(
        hostname="kitchen",
        locale="de_DE.UTF-8",
        timezone="Europe/Berlin",
        ssh_keys=[KEY],
        setup_code="K7WQ-3MZP-XR5T",
        ntp=["ntp.example.org", "192.168.1.1"],
        wifi=Wifi(ssid="Café am Eck", password="correct horse", hidden=True),
        country="DE",
        password_given=True,
    )


def test_an_empty_file_wishes_nothing(zones: Path) -> None:
    """Comments alone change nothing."""
    assert read("# hostname = 'x'\n", zones) == (Wishes(), [])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hostname = ", "not valid TOML"),
        ("hostname = 'a'\nhostname = 'b'", "Cannot overwrite"),
        ("hostname = 'my hob'", "hostname: must be letters"),
        ("hostname = '-hob'", "hostname: must be"),
        ("hostname = 'localhost'", "localhost"),
        ("hostname = 7", "hostname: must be text"),
        ("host = 'hob'", "host: there is no such key; known are"),
        ("timezone = 'Berlin'", "timezone: is none that is known: 'Berlin'"),
        ("timezone = '../../etc/passwd'", "timezone: is none"),
        ("timezone = 'leapseconds'", "timezone: is none"),
        ("timezone = 'Europe'", "timezone: is none"),
        ("locale = 'german'", "locale: must be a language"),
        ("ssh_keys = ['hello']", "ssh_keys: key 1 is not one"),
        ("ssh_keys = 3", "ssh_keys: must be a list"),
        ("setup_code = 'K7WQ-3MZP'", "setup_code: must have 12 letters"),
        ("setup_code = 'passwörterbuch'", "setup_code: must have 12 letters"),
        ("ntp = 'pool.ntp.org'", "ntp: must be true, false, or a list"),
        ("ntp = ['a b']", "ntp: has a server"),
        ("wifi = 'home'", "wifi: must be a table"),
        ("[wifi]\npassword = 'long enough'", "wifi.ssid: is missing"),
        ("[wifi]\nssid = ''", "wifi.ssid: must have 1 to 32 bytes, and has 0"),
        (f"[wifi]\nssid = '{'ä' * 17}'", "has 34"),
        (
            "[wifi]\nssid = 'home'\npassword = 'short'",
            "wifi.password: must have 8 to 63 characters, and has 5",
        ),
        ("[wifi]\nssid = 'home'\npassword = 'pässwörter'", "wifi.password: may have letters without accents"),
        ("[wifi]\nssid = 'home'\ncountry = 'Germany'", "wifi.country: must be a country's two letters"),
        ("[wifi]\nssid = 'home'\nhidden = 'yes'", "wifi.hidden: must be true or false"),
        ("[wifi]\nssid = 'home'\npsk = 'long enough'", "wifi.psk: there is no such key"),
    ],
)
def test_errors_name_the_key(text: str, named: str, zones: Path) -> None:
    """One sentence, which begins with the key and says what it should be."""
    wishes, problems = read(text, zones)
    assert wishes == Wishes()
    assert len(problems) == 1
    assert named in problems[0]
    assert problems[0].endswith(".")


def test_a_wrong_key_costs_the_others_nothing(zones: Path) -> None:
    """Who has no screen sees no error at once, and should not lose the Wi-Fi by a wrong time zone."""
    wishes, problems = read("timezone = 'Mars'\n[wifi]\nssid = 'home'\npassword = 'long enough'", zones)
    assert len(problems) == 1
    assert wishes.wifi == Wifi(ssid="home", password="long enough")


def test_errors_do_not_repeat_secrets(zones: Path) -> None:
    """What is wrong with a password is said without it: the sentence is shown on a screen."""
    for text in (
        "[wifi]\nssid = 'home'\npassword = 123456789",
        "[wifi]\nssid = 'home'\npassword = '1234567'",
        "setup_code = 12345678",
        "setup_code = '1234567'",
    ):
        _, problems = read(text, zones)
        assert len(problems) == 1
        assert "1234567" not in problems[0]


def test_a_country_may_stand_alone(zones: Path) -> None:
    """The radio's rules are worth setting before any network is chosen."""
    assert read("[wifi]\ncountry = 'AT'", zones) == (Wishes(country="AT"), [])


def test_keys_may_be_pasted_as_lines(zones: Path) -> None:
    """A whole authorized_keys file in one string."""
    wishes, problems = read(f'ssh_keys = """\n{KEY}\n\n{KEY}\n"""', zones)
    assert problems == []
    assert wishes.ssh_keys == [KEY, KEY]


ROOT = Path(__file__).parents[3]


def test_every_key_is_documented() -> None:
    """docs/device.md has a row for each key, and the template on the boot partition a line."""
    keys = {*CHECKS, *(f"wifi.{key}" for key in WIFI_KEYS)}
    page = (ROOT / "docs/device.md").read_text()
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", page, re.M)) == keys
    template = (ROOT / "builder/image/system/boot/hob.toml").read_text()
    assert set(re.findall(r"^#([a-z_]+) =", template, re.M)) == {key.removeprefix("wifi.") for key in keys}


def test_the_template_wishes_nothing_and_all_of_it_would_be_taken(zones: Path) -> None:
    """As it is, it changes nothing; with its marks taken away, it is valid, but for the examples in it."""
    template = (ROOT / "builder/image/system/boot/hob.toml").read_text()
    assert read(template, zones) == (Wishes(), [])
    wishes, problems = read(re.sub(r"^#(?=[a-z[])", "", template, flags=re.M), zones)
    assert wishes.hostname == "kitchen"
    assert wishes.wifi == Wifi(ssid="the network's name", password="its password")
    assert [problem.partition(":")[0] for problem in problems] == ["ssh_keys"]
