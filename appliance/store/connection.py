"""One SQLite file, one thread to work on it, and errors that name it.

Durability: write-ahead log with `synchronous=FULL`, so that a committed write survives a power cut. The usual
companion of the log, `NORMAL`, syncs only at checkpoints and would lose minutes; the price is one fsync per
commit, and Hob commits about twice a second while it writes an answer and hardly ever otherwise.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlite_utils import Database

from appliance.errors import NotFoundError, StoreError
from appliance.store.migrations import migrations

P = ParamSpec("P")
T = TypeVar("T")


def known(kind: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that a dataclass has as fields.

    A later version may have added others before its update was taken back: what it added is left alone.
    """
    return {field.name: row[field.name] for field in fields(kind) if field.name in row}


class Connection:
    """The database file at `path`, made and migrated if need be. Readable by its owner only.

    Methods are synchronous and serve one thread at a time. Asynchronous callers go through `run`, which puts
    all work on the database's own thread, one call after the other.

    Raises (everywhere):
        StoreError: the file is damaged, not a database, locked for too long, or the disk is full.
        NotFoundError: no row has this id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        with self.explained():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            # The connection moves from the thread that opens it to the one of `run`; never two at once.
            self.db = Database(sqlite3.connect(path, timeout=5, check_same_thread=False))
            self.db.conn.row_factory = sqlite3.Row
            self.db.enable_wal()
            self.db.execute("PRAGMA synchronous = FULL")
            self.db.execute("PRAGMA foreign_keys = ON")
            migrations.apply(self.db)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do `work` on the database's thread. A cancelled caller stops waiting; the work is still done."""
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._thread, lambda: work(*args, **kwargs)))

    def close(self) -> None:
        """Finish what is queued and close the file. The store is of no use afterwards."""
        self._thread.shutdown()
        self.db.close()

    def insert(self, table: str, **values: Any) -> int:
        """Add a row; its id."""
        marks = ", ".join("?" for _ in values)
        sql = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})"  # noqa: S608 - names are ours
        with self.explained():
            row_id = self.db.execute(sql, list(values.values())).lastrowid
        assert row_id is not None
        return row_id

    def execute(self, sql: str, *values: Any) -> int:
        """Run a statement that changes rows; how many it changed."""
        with self.explained():
            return self.db.execute(sql, values).rowcount

    def change(self, what: str, sql: str, *values: Any) -> None:
        """Run a statement that must change a row; `what` names the row in the error."""
        if not self.execute(sql, *values):
            raise NotFoundError(f"no {what}")

    def rows(self, make: Callable[..., T], sql: str, *values: Any) -> list[T]:
        """The rows of a query, each made into a `make` by column name; see `known` for a dataclass."""
        with self.explained():
            found = list(self.db.query(sql, values))
        if is_dataclass(make):
            found = [known(make, row) for row in found]
        return [make(**row) for row in found]

    def row(self, what: str, make: Callable[..., T], sql: str, *values: Any) -> T:
        """The one row of a query; `what` names it in the error."""
        found = self.rows(make, sql, *values)
        if not found:
            raise NotFoundError(f"no {what}")
        return found[0]

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """All writes of the block or none of them; may be nested."""
        with self.explained(), self.db.atomic():
            yield

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn SQLite's and the file system's errors into ones that name the file and the next step."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"{self.path}: {error}",
                hint="Check the free space, the file's permissions and which other programs use it.",
            ) from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path}: {error}",
                hint="Move the file away or restore a backup; `sqlite3 FILE .recover` may save its text.",
            ) from error
        except OSError as error:
            raise StoreError(
                f"{error.filename or self.path}: {error.strerror}",
                hint="HOB_DATA_DIR names the folder of all state; Hob must be able to write there.",
            ) from error
