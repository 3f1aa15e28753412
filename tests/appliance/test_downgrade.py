"""An update that is taken back leaves a database that the version before goes on with.

Both slots of a device share one database. The new version migrates it, fails its trial, and the old version
opens what it left: so a migration may only add.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from appliance.store.migrations import migrations
from tests.appliance.schema import breaking, schema

ROOT = Path(__file__).parents[2]

BEFORE_UPDATES = "6fd9cc57772f16e3320c18f7b525f25baf48552b"
"""The last commit before devices could be updated: the oldest code that a slot can hold."""

NAMES = [step.name for step in migrations.pending(Database(memory=True))]

LIFE = """
import sys
from pathlib import Path
from appliance.domain import Usage
from appliance.store import Store

store = Store(Path(sys.argv[1]))
mark = sys.argv[2]
question, answer = store.ask(None, f"What is {mark}?", "hob-guide", {"temperature": 0.5})
store.save_text(answer.id, "Half")
usage = Usage(prompt_tokens=3, completion_tokens=4)
store.finish(answer.id, state="done", content=f"An answer about {mark}.", usage=usage)
store.rename_chat(question.chat_id, f"About {mark}")
assert store.thread(question.chat_id)[-1].content == f"An answer about {mark}."
assert store.path_to(answer.id)[0].content == f"What is {mark}?"
assert store.running(question.chat_id) == []
assert store.speeds() is not None
assert [hit.chat_id for hit in store.search(mark)], mark
if store.owner_hash() is None:
    store.create_owner("hash")
assert store.list_sessions() is not None
assert store.keys() is not None
job = store.add_job("verify", "x", ["--", "x"])
assert store.next_job().id == job.id
assert store.end_job(job.id, "done").state == "done"
store.pin(mark)
assert mark in store.pins()
for chat in store.chats():
    assert store.thread(chat.id)[-1].state == "done"
print(len(store.chats()), len(store.jobs(100)))
store.close()
"""
"""A bit of everything that Hob does with its database; prints how many chats and jobs there are then."""


def live(file: Path, mark: str, code: Path = ROOT) -> str:
    """Run `LIFE` on a database with the code in a folder."""
    check = f"import appliance; assert appliance.__file__.startswith({str(code)!r}), appliance.__file__\n"
    done = subprocess.run(
        [sys.executable, "-c", check + LIFE, file, mark],
        cwd=code,
        env={"PYTHONPATH": str(code), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the last version before updates, out of the history."""
    folder = tmp_path_factory.mktemp("released")
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", BEFORE_UPDATES, "appliance"], capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip("the history is not at hand")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


def test_the_released_code_lives_with_the_new_schema(released: Path, tmp_path: Path) -> None:
    """What the new version has written, the old one reads, searches and goes on with; and the other way."""
    file = tmp_path / "hob.db"
    assert live(file, "old", released) == "1 1"
    assert live(file, "new") == "2 2"
    assert live(file, "again", released) == "3 3"
    assert live(file, "last") == "4 4"


@pytest.mark.parametrize("name", NAMES)
def test_every_migration_only_adds(name: str) -> None:
    """Each step leaves what was there as it was: an older Hob does not notice it."""
    db = Database(memory=True)
    migrations.apply(db, stop_before=name)
    before = schema(db)
    after = Database(memory=True)
    following = NAMES[NAMES.index(name) + 1 :]
    if following:
        migrations.apply(after, stop_before=following[0])
    else:
        migrations.apply(after)
    assert list(breaking(before, schema(after))) == []


def test_this_version_lives_with_whatever_is_added(tmp_path: Path) -> None:
    """Columns and tables of a later version do not disturb this one."""
    file = tmp_path / "hob.db"
    assert live(file, "one") == "1 1"
    db = Database(file)
    for table in schema(db).tables:
        db.executescript(f"ALTER TABLE {table} ADD COLUMN later TEXT NOT NULL DEFAULT 'x'")
    db.executescript("CREATE TABLE people (id INTEGER PRIMARY KEY, chat INTEGER REFERENCES chats (id))")
    db.table("_sqlite_migrations").insert(
        {"migration_set": "hob", "name": "people", "applied_at": "2027-01-01"}
    )
    db.close()
    assert live(file, "two") == "2 2"


def step(text: str) -> Callable[[Database], None]:
    """A migration."""

    def run(db: Database) -> None:
        db.executescript(text)

    return run


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("DROP TABLE pins", "table pins is gone"),
        ("ALTER TABLE chats DROP COLUMN model", "column chats.model is gone"),
        ("ALTER TABLE chats RENAME COLUMN title TO name", "column chats.title is gone"),
        ("ALTER TABLE jobs RENAME TO work", "table jobs is gone"),
        ("CREATE UNIQUE INDEX one_name ON api_keys (name)", "new unique index one_name"),
        (
            "CREATE TRIGGER no_more BEFORE INSERT ON chats BEGIN SELECT RAISE(ABORT, 'no'); END",
            "new trigger no_more",
        ),
        ("DROP TRIGGER chats_ai", "trigger chats_ai on chats is gone"),
        (
            "ALTER TABLE pins RENAME TO old; CREATE TABLE pins (model TEXT PRIMARY KEY CHECK (model <> ''));"
            "INSERT INTO pins SELECT * FROM old; DROP TABLE old",
            "table pins was made anew",
        ),
        (
            "CREATE TABLE p (model TEXT PRIMARY KEY, person INTEGER NOT NULL);"
            "DROP TABLE pins; ALTER TABLE p RENAME TO pins",
            "new column pins.person must be given",
        ),
        (
            "CREATE TABLE p (model INTEGER PRIMARY KEY); DROP TABLE pins; ALTER TABLE p RENAME TO pins",
            "column pins.model is",
        ),
    ],
)
def test_what_breaks_an_older_version_is_found(text: str, complaint: str) -> None:
    """The check above sees what must not happen."""
    db = Database(memory=True)
    migrations.apply(db)
    before = schema(db)
    broken = Migrations("broken")
    broken(name="broken")(step(text))
    broken.apply(db)
    assert any(found.startswith(complaint) for found in breaking(before, schema(db)))


@pytest.mark.parametrize(
    "text",
    [
        "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
        "ALTER TABLE chats ADD COLUMN person INTEGER",
        "ALTER TABLE jobs ADD COLUMN kind TEXT NOT NULL DEFAULT 'model'",
        "CREATE INDEX chats_by_model ON chats (model)",
    ],
)
def test_growth_is_allowed(text: str) -> None:
    """Tables, columns that may be left out, and indexes for speed are no break."""
    db = Database(memory=True)
    migrations.apply(db)
    before = schema(db)
    db.executescript(text)
    assert list(breaking(before, schema(db))) == []
