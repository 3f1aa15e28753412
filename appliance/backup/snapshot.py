"""The database as it is at one moment, while others go on writing to it."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from appliance.backup.content import Counts
from appliance.errors import BackupError, DiskFullError, StoreError

LEFT_OUT: Final = ("sessions", "jobs")
"""Tables that stay empty: browsers sign in anew, and work that was under way here means nothing elsewhere."""

BUSY: Final = 30.0  # seconds to wait for others, who write for milliseconds
_UNCHANGING: Final = {"api_keys": ("used",)}  # columns that change with every use and that nobody would miss


def take(database: Path, target: Path) -> None:
    """Write a compact copy of `database`, all of one moment, to `target`, which does not exist.

    Raises:
        BackupError: there is no database.
        StoreError: it is damaged.
        DiskFullError: no room for the copy.
    """
    with _reading(database) as db, _told(database):
        db.execute("VACUUM INTO ?", [str(target)])
    with contextlib.closing(sqlite3.connect(target)) as copy, _told(target):
        copy.execute("PRAGMA synchronous = OFF")  # it is read back at once, and forgotten
        copy.execute("PRAGMA secure_delete = ON")  # deleted rows would stay readable in free pages
        there = {name for (name,) in copy.execute("SELECT name FROM sqlite_schema")}
        for table in there.intersection(LEFT_OUT):  # an older Hob's database lacks some
            copy.execute(f"DELETE FROM {table}")  # noqa: S608 - names are ours
        copy.commit()


def fingerprint(database: Path) -> str:
    """SHA-256 of all rows that a backup would hold, in hex: the same as long as nobody would miss anything.

    Reads all of it and writes nothing; other connections go on meanwhile.

    Raises:
        BackupError, StoreError: as `take`.
    """
    digest = hashlib.sha256()
    with _reading(database) as db, _told(database):
        db.execute("BEGIN")
        for table in _tables(db):
            columns = [
                name
                for _, name, *_ in db.execute(f"PRAGMA table_info({table})")
                if name not in _UNCHANGING.get(table, ())
            ]
            digest.update(f"\n{table} {columns}\n".encode())
            listed = ", ".join(f'"{column}"' for column in columns)
            for row in db.execute(f"SELECT {listed} FROM {table} ORDER BY rowid"):  # noqa: S608 - from the schema
                digest.update(repr(row).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def counts(database: Path) -> Counts:
    """What is in a database.

    Raises:
        BackupError, StoreError: as `take`.
    """
    with _reading(database) as db, _told(database):
        chats, messages, keys, owner = (
            db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - names are ours
            for table in ("chats", "messages", "api_keys", "owner")
        )
    return Counts(chats, messages, keys, bool(owner))


def steps(database: Path) -> tuple[str, ...]:
    """The migrations that have been applied, in their order.

    Raises:
        BackupError, StoreError: as `take`.
    """
    with _reading(database) as db, _told(database):
        found = db.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = 'hob' ORDER BY rowid")
        return tuple(name for (name,) in found)


def check(database: Path) -> None:
    """See that every page and index of a database is whole.

    Raises:
        StoreError: one is not.
    """
    with _reading(database) as db, _told(database):
        db.execute("PRAGMA trusted_schema = OFF")
        ((verdict,),) = db.execute("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise StoreError(f"{database}: {verdict}", hint="Take an older backup.")


def _tables(db: sqlite3.Connection) -> list[str]:
    """Tables with rows of ours: not those left out, nor what SQLite and its search keep for themselves."""
    found = [
        name
        for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        if "_fts" not in name and not name.startswith(("sqlite_", "_"))
    ]
    return [name for name in found if name not in LEFT_OUT]


@contextlib.contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    if not database.exists():
        raise BackupError(f"there is nothing to back up: no {database}", hint="Start Hob once: `hob serve`.")
    # Not mode=ro: after a crash the log has to be taken in first, which is writing.
    with contextlib.closing(sqlite3.connect(database, timeout=BUSY, isolation_level=None)) as db:
        yield db


@contextlib.contextmanager
def _told(database: Path) -> Iterator[None]:
    """SQLite's errors as ones for people."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise DiskFullError(
                f"the disk is full: {database} cannot be copied", hint="`hob model remove` frees room."
            ) from error
        raise StoreError(f"{database}: {error}", hint="Check the free space and the permissions.") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{database}: {error}", hint="It is damaged: restore an older backup (`hob backup list`)."
        ) from error
