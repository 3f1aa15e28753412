"""The two slots of a device and what runs, as RAUC and the image itself tell."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from appliance.errors import UpdateError

IMAGE: Final = Path("/etc/hob/image.toml")
BLOCKS: Final = Path("/sys/class/block")
SECTOR: Final = 512
"""Bytes in which the kernel counts a partition, whatever the disk's own are."""

NAMES: Final = ("a", "b")
PARTITIONS: Final = {"rootfs": "root", "boot": "boot"}
"""Beginnings of the labels of the partitions behind RAUC's slot classes."""


@dataclass(frozen=True)
class Slots:
    """What runs here and from where.

    Attributes:
        compatible: what the device calls itself.
        version: what runs.
        current: the slot that runs: "a" or "b".
        default: the slot that boots when nothing else was said.
        next: the slot that the next start takes.
        good: slots that have answered before.
        room: bytes of the smallest partition behind each class of slot, where that can be told.
    """

    compatible: str
    version: str
    current: str
    default: str
    next: str
    good: frozenset[str]
    room: dict[str, int] = field(default_factory=dict)

    @property
    def other(self) -> str:
        """The slot that does not run."""
        return next(name for name in NAMES if name != self.current)

    @property
    def on_trial(self) -> bool:
        """Whether what runs has yet to show that it works."""
        return self.current != self.default


class _Slot(msgspec.Struct):
    """A slot in RAUC's answer; of slots without a boot name nobody asks."""

    bootname: str | None = None
    boot_status: str | None = None
    state: str = ""


class _Status(msgspec.Struct):
    """`rauc status --output-format=json`."""

    compatible: str
    boot_primary: str | None
    slots: list[dict[str, _Slot]]


def parse(status: str, default: str, image: str, room: dict[str, int]) -> Slots:
    """Put together what RAUC says, the loader's default, image.toml's text, and the partitions' sizes.

    Raises:
        UpdateError: they do not describe a device with two slots.
    """
    try:
        told = msgspec.json.decode(status, type=_Status)
        about = tomllib.loads(image)
        by_name = {name: slot for one in told.slots for name, slot in one.items() if slot.bootname}
        current = next(slot.bootname for slot in by_name.values() if slot.state == "booted")
        primary = by_name[told.boot_primary].bootname if told.boot_primary in by_name else default
        if {slot.bootname for slot in by_name.values()} != set(NAMES) or default not in NAMES:
            raise ValueError("its slots are not called a and b")
        return Slots(
            compatible=told.compatible,
            version=str(about["version"]),
            current=current or "",
            default=default,
            next=primary or default,
            good=frozenset(
                slot.bootname for slot in by_name.values() if slot.bootname and slot.boot_status == "good"
            ),
            room=room,
        )
    except (msgspec.MsgspecError, ValueError, KeyError, StopIteration) as error:
        raise UpdateError(
            f"this device does not say what runs on it: {error or 'no slot is booted'}",
            hint="`rauc status` shows what it knows.",
        ) from error


def room(blocks: Path = BLOCKS) -> dict[str, int]:
    """Bytes of the smallest partition behind each class of slot."""
    sizes = dict(_partitions(blocks))
    return {
        kind: min(found)
        for kind, label in PARTITIONS.items()
        if (found := [size for name, size in sizes.items() if name in (f"{label}-a", f"{label}-b")])
    }


def _partitions(blocks: Path) -> Iterator[tuple[str, int]]:
    """Label and size of every partition of this machine."""
    for entry in blocks.glob("*/uevent"):
        for line in entry.read_text().splitlines():
            if line.startswith("PARTNAME="):
                yield line.partition("=")[2], int((entry.parent / "size").read_text()) * SECTOR
