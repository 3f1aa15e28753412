"""The Wi-Fi network that was asked for, and what came of it: two small files between two of root's processes.

`join.json` is written by the administration, and its appearance starts the process that joins networks;
`joined.json` is that process's answer. Both are in memory only.
"""

import contextlib
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from appliance.setup.state import write
from appliance.setup.wishes import Wifi

Message = TypeVar("Message", bound=Struct)


class Wish(Struct, frozen=True, kw_only=True):
    """Join `wifi`, or forget the one there is (None). `number` tells two wishes apart."""

    number: str
    wifi: Wifi | None
    country: str = ""


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of wish `number`: joined, or why not."""

    number: str
    ssid: str
    problem: str = ""


def put(folder: Path, message: Wish | Outcome) -> None:
    """Leave a message."""
    write(folder / _name(type(message)), msgspec.json.encode(message), 0o600)


def get(folder: Path, kind: type[Message]) -> Message | None:
    """The message of a kind, if there is one."""
    try:
        return msgspec.json.decode((folder / _name(kind)).read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def clear(folder: Path, kind: type[Struct]) -> None:
    """Take a message away."""
    with contextlib.suppress(FileNotFoundError):
        (folder / _name(kind)).unlink()


def _name(kind: type[Struct]) -> str:
    return "join.json" if kind is Wish else "joined.json"
