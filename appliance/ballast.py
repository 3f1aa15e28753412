"""Room kept back, so that a full disk can still be tidied up.

SQLite cannot so much as open a database on a disk without a free block, and without the database there is
no page that says what is wrong. So the data folder holds a file of no content, the ballast. It is thrown
off when the disk is all but full, which leaves Hob room to start, to answer and to delete things, and taken
on again when there is room for it and more.
"""

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Final, Literal

from appliance.library import space

log = logging.getLogger(__name__)

FILE: Final = ".ballast"
WEIGHT: Final = 32 * 2**20
LOW: Final = 8 * 2**20
"""Bytes free below which the ballast is thrown off."""
AMPLE: Final = WEIGHT + 64 * 2**20
"""Bytes free from which it is taken on: far enough from `LOW` that it does not come and go."""
FIRST: Final = 10.0
"""Seconds from the start to the first look, which is nothing that a start should wait for."""
EVERY: Final = 60.0
"""Seconds between looks at the disk. A look writes nothing."""

Change = Literal["none", "take on", "throw off"]


def decide(free: int, aboard: bool) -> Change:
    """What to do with `free` bytes on the disk, `aboard` telling whether the ballast is there."""
    if aboard:
        return "throw off" if free < LOW else "none"
    return "take on" if free >= AMPLE else "none"


def throw_off(folder: Path) -> None:
    """Make room if the disk is all but full; to be called before anything is opened. Never raises."""
    _trim(folder, {"throw off"})


def short(folder: Path) -> str:
    """For people: that the disk is full and what helps; "" while there is room."""
    with contextlib.suppress(OSError):
        aboard = (folder / FILE).exists()
        if not aboard and (free := space.free(folder)) < AMPLE:
            return f"The disk is full: {space.size(free)} are left. Remove models that you do not need."
    return ""


async def keep(folder: Path) -> None:
    """Look after the ballast until cancelled."""
    await asyncio.sleep(FIRST)
    while True:
        await asyncio.to_thread(_trim, folder, {"throw off", "take on"})
        await asyncio.sleep(EVERY)


def _trim(folder: Path, allowed: set[Change]) -> None:
    file = folder / FILE
    with contextlib.suppress(OSError):  # a disk that refuses even this is reported by whoever needs it
        change = decide(space.free(folder), file.exists())
        if change == "throw off" and change in allowed:
            file.unlink()
            log.warning("the disk of %s is full: the room kept back for this was given up", folder)
        elif change == "take on" and change in allowed:
            _take_on(file)


def _take_on(file: Path) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, WEIGHT)
        else:  # macOS
            os.write(handle, bytes(WEIGHT))
    except OSError:
        file.unlink()
        raise
    finally:
        os.close(handle)
