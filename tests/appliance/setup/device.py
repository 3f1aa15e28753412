"""A device's folders in a temporary root, for tests."""

from pathlib import Path

from appliance.setup.places import Places

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEIP0du7ZPjP2e9c1uB7ajnjLEYY4iJNCvEv5XQhKxD7 phone"
"""A public key, made for tests."""


def make(root: Path) -> Places:
    """An empty device: boot partition, data partition, time zones, and a machine id."""
    for folder in (
        "boot",
        "var/lib/hob-system",
        "run/hob-network",
        "run/hob-screen",
        "proc/sys/kernel",
        "etc",
    ):
        (root / folder).mkdir(parents=True)
    zones = root / "usr/share/zoneinfo/Europe"
    zones.mkdir(parents=True)
    for name in ("Berlin", "../UTC"):
        (zones / name).write_bytes(b"TZif2" + bytes(39))
    (root / "usr/share/zoneinfo/leapseconds").write_text("# no zone\n")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    return Places(root)
