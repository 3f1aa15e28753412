"""What a database's schema is, and which changes of it an older Hob does not notice."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlite_utils import Database

OWN = "_sqlite_migrations"
"""The table in which sqlite-utils keeps which steps were taken."""


@dataclass(frozen=True)
class Column:
    """A column as SQLite describes it."""

    kind: str
    required: bool
    default: str | None
    key: int


@dataclass(frozen=True)
class Schema:
    """Columns by table; the text of each table's constraints; unique indexes and triggers by their table."""

    tables: dict[str, dict[str, Column]]
    made: dict[str, str]
    unique: set[tuple[str, str]]
    triggers: set[tuple[str, str]]


def schema(db: Database) -> Schema:
    """The schema of a database, without sqlite-utils' own table and the insides of full-text indexes."""
    made = {
        str(row["name"]): str(row["sql"])
        for row in db.query("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        if row["name"] != OWN
        and not str(row["name"]).startswith("sqlite_")
        and "_fts" not in str(row["name"])
    }
    tables = {
        table: {
            str(row["name"]): Column(
                str(row["type"]), bool(row["notnull"]), row["dflt_value"], int(row["pk"])
            )
            for row in db.query(f"PRAGMA table_info({table})")
        }
        for table in made
    }
    unique = {
        (table, str(row["name"]))
        for table in made
        for row in db.query(f"PRAGMA index_list({table})")
        if row["unique"]
    }
    triggers = {
        (str(row["tbl_name"]), str(row["name"]))
        for row in db.query("SELECT tbl_name, name FROM sqlite_master WHERE type = 'trigger'")
    }
    return Schema(tables, made, unique, triggers)


def breaking(before: Schema, after: Schema) -> Iterator[str]:
    """What an older Hob, which knows `before`, would stumble over in `after`. Nothing where it only grew.

    New tables, and new columns that may be left out, are growth. Everything that takes away, renames, or
    demands something of a table that is there is not.
    """
    for table, columns in before.tables.items():
        if table not in after.tables:
            yield f"table {table} is gone"
            continue
        now = after.tables[table]
        for name, column in columns.items():
            if name not in now:
                yield f"column {table}.{name} is gone"
            elif now[name] != column:
                yield f"column {table}.{name} is {now[name]}, and was {column}"
        for name in now.keys() - columns.keys():
            if now[name].required and now[name].default is None:
                yield f"new column {table}.{name} must be given"
        if now.keys() == columns.keys() and after.made[table] != before.made[table]:
            yield f"table {table} was made anew, perhaps with other constraints"
        if now.keys() != columns.keys() and not _extended(before.made[table], after.made[table]):
            yield f"table {table} was made anew around its new columns"
    yield from (f"new unique index {name} on {table}" for table, name in _on_old(before, after, "unique"))
    yield from (f"new trigger {name} on {table}" for table, name in _on_old(before, after, "triggers"))
    yield from (f"trigger {name} on {table} is gone" for table, name in before.triggers - after.triggers)


def _extended(before: str, after: str) -> bool:
    """Whether a table's text is the one before with columns appended, as ALTER TABLE ADD COLUMN leaves it."""
    return after.startswith(before.rstrip().removesuffix(")").rstrip())


def _on_old(before: Schema, after: Schema, kind: str) -> Iterator[tuple[str, str]]:
    new: set[tuple[str, str]] = getattr(after, kind) - getattr(before, kind)
    return ((table, name) for table, name in sorted(new) if table in before.tables)
