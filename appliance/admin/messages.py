"""What may be asked of the device's own administration, and what it answers. Nothing else is understood.

One connection carries one request and its replies, each a line of JSON: any number of `Progress`, then one
reply that ends it: the request's own, or `Failed`. Unknown messages and unknown fields are refused. This
module is imported by both sides, so it stays free of the web stack.

To add a message: a struct here, its place in `Request` or `Reply`, and its handler in `handlers.HANDLERS`.
"""

from typing import Annotated

from msgspec import Meta, Struct

HostName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A label of RFC 1123, in small letters."""

Country = Annotated[str, Meta(pattern="^[A-Z]{2}$")]
"""ISO 3166-1 alpha-2; the radio obeys this country's rules."""

FilePath = Annotated[str, Meta(min_length=2, max_length=4096, pattern="^/")]
"""A file of this machine; the handler decides which folders it may be in."""

Ssid = Annotated[str, Meta(min_length=1, max_length=32)]
"""A Wi-Fi network's name, at most 32 bytes of UTF-8."""


# Requests


class Reboot(Struct, frozen=True, tag="reboot", forbid_unknown_fields=True):
    """Restart the device. Answered by `Done` before it goes down."""


class PowerOff(Struct, frozen=True, tag="power-off", forbid_unknown_fields=True):
    """Switch the device off. Answered by `Done` before it goes down."""


class DescribeDevice(Struct, frozen=True, tag="describe-device", forbid_unknown_fields=True):
    """How the device is set up. Answered by `Device`."""


class SetHostName(Struct, frozen=True, kw_only=True, tag="set-host-name", forbid_unknown_fields=True):
    """Call the device `name` on the network. The service starts anew under it, right after `Done`."""

    name: HostName


class SetSshKeys(Struct, frozen=True, kw_only=True, tag="set-ssh-keys", forbid_unknown_fields=True):
    """Let exactly these public keys in by SSH; none closes SSH. Answered by `Done`."""

    keys: Annotated[list[Annotated[str, Meta(max_length=16384)]], Meta(max_length=64)]


class SetTimeZone(Struct, frozen=True, kw_only=True, tag="set-time-zone", forbid_unknown_fields=True):
    """A name of the IANA database, such as Europe/Berlin. Answered by `Done`."""

    zone: Annotated[str, Meta(max_length=64)]


class SetClock(Struct, frozen=True, kw_only=True, tag="set-clock", forbid_unknown_fields=True):
    """Set the clock, in seconds since 1970 (UTC). Answered by `Done`."""

    seconds: Annotated[int, Meta(ge=0, le=2**40)]


class ScanWifi(Struct, frozen=True, tag="scan-wifi", forbid_unknown_fields=True):
    """Look for Wi-Fi networks; takes some seconds. Answered by `WifiNetworks`."""


class SetWifi(Struct, frozen=True, kw_only=True, tag="set-wifi", forbid_unknown_fields=True):
    """Join this network, now and at every start. An empty password is an open network.

    Answered by `Progress`, and by `Done` once the device has an address there. When the network refuses, the
    one before stays set up.
    """

    ssid: Ssid
    password: Annotated[str, Meta(max_length=64)] = ""
    country: Country | None = None
    hidden: bool = False


class ForgetWifi(Struct, frozen=True, tag="forget-wifi", forbid_unknown_fields=True):
    """Leave the Wi-Fi network and forget its password. Answered by `Done`."""


class DescribeUpdates(Struct, frozen=True, tag="describe-updates", forbid_unknown_fields=True):
    """What runs, what lies in the other slot, how the last update went. Answered by `Updates`."""


class InspectUpdate(Struct, frozen=True, kw_only=True, tag="inspect-update", forbid_unknown_fields=True):
    """Whether this device would take an update file; its content is not read. Answered by `Offered`."""

    path: FilePath


class InstallUpdate(Struct, frozen=True, kw_only=True, tag="install-update", forbid_unknown_fields=True):
    """Write an update file into the other slot, to be tried at the next start. `Progress`, then `Done`.

    Whatever the file is, it is only taken when somebody whom the device trusts has signed it.
    """

    path: FilePath


class GoBack(Struct, frozen=True, tag="go-back", forbid_unknown_fields=True):
    """Try the other slot at the next start, if it has answered before. Answered by `Done`."""


# Replies


class Progress(Struct, frozen=True, kw_only=True, tag="progress"):
    """How far it has come: a sentence for people, and a fraction (0 to 1) where one is known.

    One without text is only a sign of life.
    """

    text: str = ""
    fraction: float | None = None


class Done(Struct, frozen=True, kw_only=True, tag="done"):
    """It is done; `text` says in a sentence what."""

    text: str = ""


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """It was refused or did not work. `code` is that of an `appliance.errors` class."""

    code: str
    message: str
    hint: str = ""


class WifiNetwork(Struct, frozen=True, kw_only=True):
    """A network in reach; `signal` in per cent. `secure` is false for an open one.

    `usable` is false for one that Hob does not join: WEP, or a user name beside the password.
    """

    ssid: str
    signal: int
    secure: bool
    usable: bool = True


class WifiNetworks(Struct, frozen=True, kw_only=True, tag="wifi-networks"):
    """What a scan found, strongest first, each name once."""

    networks: list[WifiNetwork]


class Link(Struct, frozen=True, kw_only=True):
    """A network interface: "ethernet" or "wifi", what it is connected to ("" for nothing), its addresses."""

    interface: str
    kind: str
    network: str
    addresses: list[str]


class Device(Struct, frozen=True, kw_only=True, tag="device"):
    """How the device is set up.

    Attributes:
        host_name: without .local.
        zone: IANA time zone.
        seconds: the device's clock, seconds since 1970.
        clock_kept: whether a battery keeps the clock, or a time server has set it.
        ssh_keys: the public keys that SSH lets in.
        ssh_host_keys: fingerprints to compare at the first connection.
        wifi: whether there is a radio.
        wifi_network: the network that is set up; "" for none.
        wifi_problem: why the network that was asked for last was not joined; "" where it was.
        country: whose radio rules hold; "" where nobody has said.
        set_up_network: the device's own set-up network, while it has one; else "".
        links: the interfaces.
        problems: what was wrong with the settings on the boot partition, one sentence each.
    """

    host_name: str
    zone: str
    seconds: int
    clock_kept: bool
    ssh_keys: list[str]
    ssh_host_keys: list[str]
    wifi: bool
    wifi_network: str
    wifi_problem: str
    country: str
    set_up_network: str
    links: list[Link]
    problems: list[str]


class Updates(Struct, frozen=True, kw_only=True, tag="updates"):
    """The two slots, and the last update.

    Attributes:
        compatible: the kind of device, as updates name it.
        version: what runs.
        slot: where it runs from: "a" or "b".
        on_trial: whether it has yet to answer its first question.
        other: the version in the other slot; "" for none, or none that is known.
        can_go_back: whether what is in the other slot has answered before.
        next: the slot that the next start takes.
        tried: the version that was last installed or gone back to; "" for none. So are the fields below.
        tried_from: the version that ran then.
        state: "writing", "waiting" (for a restart, or for its first answer), "good", "failed" (not written)
            or "returned" (it did not answer, and the version before runs again).
        reason: why it failed or returned.
        at: when that was, Unix time.
    """

    compatible: str
    version: str
    slot: str
    on_trial: bool
    other: str
    can_go_back: bool
    next: str
    tried: str = ""
    tried_from: str = ""
    state: str = ""
    reason: str = ""
    at: float = 0.0


class Offered(Struct, frozen=True, kw_only=True, tag="offered"):
    """An update file that this device would take: its version, and whether that is newer than what runs."""

    version: str
    newer: bool


Request = (
    Reboot
    | PowerOff
    | DescribeDevice
    | SetHostName
    | SetSshKeys
    | SetTimeZone
    | SetClock
    | ScanWifi
    | SetWifi
    | ForgetWifi
    | DescribeUpdates
    | InspectUpdate
    | InstallUpdate
    | GoBack
)
Final = Done | Failed | Device | WifiNetworks | Updates | Offered
Reply = Progress | Final
