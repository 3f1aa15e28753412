"""The first line of a backup, which anybody may read: what it is, and what opens it.

    hob-backup 1 {"created": ..., "reason": ..., "recipients": [...], "kdf": {...} or null, ...}\\n

The rest of the file is an age file (age-encryption.org/v1) for these recipients, of a gzip file, of a tar.
`tail -n +2 FILE | age -d -i KEY | tar xz` takes a backup apart without Hob.
"""

from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal

import msgspec

from appliance.backup.keys import RECIPIENT, Kdf
from appliance.errors import BackupError
from appliance.library import space

MAGIC: Final = b"hob-backup "
VERSION: Final = 1
MAX_BYTES: Final = 16 * 1024
SUFFIX: Final = ".hobbackup"

Text = Annotated[str, msgspec.Meta(max_length=200)]
Reason = Literal["nightly", "manual", "restore"]


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the first line says. It is not secret and not proven: what counts is said again inside.

    Attributes:
        created: Unix time.
        reason: "nightly", "manual" (somebody asked), "restore" (before another one was restored).
        name: of the Hob that made it.
        version: of that Hob's program.
        recipients, kdf: what opens it; see `keys.Key`.
        portable: whether it can be read without the machine that made it.
    """

    created: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    reason: Reason
    name: Text
    version: Text
    recipients: Annotated[
        tuple[Annotated[str, msgspec.Meta(pattern=RECIPIENT)], ...], msgspec.Meta(min_length=1, max_length=16)
    ]
    kdf: Kdf | None = None
    portable: bool = True


def encode(header: Header) -> bytes:
    """The line, with its end."""
    return MAGIC + b"%d " % VERSION + msgspec.json.encode(header) + b"\n"


def read(stream: BinaryIO, where: str) -> tuple[Header, bytes]:
    """What the line says, and the line itself; `stream` stands before the age file then.

    Raises:
        BackupError: it is none, or one that only a newer Hob knows; names `where`.
        OSError: it cannot be read.
    """
    line = stream.readline(MAX_BYTES)
    if not line.startswith(MAGIC):
        raise BackupError(f"{where} is not a backup of Hob", hint=f"Backups are files NAME{SUFFIX}.")
    version, _, text = line[len(MAGIC) :].partition(b" ")
    if not version.isdigit() or not line.endswith(b"\n"):
        raise BackupError(f"{where} is damaged: its first line is not whole", hint="Take another copy of it.")
    if int(version) != VERSION:
        raise BackupError(
            f"{where} has version {int(version)} of the format, this Hob knows version {VERSION}",
            hint="Update this Hob first.",
        )
    try:
        return msgspec.json.decode(text, type=Header), line
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BackupError(
            f"{where} is damaged: its first line says {error}", hint="Take another copy of it."
        ) from error


def peek(path: Path) -> Header:
    """The header of a file.

    Raises:
        BackupError: it is no backup.
        LibraryError: it cannot be read.
    """
    with space.writing(path), path.open("rb") as stream:
        return read(stream, str(path))[0]
