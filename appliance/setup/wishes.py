"""What may stand in `hob.toml` on the boot partition: each key with its check, and errors that name the key.

A key that is wrong is reported and left out; the others hold. Whoever has neither screen nor network sees no
error at once, and should not lose the Wi-Fi by a wrong time zone.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from appliance.setup import ssh_keys

CODE_LETTERS: Final = 12
"""Letters and digits of a set-up code: it is also the set-up network's password, which can be guessed
offline."""

WIFI_KEYS: Final = ("ssid", "password", "country", "hidden")


class WishError(ValueError):
    """A value that its key cannot have; says why in words that follow the key."""


class Wifi(Struct, frozen=True, kw_only=True):
    """A Wi-Fi network. `password` is a passphrase, 64 hexadecimal digits of a key, or "" for an open
    network."""

    ssid: str
    password: str = ""
    hidden: bool = False


class Wishes(Struct, frozen=True, kw_only=True):
    """What a person asked for; None for what they said nothing about.

    `password_given` tells an open network from one whose password was taken over and removed before.
    """

    hostname: str | None = None
    locale: str | None = None
    timezone: str | None = None
    ssh_keys: list[str] | None = None
    setup_code: str | None = None
    ntp: bool | list[str] | None = None
    wifi: Wifi | None = None
    country: str | None = None
    password_given: bool = False


def read(text: str, zones: Path) -> tuple[Wishes, list[str]]:
    """The wishes in a TOML text, and a sentence for each thing that is wrong with it.

    Args:
        text: the file's content.
        zones: the time zone database, for the names it has.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return Wishes(), [f"The file is not valid TOML, so nothing in it was taken: {error}."]
    return check(table, zones)


def check(table: Mapping[str, object], zones: Path) -> tuple[Wishes, list[str]]:
    """As `read`, of a table that was parsed already."""
    problems: list[str] = []
    good: dict[str, object] = {}
    for key, value in table.items():
        if key == "wifi":
            good |= _wifi(value, problems)
        elif key not in CHECKS:
            problems.append(f"{key}: there is no such key; known are {', '.join(sorted([*CHECKS, 'wifi']))}.")
        else:
            try:
                good[key] = _timezone(value, zones) if key == "timezone" else CHECKS[key](value)
            except ValueError as error:
                problems.append(f"{key}: {error}.")
    return Wishes(**good), problems  # type: ignore[arg-type]  # each value was checked by its key's function


def _wifi(value: object, problems: list[str]) -> dict[str, object]:
    """The fields of `Wishes` that a [wifi] table gives; all of it or nothing."""
    if not isinstance(value, dict):
        problems.append("wifi: must be a table: [wifi], and below it ssid = … and password = ….")
        return {}
    wrong = len(problems)
    problems.extend(
        f"wifi.{key}: there is no such key; known are {', '.join(WIFI_KEYS)}."
        for key in value
        if key not in WIFI_KEYS
    )
    found: dict[str, object] = {}
    for key, test in (("ssid", ssid), ("password", wifi_password), ("country", country), ("hidden", _flag)):
        if key in value:
            try:
                found[key] = test(value[key])
            except ValueError as error:
                problems.append(f"wifi.{key}: {error}.")
    if "ssid" not in value and value.keys() - {"country"}:
        problems.append("wifi.ssid: is missing: the network's name.")
    if len(problems) > wrong:
        return {}
    fields: dict[str, object] = {"country": found["country"]} if "country" in found else {}
    if "ssid" in found:
        fields["wifi"] = Wifi(
            ssid=str(found["ssid"]),
            password=str(found.get("password", "")),
            hidden=found.get("hidden") is True,
        )
        fields["password_given"] = "password" in found
    return fields


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise WishError('must be text in quotes, such as "text"')  # not shown: it may be a secret
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise WishError(f"must be true or false, and is {value!r}")
    return value


def host_name(value: object) -> str:
    """A label of RFC 1123; capitals are made small."""
    name = _text(value).strip().lower().removesuffix(".local")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise WishError(
            f"must be letters, digits and hyphens, at most 63, not beginning or ending with a hyphen, "
            f"and is {value!r}"
        )
    if name == "localhost":
        raise WishError("cannot be localhost, which every machine calls itself")
    return name


def ssid(value: object) -> str:
    """A network's name: at most 32 bytes (IEEE 802.11 §9.4.2.2)."""
    name = _text(value)
    if not name or len(name.encode()) > 32:
        raise WishError(f"must have 1 to 32 bytes, and has {len(name.encode())}")
    if "\0" in name:
        raise WishError("has a character that no network's name can have")
    return name


def wifi_password(value: object) -> str:
    """A passphrase of 8 to 63 ASCII characters, 64 hexadecimal digits (IEEE 802.11 §J.4), or "" for none."""
    password = _text(value)
    if not password or re.fullmatch(r"[0-9a-fA-F]{64}", password):
        return password
    if not 8 <= len(password) <= 63:
        raise WishError(f"must have 8 to 63 characters, and has {len(password)}")
    if not (password.isascii() and password.isprintable()):
        raise WishError("may have letters without accents, digits, spaces and signs of an English keyboard")
    return password


def country(value: object) -> str:
    """ISO 3166-1 alpha-2."""
    code = _text(value).strip().upper()
    if not re.fullmatch("[A-Z]{2}", code):
        raise WishError(f"must be a country's two letters, such as DE or US, and is {value!r}")
    return code


def _locale(value: object) -> str:
    name = _text(value).strip()
    if not re.fullmatch(r"(C|POSIX|[a-z]{2,3}(_[A-Z]{2})?)(\.(UTF-8|utf-?8))?(@[a-z]+)?", name):
        raise WishError(f"must be a language and country, such as de_DE.UTF-8, and is {value!r}")
    return name


def _timezone(value: object, zones: Path) -> str:
    return time_zone(_text(value), zones)


def time_zone(name: str, zones: Path) -> str:
    """A name of the database below `zones`.

    Raises:
        WishError: it has no such zone.
    """
    name = name.strip()
    try:
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", name):
            with (zones / name).open("rb") as file:
                if file.read(4) == b"TZif":  # RFC 8536
                    return name
    except OSError:
        pass  # no such zone, as any other name that is none
    raise WishError(f"is none that is known: {name!r}; write it as in Europe/Berlin or UTC")


def _ssh_keys(value: object) -> list[str]:
    if isinstance(value, str):
        value = [line for line in value.splitlines() if line.strip()]
    if not isinstance(value, list):
        raise WishError('must be a list, such as ["ssh-ed25519 AAAA… me"]')
    keys = []
    for number, key in enumerate(value, 1):
        try:
            keys.append(ssh_keys.check(_text(key)))
        except ValueError as error:
            raise WishError(f"key {number} {error}") from error
    return keys


def _setup_code(value: object) -> str:
    code = _text(value).strip()
    letters = sum(char.isalnum() for char in code)
    if letters < CODE_LETTERS or len(code) > 63 or not (code.isascii() and code.isprintable()):
        raise WishError(
            f"must have {CODE_LETTERS} letters and digits or more, without accents, and at most 63 characters"
        )
    return code


def _ntp(value: object) -> bool | list[str]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, list):
        raise WishError('must be true, false, or a list of servers, such as ["ntp.example.org"]')
    for server in value:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?", _text(server)):
            raise WishError(f"has a server that is no name or address: {server!r}")
    return [str(server) for server in value]


CHECKS: Final[dict[str, Callable[[object], object]]] = {
    "hostname": host_name,
    "locale": _locale,
    "timezone": _text,
    "ssh_keys": _ssh_keys,
    "setup_code": _setup_code,
    "ntp": _ntp,
}
"""All keys but the table [wifi]."""
