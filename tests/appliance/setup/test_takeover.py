"""From the boot partition into the state, in a temporary root."""

from pathlib import Path

import msgspec
import pytest

from appliance.setup import scrub, takeover
from appliance.setup.places import Places
from appliance.setup.state import State, load, save
from appliance.setup.wishes import Wifi
from tests.appliance.setup.device import KEY, make
from tests.appliance.setup.test_imager import NETWORK_CONFIG, PSK, USER_DATA

KNOWN = "hostname, locale, ntp, setup_code, ssh_keys, timezone, wifi."

SETTINGS = f"""# My Hob
hostname = "kitchen"  # where it stands
setup_code = "K7WQ-3MZP-XR5T"
ssh_keys = ["{KEY}"]

[wifi]
ssid = "home"
password = "correct horse"   # the router's
"""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """An empty device."""
    return make(tmp_path)


def settings(places: Places, text: str | None = None) -> str:
    """Write hob.toml, or read what is in it."""
    file = places.boot / "hob.toml"
    if text is not None:
        file.write_text(text)
    return file.read_text()


def test_settings_are_taken_and_their_secrets_removed(places: Places) -> None:
    """The state has everything; the file keeps all but the secrets, comments included."""
    settings(places, SETTINGS)
    state = takeover.take_over(places, State())
    assert state.host_name == "kitchen"
    assert state.wifi == Wifi(ssid="home", password="correct horse")
    assert state.setup_code == "K7WQ-3MZP-XR5T"
    assert state == load(places.state)
    left = settings(places)
    assert "correct horse" not in left
    assert "K7WQ" not in left
    assert '# My Hob\nhostname = "kitchen"  # where it stands\n' in left
    assert 'ssid = "home"' in left
    assert (places.state / "device.json").stat().st_mode & 0o777 == 0o600


def test_taking_over_twice_changes_nothing(places: Places) -> None:
    """What Hob left there is no new wish; the boot partition is not written again."""
    settings(places, SETTINGS)
    first = takeover.take_over(places, State())
    (places.boot / "hob.toml").chmod(0o400)
    before = (places.boot / "hob.toml").stat().st_mtime_ns
    assert takeover.take_over(places, first) == first
    assert (places.boot / "hob.toml").stat().st_mtime_ns == before


def test_a_later_edit_is_taken_and_keeps_the_password(places: Places) -> None:
    """The password is gone from the file, but the network is the same: it stays known."""
    settings(places, SETTINGS)
    state = takeover.take_over(places, State())
    settings(places, settings(places).replace("kitchen", "cellar"))
    state = takeover.take_over(places, state)
    assert state.host_name == "cellar"
    assert state.wifi == Wifi(ssid="home", password="correct horse")
    settings(places, settings(places).replace('ssid = "home"', 'ssid = "open"'))
    assert takeover.take_over(places, state).wifi == Wifi(ssid="open", password="")


def test_the_password_of_the_same_network_can_change(places: Places) -> None:
    """One that is written anew holds, and so does an empty one: the network is an open one now."""
    settings(places, SETTINGS)
    state = takeover.take_over(places, State())
    for password in ("battery staple", ""):
        settings(places, f'[wifi]\nssid = "home"\npassword = "{password}"\n')
        state = takeover.take_over(places, state)
        assert state.wifi == Wifi(ssid="home", password=password)


def test_an_old_line_does_not_undo_what_the_page_has_set(places: Places) -> None:
    """Only what was written anew is a wish; the rest of the file is history."""
    settings(places, SETTINGS)
    state = takeover.take_over(places, State())
    state = msgspec.structs.replace(state, host_name="attic", wifi=Wifi(ssid="other", password="long enough"))
    settings(places, settings(places) + "country = 'DE'\n" + "[wrong]\n")
    state = takeover.take_over(places, state)
    assert state.host_name == "attic"
    assert state.wifi == Wifi(ssid="home")  # its table was written anew, without a password
    assert state.problems == ["hob.toml: wrong: there is no such key; known are " + KNOWN]
    settings(places, settings(places).replace("kitchen", "cellar"))
    state = takeover.take_over(places, msgspec.structs.replace(state, ssh_keys=[]))
    assert (state.host_name, state.ssh_keys) == ("cellar", [])
    assert len(state.problems) == 1  # still there, still wrong


def test_what_is_not_mentioned_stays(places: Places) -> None:
    """A file with one key changes one thing: the rest may have been set on the page."""
    state = State(host_name="cellar", ssh_keys=[KEY], country="DE")
    settings(places, 'timezone = "Europe/Berlin"\n')
    after = takeover.take_over(places, state)
    assert (after.host_name, after.ssh_keys, after.timezone, after.country) == (
        "cellar",
        [KEY],
        "Europe/Berlin",
        "DE",
    )


def test_an_empty_list_of_keys_closes_ssh(places: Places) -> None:
    """[] is a wish, other than saying nothing."""
    settings(places, "ssh_keys = []\n")
    assert takeover.take_over(places, State(ssh_keys=[KEY])).ssh_keys == []


def test_the_country_follows_the_language_unless_said(places: Places) -> None:
    """A radio needs to know where it is; the locale is a fair guess, and no more."""
    settings(places, 'locale = "de_AT.UTF-8"\n')
    assert takeover.take_over(places, State()).country == "AT"
    settings(places, 'locale = "de_AT.UTF-8"\n[wifi]\ncountry = "CH"\n')
    assert takeover.take_over(places, State()).country == "CH"


def test_problems_are_kept_until_the_file_changes(places: Places) -> None:
    """They name file and key, and stand in the state for screen and page."""
    settings(places, 'hostname = "a b"\ntimezone = "UTC"\n')
    state = takeover.take_over(places, State())
    assert len(state.problems) == 1
    assert state.problems[0].startswith("hob.toml: hostname: must be letters")
    assert takeover.take_over(places, state).problems == state.problems
    settings(places, 'hostname = "ab"\n')
    assert takeover.take_over(places, state).problems == []


def test_a_broken_file_stays_as_it_is(places: Places) -> None:
    """It cannot be read, so nothing is removed from it; the complaint names the line."""
    text = 'hostname = "a\npassword = "secret"\n'
    settings(places, text)
    state = takeover.take_over(places, State(host_name="cellar"))
    assert state.host_name == "cellar"
    assert "line 1" in state.problems[0]
    assert settings(places) == text


def test_imagers_files_are_taken_and_emptied(places: Places) -> None:
    """Key material leaves the boot partition; hob.toml, where it speaks too, wins."""
    (places.boot / "user-data").write_text(USER_DATA)
    (places.boot / "network-config").write_text(NETWORK_CONFIG)
    settings(places, 'hostname = "cellar"\n')
    state = takeover.take_over(places, State())
    assert state.host_name == "cellar"
    assert state.timezone == "Europe/Berlin"
    assert state.wifi is not None
    assert state.wifi.password == PSK
    for name in ("user-data", "network-config"):
        assert (places.boot / name).read_text() == takeover.LEFT
    assert takeover.take_over(places, state) == state


def test_bytes_that_are_no_text(places: Places) -> None:
    """UTF-16, as an editor may write it, is refused by name; UTF-8 with a mark in front is taken."""
    (places.boot / "hob.toml").write_bytes('hostname = "kitchen"\n'.encode("utf-16"))
    state = takeover.take_over(places, State())
    assert "hob.toml: is not UTF-8" in state.problems[0]
    (places.boot / "hob.toml").write_bytes(b"\xef\xbb\xbf" + b'hostname = "kitchen"\r\n')
    assert takeover.take_over(places, state).host_name == "kitchen"


def test_a_file_too_long_is_none(places: Places) -> None:
    """A gigabyte under the right name does not fill the memory."""
    settings(places, "#" * (takeover.LIMIT + 1))
    assert takeover.take_over(places, State()) == State()


def test_without_a_boot_partition_the_state_holds(tmp_path: Path) -> None:
    """A card slot that fails leaves the device as it was."""
    assert takeover.take_over(Places(tmp_path / "nowhere"), State(host_name="x")) == State(host_name="x")


def test_overwriting_leaves_no_bytes_behind(tmp_path: Path) -> None:
    """The same file, not a new one beside it: the secret's place on the card is written over."""
    file = tmp_path / "hob.toml"
    file.write_bytes(b"x" * 100)
    inode = file.stat().st_ino
    takeover.overwrite(file, b"short\n")
    assert file.read_bytes() == b"short\n"
    assert file.stat().st_ino == inode


@pytest.mark.parametrize(
    "text",
    [
        'wifi = {ssid = "home", password = "correct horse"}\n',
        'wifi.ssid = "home"\nwifi.password = "correct horse"\n',
        '[wifi]\nssid = "home"\n"password" = """\ncorrect horse"""\n',
        '[wifi]\nssid = "home" # not correct horse\npassword = "correct horse"\n',
        '# password = "correct horse"\nsetup_code = "correct horse"\n',
    ],
)
def test_secrets_are_found_wherever_toml_allows_them(text: str) -> None:
    """Inline tables, dotted keys, several lines, comments: the secret is gone, the rest says the same."""
    import tomllib

    left = scrub.scrub(text)
    assert "correct horse" not in left
    table = tomllib.loads(text)
    table.pop("setup_code", None)
    table.get("wifi", {}).pop("password", None)
    assert tomllib.loads(left) == table


def test_a_file_without_secrets_is_left_to_the_byte() -> None:
    """Nothing to remove, nothing to write."""
    text = 'hostname="x"   # \t odd  spacing\r\n'
    assert scrub.scrub(text) is text


def test_a_damaged_state_is_said_and_begun_anew(places: Places, caplog: pytest.LogCaptureFixture) -> None:
    """Half a file would otherwise stop every start."""
    save(places.state, State(host_name="cellar"))
    (places.state / "device.json").write_bytes(b'{"host_name": "cel')
    assert load(places.state) == State()
    assert "device.json cannot be read" in caplog.text
