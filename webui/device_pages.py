"""What the template of the device page is given; see `pages`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from webui.pages import Fact, Page, Sidebar


@dataclass(frozen=True)
class Network:
    """A Wi-Fi network in reach: what is posted to join it, and a word about it."""

    ssid: str
    note: str
    secure: bool
    usable: bool


@dataclass(frozen=True)
class DevicePage(Page):
    """The device itself: name, network, SSH, clock, power.

    Attributes:
        here: whether this is a device of its own; nothing else is shown where it is not.
        facts: how it is connected.
        name, zone: as they are set now.
        wifi: whether there is a radio.
        wifi_network: the network that is set up; "" for none.
        wifi_problem: why the one asked for last was not joined; "" where it was.
        country: whose radio rules hold; "" where nobody has said.
        networks: what a scan found; None where nobody has looked.
        keys: the SSH keys as text, a line each.
        fingerprints: the device's own, to compare.
        clock: the device's time as an input field takes it; "" where something keeps it.
        problems: what was wrong with the settings on the boot partition.
        note: what came of the last wish.
        problem, hint: why it was not granted, or why there is nothing to see.
    """

    template: ClassVar[str] = "device.html"
    sidebar: Sidebar
    here: bool
    facts: Sequence[Fact]
    name: str
    zone: str
    wifi: bool
    wifi_network: str
    wifi_problem: str
    country: str
    networks: Sequence[Network] | None
    keys: str
    fingerprints: Sequence[str]
    clock: str
    problems: Sequence[str]
    note: str
    problem: str
    hint: str
