"""The power fails at any moment: what is there afterwards is all of the old or all of the new."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.backup import folder
from appliance.backup.folder import Backup
from appliance.config import Settings
from tests.appliance.backup.conftest import ANSWER, PASSPHRASE

# A child does the work and ends before the next of so many calls that change the disk. SQLite makes its own
# calls, which Python does not see: what it does in one statement counts as one, before and after.
KILLED = """
import contextlib, json, os, shutil, sqlite3, sys
from pathlib import Path
from appliance.backup import create, folder, pending, restore
from appliance.config import load_settings
from appliance.store import Store

what, backup, kept = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
CALLS = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir", "link", "open", "write")

def quiet(step, fraction):
    pass

def armed(calls):
    def counted(call):
        def wrapper(*arguments, **options):
            nonlocal calls
            calls -= 1
            if calls < 0:
                os._exit(9)
            return call(*arguments, **options)
        return wrapper
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    sqlite3.connect = counted(sqlite3.connect)

def work(settings, calls):
    armed(calls)
    if what == "create":
        create.create(settings, create.Request(), quiet)
    else:
        pending.apply(settings)
        ready = restore.prepare(backup, settings.data_dir, quiet, passphrase=sys.argv[4])
        restore.commit(settings.data_dir, ready.token)
        pending.apply(settings)
    os._exit(0)

def said(data_dir):
    store = Store(data_dir / "hob.db")
    try:
        return [message.content for chat in reversed(store.chats()) for message in store.thread(chat.id)]
    finally:
        store.close()

calls, status, seen = 0, 9, []
here = kept.with_name("here")
while status == 9:
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(kept, here)
    settings = load_settings(data_dir=here)
    # As after a power cut: the last answers are in the log, not in the file yet.
    log = kept.with_name("log")
    if log.exists():
        shutil.copyfile(log, here / "hob.db-wal")
    child = os.fork()
    if child == 0:
        work(settings, calls)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), (calls, status)
    before = said(here) if (here / "hob.db").exists() else None
    pending.apply(settings)
    after = said(here)
    place = folder.of(here)
    whole = [(one.header.created, one.size) for one in folder.backups(place)]
    seen.append([before, after, whole])
    assert not list((here / ".restore").glob("*")), calls
    if status == 9:  # whoever comes next clears up
        create.create(settings, create.Request(), quiet)
        assert {path.suffix for path in place.iterdir()} <= {".hobbackup", ".json", ".new"}, calls
    calls += 1
print(json.dumps([calls, seen]))
"""


def pulled(
    what: str, backup: Backup, kept: Path
) -> tuple[int, list[tuple[list[str], list[str], list[object]]]]:
    """Pull the plug before each call; how many there were, and what was said before and after clearing up."""
    command = [sys.executable, "-c", KILLED, what, str(backup.path), str(kept), PASSPHRASE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    calls, seen = json.loads(done.stdout)
    return calls, seen


OLD = ["Where is the marmalade?", ANSWER]
NEW = ["What is new?", "Everything."]


@pytest.fixture
def kept(house: Settings, tmp_path: Path) -> Path:
    """A folder as a machine was left: a database with its last writes in the log, killed."""
    place = tmp_path / "kept"
    writer = """
import os, shutil, sys
from pathlib import Path
from appliance.store import Store
place = Path(sys.argv[1])
store = Store(place / "hob.db")
_, answer = store.ask(None, "What is new?", "tiny", {})
store.finish(answer.id, state="done", content="Everything.", finish="stop")
shutil.copyfile(place / "hob.db-wal", place.with_name("log"))
shutil.copyfile(place / "hob.db", place / "hob.db.only")
os._exit(0)
"""
    place.mkdir()
    done = subprocess.run([sys.executable, "-c", writer, str(place)], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    for name in ("hob.db", "hob.db-wal", "hob.db-shm"):
        (place / name).unlink(missing_ok=True)
    (place / "hob.db.only").rename(place / "hob.db")
    return place


@pytest.mark.slow
def test_restoring(backup: Backup, kept: Path) -> None:
    """The old chats, with those that were still in the log, or the restored ones; never none, never both."""
    calls, seen = pulled("restore", backup, kept)
    assert calls > 30
    for before, after, _ in seen:
        assert before in (NEW, OLD)
        assert after in (NEW, OLD)
        assert after == OLD or before == NEW, "what was restored stays restored"
    ends = [after == OLD for _, after, _ in seen]
    assert ends == sorted(ends), "once taken, it is carried through"
    assert seen[0][1] == NEW
    assert (seen[-1][0], seen[-1][1]) == (OLD, OLD)
    assert any(before == NEW and after == OLD for before, after, _ in seen), "a start in between carries on"


@pytest.mark.slow
def test_making(backup: Backup, kept: Path) -> None:
    """A backup is there whole or not at all, and nothing else has changed."""
    calls, seen = pulled("create", backup, kept)
    assert calls > 10
    assert {len(whole) for _, _, whole in seen} == {0, 1}
    assert all(before == after == NEW for before, after, _ in seen)
    assert folder.backups(kept) == []
