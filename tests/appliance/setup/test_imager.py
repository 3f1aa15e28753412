"""What Raspberry Pi Imager writes, as it writes it."""

from pathlib import Path

from appliance.setup import imager, wishes
from appliance.setup.wishes import Wifi
from tests.appliance.setup.device import KEY, make

PSK = "9b5ab9ea8b1d8e2d4f4f1f0d7a0c1e2b3c4d5e6f708192a3b4c5d6e7f8091a2b"

USER_DATA = f"""#cloud-config
hostname: kitchen
manage_etc_hosts: true
packages:
- avahi-daemon
apt:
  conf: |
    Acquire {{
      Check-Date "false";
    }};
timezone: Europe/Berlin
keyboard:
  model: pc105
  layout: "de"
enable_ssh: true
users:
- name: anna
  groups: users,adm,dialout,audio,netdev,video,plugdev,cdrom,games,input,gpio,spi,i2c,render,sudo
  shell: /bin/bash
  lock_passwd: true
  ssh_authorized_keys:
    - {KEY}
  sudo: ALL=(ALL) NOPASSWD:ALL
"""

NETWORK_CONFIG = f"""network:
  version: 2
  wifis:
    wlan0:
      dhcp4: true
      regulatory-domain: "DE"
      access-points:
        "Home \\"sweet\\" Home":
          hidden: true
          password: "{PSK}"
      optional: true
"""


def test_all_that_imager_asks_for_is_taken(tmp_path: Path) -> None:
    """Name, time zone, key, network and country, in hob.toml's words and through its checks."""
    table, notes = imager.read(USER_DATA, NETWORK_CONFIG)
    wished, problems = wishes.check(table, make(tmp_path).zones)
    assert notes == problems == []
    assert (wished.hostname, wished.timezone, wished.ssh_keys) == ("kitchen", "Europe/Berlin", [KEY])
    assert wished.wifi == Wifi(ssid='Home "sweet" Home', password=PSK, hidden=True)
    assert wished.country == "DE"


def test_a_password_for_a_user_is_left_out_and_said(tmp_path: Path) -> None:
    """Nobody logs in by password; whoever typed one learns it."""
    table, notes = imager.read(
        "hostname: hob\nenable_ssh: true\nusers:\n- name: anna\n  lock_passwd: false\n"
        "  passwd: $5$abc$def\nssh_pwauth: true\n",
        "",
    )
    assert table == {"hostname": "hob"}
    assert len(notes) == 1
    assert "password for a Linux user" in notes[0]
    assert "$5$" not in notes[0]


def test_commands_are_not_run_and_said() -> None:
    """Imager's own for the radio goes without a word; any other is named."""
    radio = (
        'runcmd:\n  - [ rfkill, unblock, wifi ]\n  - [ sh, -c, "for f in /x/rfkill/*; do echo 0; done" ]\n'
    )
    assert imager.read(radio, "") == ({}, [])
    _, notes = imager.read("#cloud-config\nruncmd:\n  - [ sh, -c, 'curl x | sh' ]\n", "")
    assert notes == ["user-data: runcmd was left out; Hob runs no commands from the boot partition."]


def test_scripts_and_other_things_are_refused() -> None:
    """A user-data that is a program, and YAML that is none, take nothing and are named."""
    for text, why in (
        ("#!/bin/sh\nreboot\n", "is a program"),
        ("a: [1,\n", "not valid YAML in line"),
        ("- a\n- b\n", "not a list of settings"),
        ("!!python/object/apply:os.system ['id']\n", "not valid YAML"),
    ):
        table, notes = imager.read(text, "")
        assert table == {}
        assert len(notes) == 1
        assert why in notes[0]


def test_networks_in_netplans_own_words() -> None:
    """Files written by hand: without the outer key, with auth, a fixed address, two networks."""
    table, notes = imager.read(
        "",
        """
version: 2
ethernets: {eth0: {addresses: [192.168.1.2/24]}}
bonds: {}
wifis:
  wlan0:
    access-points:
      first: {auth: {key-management: sae, password: "long enough"}}
      second: {}
""",
    )
    assert table == {"wifi": {"ssid": "first", "hidden": False, "password": "long enough"}}
    assert [note.split(" was left")[0].split(" were left")[0] for note in notes] == [
        "network-config: bonds",
        "network-config: fixed addresses",
        "network-config: of several networks, only 'first' was taken.",
    ]


def test_an_open_network() -> None:
    """Imager writes an empty password."""
    table, notes = imager.read(
        "", 'network:\n  wifis:\n    wlan0:\n      access-points:\n        "cafe":\n          password: ""\n'
    )
    assert notes == []
    assert table == {"wifi": {"ssid": "cafe", "hidden": False, "password": ""}}


def test_empty_files_wish_nothing() -> None:
    """Who skips Imager's questions gets empty files, or ones with only a comment."""
    assert imager.read("", "") == ({}, [])
    assert imager.read("#cloud-config\n", "# nothing\n") == ({}, [])
