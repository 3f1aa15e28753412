"""What was tried and how it ended: a small file on the data partition that both slots read.

It is written by root alone and always whole: after a power cut it is the one before or the one after.
"""

import os
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

FILE: Final = Path("/var/lib/hob-system/update.json")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

State = Literal["writing", "waiting", "good", "failed", "returned"]

CUT_OFF: Final = "The device was switched off, or restarted, while the update was being written."
SILENT: Final = "It did not start, or did not come as far as its own check."


class Attempt(msgspec.Struct, frozen=True):
    """An update, or a way back, and what came of it.

    Attributes:
        slot: where it went: "a" or "b".
        version: what it installs.
        before: the version that ran then.
        state: "writing": going into the slot. "waiting": there; the next start, or this one, tries it.
            "good": it answered and stays. "failed": it could not be written. "returned": it was tried in
            vain, and the version before runs again.
        reason: why it failed or returned, for people; "" otherwise.
        at: when this state began, Unix time.
        boot: the kernel's id of the boot in which it was written.
    """

    slot: str
    version: str
    before: str
    state: State
    reason: str = ""
    at: float = 0.0
    boot: str = ""


class Record(msgspec.Struct, frozen=True):
    """The last attempt, and the version that each slot was seen or written with."""

    attempt: Attempt | None = None
    versions: dict[str, str] = {}


def read(file: Path | None = None) -> Record:
    """The record; an empty one where there is none, or none that can be read."""
    try:
        return msgspec.json.decode((file or FILE).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):  # no update depends on it: it only explains
        return Record()


def write(record: Record, file: Path | None = None) -> None:
    """Keep the record, on disk when this returns."""
    file = file or FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    with new.open("wb") as out:
        out.write(msgspec.json.encode(record))
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def begin(record: Record, attempt: Attempt) -> Record:
    """A new attempt begins: its slot holds nothing until it is written."""
    versions = {slot: version for slot, version in record.versions.items() if slot != attempt.slot}
    return Record(attempt, versions)


def turn(record: Record, state: State, reason: str = "", now: float | None = None) -> Record:
    """The attempt has come to a state. What lies in its slot is known once it is written."""
    attempt = record.attempt
    if attempt is None:
        return record
    at = time.time() if now is None else now
    versions = dict(record.versions)
    if state in ("waiting", "good"):
        versions[attempt.slot] = attempt.version
    return Record(msgspec.structs.replace(attempt, state=state, reason=reason, at=at), versions)


def settle(record: Record, current: str, version: str, boot: str, now: float | None = None) -> Record:
    """The record as it is to be read in this boot: slot `current` runs `version`.

    What a restart decided is drawn from it here: an installation that was cut off, a trial that led back.
    """
    record = Record(record.attempt, {**record.versions, current: version})
    attempt = record.attempt
    if attempt is None or attempt.boot == boot:
        return record
    if attempt.state == "writing":
        return turn(record, "failed", CUT_OFF, now)
    if attempt.state == "waiting" and attempt.slot != current:
        return turn(record, "returned", attempt.reason or SILENT, now)
    return record


def boot_id() -> str:
    """The kernel's name for this boot."""
    return BOOT_ID.read_text().strip()
