"""The folder of backups on the data partition: which there are, which go, and how the last attempt ended."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from appliance.backup import header, keys
from appliance.backup.header import SUFFIX, Header, Reason
from appliance.errors import BackupError, ConflictError, HobError, NotFoundError
from appliance.library import space

NAME: Final = "backups"
LAST: Final = "last.json"
MAKING: Final = ".making-"
PART: Final = f".hob-*{SUFFIX}.part"

SAFETY: Final = 2
"""Backups kept of those that are made before another one is restored."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup in a folder: what its first line says, its size in bytes."""

    path: Path
    header: Header
    size: int

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name


class Last(msgspec.Struct, frozen=True, kw_only=True):
    """How the last attempts ended.

    Attributes:
        fingerprint: of what the newest backup holds; "" when none was made yet.
        file: name of that backup.
        failed: Unix time of an attempt that failed since; 0 when none did.
        error, hint: why, and the next step.
    """

    fingerprint: str = ""
    file: str = ""
    failed: int = 0
    error: str = ""
    hint: str = ""


def of(data_dir: Path) -> Path:
    """The folder of backups in a data folder."""
    return data_dir / NAME


def backups(folder: Path) -> list[Backup]:
    """The backups in a folder, newest first. Files that are none are passed over."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else ():
        with contextlib.suppress(HobError, OSError):
            found.append(Backup(path, header.peek(path), path.stat().st_size))
    return sorted(found, key=lambda backup: (backup.header.created, backup.name), reverse=True)


def find(folder: Path, name: str) -> Backup:
    """The backup of this name in a folder.

    Raises:
        NotFoundError: there is none.
    """
    for backup in backups(folder):
        if backup.name == name:
            return backup
    raise NotFoundError(f"no backup {name[:100]!r}", hint="`hob backup list` shows those that there are.")


def expired(found: Sequence[Backup], keep: int) -> list[Backup]:
    """Those of a folder's backups, newest first, that may go: beyond `keep`, and nobody asked for them.

    Those made by hand stay until somebody removes them.
    """
    limits: dict[Reason, int] = {"nightly": keep, "restore": SAFETY}
    gone = []
    for reason, limit in limits.items():
        gone += [backup for backup in found if backup.header.reason == reason][limit:]
    return gone


def free_name(folder: Path, created: int) -> Path:
    """A name for a backup made at a time, that no file has yet: hob-20261122-033000.hobbackup."""
    stem = datetime.fromtimestamp(created, UTC).strftime("hob-%Y%m%d-%H%M%S")
    path, number = folder / f"{stem}{SUFFIX}", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}{SUFFIX}", number + 1
    return path


def last(folder: Path) -> Last:
    """How the last attempts ended; nothing is known where that cannot be read."""
    try:
        return msgspec.json.decode((folder / LAST).read_bytes(), type=Last)
    except (OSError, msgspec.MsgspecError):
        return Last()


def remember(folder: Path, what: Last) -> None:
    """Keep how an attempt ended; a disk that refuses is not what the person has to hear about."""
    with contextlib.suppress(HobError):
        keys.write(folder / LAST, msgspec.json.encode(what))


def failed(folder: Path, error: HobError) -> None:
    """Keep why an attempt failed, for the page."""
    remember(
        folder,
        msgspec.structs.replace(last(folder), failed=int(time.time()), error=error.message, hint=error.hint),
    )


@contextlib.contextmanager
def working(folder: Path) -> Iterator[Path]:
    """A folder to work in, beside the backups, for one process at a time; gone afterwards, whatever happens.

    Raises:
        ConflictError: another process is making a backup.
        DiskFullError, LibraryError: the disk refuses.
    """
    with space.writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError("a backup is being made already", hint="Wait until it is done.") from error
        sweep(folder, MAKING)
        sweep(folder, f".*{keys.PART}", 60)  # of a page that sets a passphrase at this moment, not
        inside = folder / f"{MAKING}{os.getpid()}"
        try:
            with space.writing(folder):
                inside.mkdir(mode=0o700)
            yield inside
        finally:
            shutil.rmtree(inside, ignore_errors=True)
    finally:
        os.close(held)


def sweep(folder: Path, prefix: str, seconds: float = 0) -> None:
    """Remove what processes that were killed left under names with this prefix, if older than `seconds`."""
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime + seconds <= time.time():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def sound(path: Path) -> Backup:
    """A file, wherever it lies, as a backup.

    Raises:
        BackupError: it is none.
        LibraryError: it cannot be read.
    """
    if path.is_dir():
        raise BackupError(f"{path} is a folder", hint=f"Give the file: NAME{SUFFIX}.")
    with space.writing(path):
        return Backup(path, header.peek(path), path.stat().st_size)
