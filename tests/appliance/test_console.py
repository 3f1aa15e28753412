"""What `hob serve` prints."""

from pathlib import Path

import pytest

from appliance.cli.console import Console, addresses
from appliance.config import Settings, load_settings
from appliance.system import Health

OK = Health("ok", "hob-guide")


def settings(tmp_path: Path, **flags: object) -> Settings:
    """Settings of a Hob on port 8080."""
    return load_settings(data_dir=tmp_path, **flags)


def test_loopback_is_said_to_be_private(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The address, a QR code, and that other machines do not reach it."""
    Console(settings(tmp_path)).settled(OK)
    printed = capsys.readouterr()
    assert printed.out.startswith("Hob is at http://127.0.0.1:8080\n")
    assert "▀" in printed.out
    assert "Only this machine reaches it" in printed.out
    assert printed.err == ""


def test_lan_is_shown_by_name_and_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the LAN the name comes first, IPv4 addresses after it, and the code for the first visitor."""
    console = Console(settings(tmp_path, lan=True, name="attic"))
    console.setup_code = "K7WQ-3MZP"
    console.settled(OK)
    printed = capsys.readouterr().out
    assert printed.startswith("Hob is at http://attic.local:8080")
    assert "K7WQ-3MZP" in printed
    assert "Only this machine" not in printed
    console.named("attic.local")
    assert capsys.readouterr().out == ""
    console.named("attic-2.local")
    assert "http://attic-2.local:8080" in capsys.readouterr().out


def test_trouble_is_told_beside_the_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A Hob that cannot answer says why, and still where it is; when it has recovered it says so, once."""
    console = Console(settings(tmp_path))
    console.settled(Health("starting", "hob-guide", "the engine is not running"))
    printed = capsys.readouterr()
    assert printed.err.startswith("hob: the engine is not running\n")
    assert "Hob is at http://127.0.0.1:8080" in printed.out
    console.settled(OK)
    printed = capsys.readouterr()
    assert "can answer again" in printed.err
    assert printed.out == ""


def test_no_qr_code_in_the_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under systemd the address is one line of the log."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    Console(settings(tmp_path)).settled(OK)
    assert "▀" not in capsys.readouterr().out


def test_ipv6_addresses_are_bracketed(tmp_path: Path) -> None:
    """An IPv6 address in a URL stands in brackets (RFC 3986, section 3.2.2)."""
    assert addresses(settings(tmp_path, host="::1")) == ["http://[::1]:8080"]
