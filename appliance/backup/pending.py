"""Put a prepared backup in the place of what is there, when nobody uses that: at the start of the service.

Once `restore.commit` has renamed it, the backup is what will be; whoever finds it, after a power cut as well,
carries on until all of it is in place. The database changes in one rename, from one whole file to another:
SQLite's log of the old one is taken into it first, as it would else be played into the new one.
"""

import contextlib
import os
import secrets
import shutil
import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from appliance.backup import folder, keys
from appliance.backup.content import DATABASE, KEY, MANIFEST, MODELS, SETTINGS, Manifest, Models
from appliance.backup.restore import GONE, PENDING, PLACE, sweep
from appliance.config import RESTORED, Settings
from appliance.errors import StoreError
from appliance.library import default, space
from appliance.library.shelf import sync
from appliance.models import Models as Installed

RESTORED_MODELS: Final = "restored-models.json"
DAMAGED: Final = "hob.db.damaged"
"""What a database that could not be read is called once another took its place; its log likewise."""

BUSY: Final = 30.0  # seconds for other commands to let go of the database


def apply(settings: Settings) -> Manifest | None:
    """Put in place what waits to be; what that is, or None where nothing waits.

    The caller holds the data folder (`serve.lock`): no service runs on it.

    Raises:
        StoreError: another program holds the database.
        DiskFullError, LibraryError: the disk refuses. The next call carries on.
    """
    data_dir = settings.data_dir
    place = data_dir / PLACE
    waiting = place / PENDING
    if not waiting.is_dir():
        if place.is_dir():
            sweep(data_dir, all_ready=True)
        return None
    with space.writing(data_dir):
        manifest = msgspec.json.decode((waiting / MANIFEST).read_bytes(), type=Manifest)
        _database(waiting / DATABASE, data_dir / DATABASE)
        _choice(waiting / MODELS, settings)
        _key(waiting / KEY, folder.of(data_dir))
        for name, target in ((SETTINGS, RESTORED), (MODELS, RESTORED_MODELS)):
            if (waiting / name).exists():
                (waiting / name).replace(data_dir / target)
        sync(data_dir)
        # All of it is in place: now it may be forgotten, again by one rename.
        waiting.rename(gone := place / f"{GONE}{secrets.token_hex(8)}")
        sync(place)
        shutil.rmtree(gone, ignore_errors=True)
    return manifest


def _database(new: Path, database: Path) -> None:
    if not new.exists():
        return  # in place since before the power was cut
    log, index = (database.with_name(f"{database.name}{rest}") for rest in ("-wal", "-shm"))
    if database.exists() and not _whole(database):
        # Kept for `sqlite3 FILE .recover`: the file under a second name, its log moved to where SQLite looks.
        kept = database.with_name(DAMAGED)
        kept.unlink(missing_ok=True)
        os.link(database, kept)
        if log.exists():
            log.replace(kept.with_name(f"{DAMAGED}-wal"))
    for rest in (log, index):  # of a database that is damaged, or not there
        rest.unlink(missing_ok=True)
    sync(database.parent)
    new.replace(database)
    sync(database.parent)


def _whole(database: Path) -> bool:
    """Take the log into the file and leave none; False where the file is too damaged for that."""
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=BUSY)) as db:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.OperationalError as error:
        raise StoreError(
            f"{database}: {error}", hint="End the other `hob` commands; restoring goes on at the next start."
        ) from error
    except sqlite3.DatabaseError:
        return False
    return True


def _choice(models: Path, settings: Settings) -> None:
    """Let the model answer that answered before, if it is here; the built-in one otherwise."""
    if models.exists():
        chosen = msgspec.json.decode(models.read_bytes(), type=Models).default
        here = chosen in Installed(settings).directories()
        default.write(settings.data_dir, chosen if here else "")


def _key(key: Path, place: Path) -> None:
    """Go on making backups for the same passphrase. A key that lay on another machine is of no use here."""
    if key.exists():
        found = msgspec.json.decode(key.read_bytes(), type=keys.Key)
        if found.kdf is not None or not found.proof:
            keys.save(place, found)
