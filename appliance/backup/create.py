"""Make a backup: copy the database, list the models, encrypt it into one file. All of it or nothing."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from appliance import __version__
from appliance.backup import content, folder, header, house, keys, sealing, snapshot
from appliance.backup.content import DATABASE, KEY, MODELS, SETTINGS, File, Manifest, Models
from appliance.backup.folder import Backup, Last
from appliance.backup.header import Header, Reason
from appliance.backup.keys import Key
from appliance.config import Settings
from appliance.errors import BackupError, ConflictError, HobError, StoreError
from appliance.library import default, space
from appliance.library.shelf import Shelf, put

OVERHEAD: Final = 2**20
"""Bytes of a backup beside the database, with room to spare."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        reason: why it is made; decides how long it stays.
        to: where to; None for the folder of backups on this machine.
        only_changes: make none when nothing has changed since the last one.
        recipients: age recipients instead of the key of this Hob.
    """

    reason: Reason = "manual"
    to: Path | None = None
    only_changes: bool = False
    recipients: tuple[str, ...] = ()


def create(settings: Settings, wanted: Request, progress: Progress) -> Backup | None:
    """Make a backup of the data folder that the settings name; a running Hob goes on meanwhile.

    None where nothing has changed, if only changes were asked for. Why one failed is kept for the page.

    Raises:
        BackupError: there is nothing to back up, or this key's backups are of no use where it should go.
        ConflictError: another is being made.
        StoreError: the database is damaged.
        DiskFullError, LibraryError: no room, or a stick that is gone.
    """
    place = folder.of(settings.data_dir)
    try:
        made = _create(settings, wanted, place, progress)
    except ConflictError:
        raise
    except HobError as error:
        if wanted.to is None:
            folder.failed(place, error)
        raise
    if wanted.to is None:
        prune(place, settings.backups_kept)
    return made


def keep_present(settings: Settings, progress: Progress) -> Backup | None:
    """Back up what another backup is about to replace; None where there is nothing that anybody would miss.

    A damaged database cannot be backed up; it is kept as it is when it is replaced.

    Raises:
        DiskFullError, LibraryError, ConflictError: as `create`.
    """
    try:
        if not snapshot.counts(settings.data_dir / DATABASE).chats:
            return None
        return create(settings, Request("restore"), progress)
    except (BackupError, StoreError):
        return None


def prune(place: Path, keep: int) -> None:
    """Remove the backups that are beyond those to keep."""
    for backup in folder.expired(folder.backups(place), keep):
        with space.writing(place):
            backup.path.unlink(missing_ok=True)


def _create(settings: Settings, wanted: Request, place: Path, progress: Progress) -> Backup | None:
    database = settings.data_dir / DATABASE
    key = keys.load(place)
    small = _small(settings)
    found = _fingerprint(snapshot.fingerprint(database), key, small) if wanted.only_changes else ""
    known = folder.last(place)
    if found and found == known.fingerprint and (place / known.file).is_file() and not known.failed:
        return None
    with folder.working(place) as inside:
        if wanted.recipients:
            key = keys.of_recipients(wanted.recipients, time.time())
        elif key is None:
            key = keys.kept_here(time.time())
            keys.save(place, key)
        if wanted.to is not None and not key.portable:
            raise BackupError(
                "backups of this Hob can be read on this machine only, as long as no passphrase is set",
                hint="Set one first: `hob backup passphrase`, or the page Backups.",
            )
        target = wanted.to or place
        folder.sweep(target, folder.PART)  # of one that was killed; the lock is ours
        _ensure_room(database, place, target)
        progress("copying the database", 0.1)
        copy = inside / DATABASE
        snapshot.take(database, copy)
        made = _seal(settings, wanted.reason, key, copy, small, target, progress)
        if wanted.to is None:
            fingerprint = _fingerprint(snapshot.fingerprint(copy), keys.load(place), small)
            folder.remember(place, Last(fingerprint=fingerprint, file=made.name))
    return made


def _small(settings: Settings) -> dict[str, bytes]:
    """The files of a backup that say what is beside the database, without its key."""
    entries = Shelf(settings.data_dir / "models").entries()
    models = Models(house.models(entries), default.read(settings.data_dir))
    return {
        MODELS: msgspec.json.encode(models),
        SETTINGS: msgspec.json.encode(house.settings(settings)),
    }


def _fingerprint(rows: str, key: Key | None, small: dict[str, bytes]) -> str:
    """Of everything that a backup holds: another key or list of models makes another one as well."""
    digest = hashlib.sha256(rows.encode())
    for name in sorted(small):
        digest.update(hashlib.sha256(small[name]).digest())
    digest.update(repr(key).encode())
    return digest.hexdigest()


def _seal(
    settings: Settings,
    reason: Reason,
    key: Key,
    copy: Path,
    small: dict[str, bytes],
    target: Path,
    progress: Progress,
) -> Backup:
    """Encrypt the copy and what goes with it into a new file in `target`."""
    newest = max((backup.header.created for backup in folder.backups(target)), default=0)
    head = Header(
        created=max(int(time.time()), newest + 1),  # a clock that was set back changes no order
        reason=reason,
        name=settings.name,
        version=__version__,
        recipients=key.recipients,
        kdf=key.kdf,
        portable=key.portable,
    )
    sources: dict[str, bytes | Path] = {
        DATABASE: copy,
        **small,
        KEY: msgspec.json.encode(msgspec.structs.replace(key, identity="")),
    }
    progress("reading it", 0.4)
    line = header.encode(head)
    manifest = Manifest(
        header=head,
        line=hashlib.sha256(line).hexdigest(),
        counts=snapshot.counts(copy),
        models=len(msgspec.json.decode(small[MODELS], type=Models).models),
        steps=snapshot.steps(copy),
        files=tuple(_file(name, source) for name, source in sources.items()),
    )
    progress("encrypting", 0.5)
    with space.writing(target):
        path = folder.free_name(target, head.created)
        partial = path.with_name(f".{path.name}.part")
        try:
            with open(partial, "xb", opener=keys.private) as out:
                out.write(line)
                sealing.seal(content.pack(manifest, key, sources), out, key.recipients)
            put(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return Backup(path, head, path.stat().st_size)


def _file(name: str, source: bytes | Path) -> File:
    if isinstance(source, bytes):
        return File(name, len(source), hashlib.sha256(source).hexdigest())
    with source.open("rb") as stream:
        return File(name, source.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def _ensure_room(database: Path, place: Path, target: Path) -> None:
    """Room for the copy, and where the backup goes for that."""
    size = sum(path.stat().st_size for path in (database, Path(f"{database}-wal")) if path.exists())
    space.ensure(place, (2 if target == place else 1) * size + OVERHEAD, space.RESERVE)
    if target != place:
        space.ensure(target, size + OVERHEAD, reserve=0)
