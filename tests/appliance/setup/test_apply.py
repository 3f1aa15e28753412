"""The whole of hob-setup.service in a temporary root, with small programs in place of the system's."""

import os
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from appliance.setup import apply
from appliance.setup.places import Places
from appliance.setup.state import State, load
from appliance.setup.wishes import Wifi
from tests.appliance.setup.device import KEY, make


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A device that has a radio."""
    places = make(tmp_path / "device")
    (places.radios / "phy0").mkdir(parents=True)
    return places


def start(places: Places) -> list[str]:
    """Run the unit's command as the unit does; the programs it called, with their arguments.

    systemctl and iw act on a running system; here they note what they are asked.
    """
    programs = places.root.parent / "programs"
    programs.mkdir(exist_ok=True)
    called = programs / "called"
    called.write_text("")
    for name in ("systemctl", "iw"):
        program = programs / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>{called}\n')
        program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "appliance.setup"],
        env=os.environ | {"HOB_ROOT": str(places.root), "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in done.stderr
    return called.read_text().splitlines()


def mode(file: Path) -> int:
    """A file's permissions."""
    return stat.S_IMODE(file.stat().st_mode)


def test_the_first_start_of_a_device_that_nobody_has_configured(places: Places) -> None:
    """It gets a code, keeps its id, says where it is, and opens nothing."""
    called = start(places)
    state = load(places.state)
    assert len(state.setup_code) == 14
    settings = tomllib.loads((places.state / "hob.toml").read_text())
    assert settings == {"name": "hob", "setup_code": state.setup_code}
    assert mode(places.state / "hob.toml") == 0o640
    assert (places.state / "machine-id").read_text() == (places.root / "etc/machine-id").read_text()
    assert (places.root / "proc/sys/kernel/hostname").read_text() == "hob"
    assert (places.state / "localtime").readlink() == places.zones / "UTC"
    report = (places.boot / "hob-setup.txt").read_text()
    assert "http://hob.local" in report
    assert state.setup_code in report
    assert "systemctl --no-block stop hob-ssh.socket" in called
    assert not (places.state / "ssh/ssh_host_ed25519_key").exists()
    assert not (places.state / "connections/wifi.nmconnection").exists()
    assert not any("timesyncd" in line or line.startswith("iw") for line in called)


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
def test_settings_on_the_boot_partition_take_effect(places: Places) -> None:
    """Name, zone, keys, network, country and servers arrive where the system reads them."""
    (places.boot / "hob.toml").write_text(
        f'hostname = "kitchen"\ntimezone = "Europe/Berlin"\nntp = ["192.168.1.1"]\nssh_keys = ["{KEY}"]\n'
        '[wifi]\nssid = "home"\npassword = "correct horse"\ncountry = "DE"\n'
    )
    called = start(places)
    assert (places.root / "proc/sys/kernel/hostname").read_text() == "kitchen"
    assert (places.state / "localtime").readlink() == places.zones / "Europe/Berlin"
    assert (places.state / "ssh/authorized_keys").read_text() == f"{KEY}\n"
    connection = places.state / "connections/wifi.nmconnection"
    assert mode(connection) == 0o600
    assert "psk=correct horse\n" in connection.read_text()
    assert called == [
        "iw reg set DE",
        "systemctl --no-block start hob-ssh.socket",
        "systemctl --no-block restart systemd-timesyncd.service",
    ]
    assert mode(places.state / "ssh/ssh_host_ed25519_key") == 0o600
    assert (
        places.root / "run/systemd/timesyncd.conf.d/10-owner.conf"
    ).read_text() == "[Time]\nNTP=192.168.1.1\n"


def test_a_second_start_writes_nothing(places: Places) -> None:
    """Cards wear out: what is right already is not written again; code and id stay."""
    (places.boot / "hob.toml").write_text('hostname = "kitchen"\n')
    start(places)
    files = [file for file in places.root.rglob("*") if file.is_file() and "proc" not in file.parts]
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
    start(places)
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files} == before


def test_what_was_wrong_stands_on_the_screen_and_beside_the_settings(places: Places) -> None:
    """Until it is put right."""
    (places.boot / "hob.toml").write_text('timezone = "Mars"\n')
    start(places)
    for file in (places.notes / "settings.txt", places.boot / "hob-setup.txt"):
        assert "hob.toml: timezone: is none that is known: 'Mars'" in file.read_text()
    (places.boot / "hob.toml").write_text('timezone = "UTC"\n')
    start(places)
    assert not (places.notes / "settings.txt").exists()
    assert "Nothing was wrong" in (places.boot / "hob-setup.txt").read_text()


def test_a_forgotten_network_leaves_no_file(places: Places) -> None:
    """Its password goes with it."""
    apply.write_files(places, State(wifi=Wifi(ssid="home", password="correct horse"), setup_code="x" * 12))
    apply.write_files(places, State(setup_code="x" * 12))
    assert not (places.state / "connections/wifi.nmconnection").exists()


def test_the_first_id_is_kept_for_good(places: Places) -> None:
    """Only one that is an id, and never a second one."""
    (places.root / "etc/machine-id").write_text("uninitialized\n")
    apply.keep_machine_id(places)
    assert not (places.state / "machine-id").exists()
    (places.root / "etc/machine-id").write_text("a" * 32 + "\n")
    apply.keep_machine_id(places)
    (places.root / "etc/machine-id").write_text("b" * 32 + "\n")
    apply.keep_machine_id(places)
    assert (places.state / "machine-id").read_text() == "a" * 32 + "\n"
