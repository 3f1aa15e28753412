"""Update files on their way: those that were fetched or sent here, and those on sticks.

What was fetched lies in the data folder until it is installed or refused; what broke off goes on from there.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.library import space
from appliance.library.sticks import ROOTS

SUFFIX: Final = ".raucb"

DEEP: Final = ("*", "*/*", "*/*/*", "*/*/*/*")
"""How far below a root files are looked for: /run/media/USER/STICK/FOLDER/FILE at most."""

MOST: Final = 20
KEPT: Final = 7 * 86_400.0
"""Seconds after which what nobody came back for is deleted."""

PIECE: Final = 2**20


@dataclass(frozen=True, slots=True)
class Found:
    """An update file on a stick; `size` in bytes."""

    path: Path
    size: int


def folder(data_dir: Path) -> Path:
    """Where fetched files lie."""
    return data_dir / "updates"


def sticks(roots: Sequence[Path] = ROOTS) -> list[Found]:
    """Update files on sticks and disks that are plugged in; by name alone."""
    found = []
    for root in roots:
        for depth in DEEP:
            for path in sorted(root.glob(f"{depth}{SUFFIX}")):
                with contextlib.suppress(OSError):  # pulled out meanwhile
                    if path.is_file():
                        found.append(Found(path, path.stat().st_size))
    return found[:MOST]


def take(file: Path, data_dir: Path, received: Callable[[int, int | None], None]) -> Path:
    """Copy a file of this machine to where root's administration takes it from.

    Raises:
        DiskFullError, LibraryError: no room, or it cannot be read.
    """
    place = folder(data_dir)
    with space.writing(place):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        total = file.stat().st_size
        space.ensure(place, total, space.RESERVE)
        target = place / f"{file.stem}{SUFFIX}"
        if target.exists() and target.samefile(file):
            return target
        part = target.with_name(f"{target.name}.copy")
        try:
            with file.open("rb") as source, part.open("wb") as out:
                while piece := source.read(PIECE):
                    out.write(piece)
                    received(out.tell(), total)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        give(target, data_dir)
    return target


def give(file: Path, data_dir: Path) -> None:
    """What root put into the service's folder is to be the service's."""
    if os.geteuid() == 0:
        owner = data_dir.stat()
        for path in (file.parent, file):
            os.chown(path, owner.st_uid, owner.st_gid)


def sweep(data_dir: Path, now: float | None = None) -> None:
    """Delete what nobody came back for."""
    limit = (time.time() if now is None else now) - KEPT
    for path in folder(data_dir).glob("*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime < limit:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
