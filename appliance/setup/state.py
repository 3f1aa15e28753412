"""The device's settings, as they hold: one file on the data partition, replaced whole."""

import contextlib
import logging
import os
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from appliance.setup.wishes import Wifi, Wishes

log = logging.getLogger(__name__)

FILE = "device.json"

Value = TypeVar("Value")


class State(Struct, frozen=True, kw_only=True):
    """How the device is set up.

    Attributes:
        taken: by name of a file of the boot partition, the SHA-256 of what was in it when Hob had last read
        it and
            taken its secrets out: what differs from it was written by a person since.
        keys: of each key of `hob.toml`, the SHA-256 of its value when Hob had last read it.
        problems: what was wrong in these files.
    """

    host_name: str = "hob"
    locale: str = ""
    timezone: str = "UTC"
    ssh_keys: list[str] = []
    setup_code: str = ""
    ntp: bool | list[str] = False
    wifi: Wifi | None = None
    country: str = ""
    taken: dict[str, str] = {}
    keys: dict[str, str] = {}
    problems: list[str] = []


def merge(state: State, wishes: Wishes) -> State:
    """The state with what was wished for; what nothing was said about stays.

    A network without a password is an open one, unless it is the one that is set up: then its password was
    removed from the boot partition by Hob itself.
    """
    wifi = wishes.wifi
    if wifi and state.wifi and wifi.ssid == state.wifi.ssid and not wishes.password_given:
        wifi = msgspec.structs.replace(wifi, password=state.wifi.password)
    country = wishes.country
    if country is None:
        country = state.country or _land(wishes.locale or state.locale)
    return msgspec.structs.replace(
        state,
        host_name=_either(wishes.hostname, state.host_name),
        locale=_either(wishes.locale, state.locale),
        timezone=_either(wishes.timezone, state.timezone),
        ssh_keys=_either(wishes.ssh_keys, state.ssh_keys),
        setup_code=_either(wishes.setup_code, state.setup_code),
        ntp=_either(wishes.ntp, state.ntp),
        wifi=wifi or state.wifi,
        country=country,
    )


def _either(wish: Value | None, now: Value) -> Value:
    return now if wish is None else wish


def _land(locale: str) -> str:
    """The country of a locale: where nobody said more, the radio obeys its rules."""
    return locale.partition(".")[0].partition("@")[0].partition("_")[2]


def load(folder: Path) -> State:
    """The state kept in `folder`; a new one where there is none, or it cannot be read, which is logged."""
    file = folder / FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=State)
    except FileNotFoundError:
        return State()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.error("%s cannot be read, the device is set up anew: %s", file, error)
        return State()


def save(folder: Path, state: State) -> None:
    """Keep the state, for root alone, since it holds the Wi-Fi password. A power cut leaves old or new."""
    write(folder / FILE, msgspec.json.format(msgspec.json.encode(state)) + b"\n", 0o600)


def write(file: Path, content: bytes, mode: int, group: int = -1) -> None:
    """Put a file in place whole and durably, unless it is the same already: idle devices write nothing."""
    with contextlib.suppress(FileNotFoundError):
        if file.read_bytes() == content and file.stat().st_mode & 0o777 == mode:
            return
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as handle:
        os.fchmod(descriptor, mode)
        if group >= 0:
            os.fchown(descriptor, -1, group)
        handle.write(content)
        handle.flush()
        os.fsync(descriptor)
    new.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
