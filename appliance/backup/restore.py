"""Prepare a backup for use: decrypt, check and migrate it beside what there is, which stays as it is.

    .restore/ready-TOKEN/    a backup that was checked and may be taken
    .restore/pending/        the one that the next start puts in place; see `pending`
    .restore/gone-*/         being deleted

From `commit` on, one rename, the backup is what the next start finds; up to there nothing has changed.
"""

import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from appliance.backup import folder, header, house, keys, sealing, snapshot
from appliance.backup.content import (
    DATABASE,
    KEY,
    KNOWN,
    MANIFEST,
    MODELS,
    SETTINGS,
    Manifest,
    Models,
    Unpacking,
)
from appliance.backup.header import Header
from appliance.backup.keys import Key, Opener
from appliance.config import Settings
from appliance.errors import BackupError, NotFoundError, PassphraseError, StoreError
from appliance.library import space
from appliance.library.shelf import sync
from appliance.store import Store

PLACE: Final = ".restore"
READY: Final = "ready-"
PENDING: Final = "pending"
GONE: Final = "gone-"
WAITS: Final = 3600.0
"""Seconds that a prepared backup waits for the word to take it."""

AGAIN: Final = "Take an older backup."
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A backup that was checked and may be taken.

    Attributes:
        token: names it for `commit`.
        manifest: what is in it.
        proven: whether it was made by this passphrase, or this machine, and not by somebody who only knows
            what to encrypt to.
        notes: what of it will not come back, in sentences.
    """

    token: str
    manifest: Manifest
    proven: bool
    notes: tuple[str, ...]


def opener(head: Header, data_dir: Path, *, passphrase: str = "", identity: str = "") -> Opener:
    """What opens a backup: an identity, a passphrase, or else the identity that lies on this machine.

    Raises:
        PassphraseError: it does not, or none is needed but the machine that made it.
        BackupError: the identity is none.
    """
    if identity:
        found = keys.opener_of(identity)
        if found.recipient not in head.recipients:
            raise PassphraseError(
                "the identity does not open this backup", hint=f"It was made for {head.recipients[0]}."
            )
        return found
    if head.kdf is None:
        return _own(head, folder.of(data_dir))
    if not passphrase:
        raise PassphraseError("this backup needs its passphrase", hint="The one of the time it was made.")
    found = keys.derive(passphrase, head.kdf)
    if found.recipient not in head.recipients:
        raise PassphraseError(
            "the passphrase is not right for this backup",
            hint="It needs the one that was set when it was made. Mind capitals and spaces.",
        )
    return found


def _own(head: Header, place: Path) -> Opener:
    for key in keys.own(place):
        if key.recipients[0] in head.recipients:
            return key.opener
    if head.portable:
        raise PassphraseError(
            "this backup needs the identity of its recipient",
            hint=f"It was made for {head.recipients[0]}: --identity-file FILE.",
        )
    raise PassphraseError(
        f"only the machine that made this backup can read it ({head.name})",
        hint="It was made before a passphrase was set there.",
    )


def look(path: Path, data_dir: Path, *, passphrase: str = "", identity: str = "") -> Manifest:
    """What is in a backup, by its first pieces alone.

    Raises:
        BackupError, PassphraseError: as `prepare`.
    """
    with space.writing(path), path.open("rb") as stream:
        head, line = header.read(stream, str(path))
        key = opener(head, data_dir, passphrase=passphrase, identity=identity)
        unpacking = Unpacking(str(path), line, key, None)
        sealing.unseal(stream, unpacking.taker(), key, str(path))
    assert unpacking.manifest is not None
    return unpacking.manifest


def prepare(
    path: Path, data_dir: Path, progress: Progress, *, passphrase: str = "", identity: str = ""
) -> Prepared:
    """Decrypt and check a backup and bring its database up to date, beside what is there.

    Raises:
        PassphraseError: what opens it is wrong, or missing.
        BackupError: it is damaged, no backup, or of a form that this Hob does not know.
        DiskFullError, LibraryError: no room, or a stick that is gone. Whatever it is, nothing has changed.
    """
    place = data_dir / PLACE
    sweep(data_dir)
    with space.writing(path):
        size = path.stat().st_size
    with space.writing(data_dir):
        space.ensure(data_dir, size, space.RESERVE)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        token = secrets.token_hex(16)
        inside = place / f"{READY}{token}"
        inside.mkdir(mode=0o700)
    try:
        progress("decrypting", 0.1)
        unpacking = _unpack(path, data_dir, inside, passphrase, identity)
        manifest = unpacking.manifest
        assert manifest is not None
        progress("checking", 0.6)
        _migrate(inside / DATABASE, str(path))
        notes = [*_settle(inside, str(path))]
        with space.writing(data_dir):
            keys.write(inside / MANIFEST, msgspec.json.encode(manifest))
            for file in inside.iterdir():
                if file.name not in (*KNOWN, MANIFEST):  # of a newer Hob, which knew what for
                    file.unlink()
                else:
                    sync(file)
            sync(inside)
        progress("checking", 1)
    except BaseException:
        shutil.rmtree(inside, ignore_errors=True)
        raise
    return Prepared(token, manifest, unpacking.proven, tuple(notes))


def verify(path: Path, data_dir: Path, *, passphrase: str = "", identity: str = "") -> Prepared:
    """Do all that restoring does, but leave it at that.

    Raises:
        PassphraseError, BackupError, DiskFullError, LibraryError: as `prepare`.
    """
    found = prepare(path, data_dir, lambda step, done: None, passphrase=passphrase, identity=identity)
    discard(data_dir, found.token)
    return found


def commit(data_dir: Path, token: str) -> None:
    """Have the next start put a prepared backup in place.

    Raises:
        NotFoundError: it is not there, or no longer.
        DiskFullError, LibraryError: the disk refuses.
    """
    place = data_dir / PLACE
    ready = _ready(data_dir, token)
    with space.writing(place):
        pending = place / PENDING
        if pending.exists():  # one that was not put in place yet gives way to a later wish
            pending.rename(place / f"{GONE}{secrets.token_hex(8)}")
        ready.rename(pending)
        sync(place)
    sweep(data_dir)


def discard(data_dir: Path, token: str) -> None:
    """Forget a prepared backup.

    Raises:
        NotFoundError: it is not there.
    """
    shutil.rmtree(_ready(data_dir, token), ignore_errors=True)


def prepared(data_dir: Path, token: str) -> Manifest:
    """What is in a prepared backup.

    Raises:
        NotFoundError: it is not there, or no longer.
    """
    return msgspec.json.decode((_ready(data_dir, token) / MANIFEST).read_bytes(), type=Manifest)


def sweep(data_dir: Path, *, all_ready: bool = False) -> None:
    """Remove what was prepared and never taken, and what others left."""
    folder.sweep(data_dir / PLACE, GONE)
    folder.sweep(data_dir / PLACE, READY, 0 if all_ready else WAITS)


def _ready(data_dir: Path, token: str) -> Path:
    path = data_dir / PLACE / f"{READY}{token}"
    if not (token.isalnum() and (path / MANIFEST).is_file()):
        raise NotFoundError("this backup is no longer prepared", hint="Choose it again.")
    return path


def _unpack(path: Path, data_dir: Path, inside: Path, passphrase: str, identity: str) -> Unpacking:
    # An error without a file name is the disk's that is written to; reading names its own.
    with space.writing(path), path.open("rb") as stream:
        head, line = header.read(stream, str(path))
        key = opener(head, data_dir, passphrase=passphrase, identity=identity)
        unpacking = Unpacking(str(path), line, key, inside)
        sealing.unseal(stream, unpacking.taker(), key, str(path))
        return unpacking


def _migrate(database: Path, where: str) -> None:
    """Check the database and bring it to this Hob's schema. A newer Hob's only has more, which stays."""
    try:
        snapshot.check(database)
        store = Store(database)
        try:
            store.chats(1)
            store.keys()
            store.owner_hash()
        finally:
            store.close()
    except StoreError as error:
        raise BackupError(f"the database in {where} cannot be used: {error.message}", hint=AGAIN) from error
    for rest in ("-wal", "-shm"):
        assert not database.with_name(f"{database.name}{rest}").exists(), "closing takes the log in"


def _settle(inside: Path, where: str) -> list[str]:
    """Check the lists; drop what this Hob would not start with. What does not come back, in sentences."""
    notes = []
    try:
        models = inside / MODELS
        msgspec.json.decode(models.read_bytes() if models.exists() else b"{}", type=Models)
        key = inside / KEY
        if key.exists():
            msgspec.json.decode(key.read_bytes(), type=Key)
        file = inside / SETTINGS
        found = msgspec.json.decode(file.read_bytes() if file.exists() else b"{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BackupError(f"a list in {where} cannot be used: {error}", hint=AGAIN) from error
    usable = {}
    for name, value in found.items():
        try:
            if name not in house.PORTABLE:
                raise KeyError(name)
            Settings(**{name: value})
        except (KeyError, ValidationError):
            notes.append(f"The setting {name} is not known to this Hob, or has a value that it cannot have.")
        else:
            usable[name] = value
    keys.write(file, msgspec.json.encode(usable))
    return notes
