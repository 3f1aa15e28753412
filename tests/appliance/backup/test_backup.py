"""There and back: what a backup holds, what it leaves out, when one is made, how many stay."""

import io
import os
import sqlite3
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import pyrage
import pytest

from appliance.backup import bech32, create, folder, header, keys, pending, restore, snapshot, wanted
from appliance.backup.content import Model, Models
from appliance.backup.create import Request
from appliance.backup.folder import Backup
from appliance.backup.header import Header, Reason
from appliance.config import Settings, load_settings
from appliance.errors import BackupError, ConflictError, InvalidRequestError, PassphraseError
from appliance.library import default
from appliance.library.manifest import Origin
from appliance.library.shelf import Shelf
from appliance.store import Store
from tests.appliance.backup.conftest import ANSWER, PASSPHRASE, bring, chats, furnish, make, quiet
from tests.appliance.library.test_shelf import put


def test_everything_comes_back_on_a_fresh_machine(backup: Backup, fresh: Settings) -> None:
    """Chats, owner, keys, pins and settings are there; browsers and jobs are not; search works."""
    bring(backup.path, fresh)
    store = Store(fresh.data_dir / "hob.db")
    assert store.owner_hash() == "the hash of a password"
    kept = store.keys()
    assert [key.name for key in kept] == ["kitchen radio"]
    assert store.pins() == {"tiny"}
    assert [hit.chat_id for hit in store.search("marmalade top")] == [1]
    assert store.list_sessions() == []
    assert store.jobs(9) == []
    store.close()
    assert chats(fresh) == ["Where is the marmalade?", ANSWER]
    assert load_settings(data_dir=fresh.data_dir).context == 2048
    assert not (fresh.data_dir / restore.PLACE / restore.PENDING).exists()


def test_what_is_left_out_is_not_in_the_file_at_all(house: Settings, tmp_path: Path) -> None:
    """Not even in the free pages of the copy: a session's hash could be tried out for a year."""
    copy = tmp_path / "copy.db"
    snapshot.take(house.data_dir / "hob.db", copy)
    assert b"the hash of a token" in (house.data_dir / "hob.db").read_bytes()
    assert b"the hash of a token" not in copy.read_bytes()
    assert b"the hash of a password" in copy.read_bytes()


def test_other_tools_take_it_apart(backup: Backup) -> None:
    """After its first line it is an age file of a gzip file of a tar, opened by the identity alone."""
    head, _, sealed = backup.path.read_bytes().partition(b"\n")
    assert head.startswith(b"hob-backup 1 {")
    assert b"marmalade" not in sealed
    opener = restore.opener(backup.header, Path("/nowhere"), passphrase=PASSPHRASE)
    opened = pyrage.decrypt(sealed, [pyrage.x25519.Identity.from_str(opener.identity)])
    with tarfile.open(fileobj=io.BytesIO(zlib.decompress(opened, 31))) as tar:
        names = tar.getnames()
        assert names == ["manifest.json", "proof", "hob.db", "models.json", "settings.json", "key.json"]
        database = tar.extractfile("hob.db")
        assert database is not None
        assert database.read(15) == b"SQLite format 3"
    assert PASSPHRASE.encode() not in opened
    assert opener.identity.encode() not in opened


def test_an_identity_opens_it_without_the_passphrase(backup: Backup, fresh: Settings) -> None:
    """What `hob backup identity` prints is enough, but proves nothing."""
    opener = restore.opener(backup.header, fresh.data_dir, passphrase=PASSPHRASE)
    ready = restore.verify(backup.path, fresh.data_dir, identity=f"# a comment\n{opener.identity}\n")
    assert not ready.proven
    assert restore.verify(backup.path, fresh.data_dir, passphrase=PASSPHRASE).proven
    assert not list((fresh.data_dir / restore.PLACE).iterdir())


def test_nothing_on_the_machine_opens_its_backups(backup: Backup, house: Settings) -> None:
    """With a passphrase the box itself cannot read what it made."""
    with pytest.raises(PassphraseError, match="needs its passphrase"):
        restore.prepare(backup.path, house.data_dir, quiet)
    kept = b"".join(path.read_bytes() for path in folder.of(house.data_dir).iterdir())
    assert b"AGE-SECRET" not in kept
    assert PASSPHRASE.encode() not in kept


def test_without_a_passphrase_only_this_machine_reads_them(tmp_path: Path, fresh: Settings) -> None:
    """It does so without being asked for anything, later too; others cannot, and it gives none away."""
    here = load_settings(data_dir=tmp_path / "here")
    furnish(here.data_dir)
    made = make(here)
    assert not made.header.portable
    with pytest.raises(BackupError, match="this machine only"):
        make(here, Request(to=tmp_path))
    with pytest.raises(PassphraseError, match="only the machine that made"):
        restore.prepare(made.path, fresh.data_dir, quiet)
    keys.save(folder.of(here.data_dir), keys.of_passphrase(PASSPHRASE, time.time()))
    bring(made.path, here, passphrase="")
    assert chats(here) == ["Where is the marmalade?", ANSWER]
    assert make(here).header.kdf is not None, "the passphrase set since stays"


def test_recipients_instead_of_a_passphrase(house: Settings, fresh: Settings, tmp_path: Path) -> None:
    """A backup for an age recipient is opened by its identity, and by nothing else."""
    identity = pyrage.x25519.Identity.generate()
    made = make(house, Request(to=tmp_path, recipients=(str(identity.to_public()),)))
    with pytest.raises(PassphraseError, match="identity of its recipient"):
        restore.prepare(made.path, fresh.data_dir, quiet, passphrase=PASSPHRASE)
    ready = restore.prepare(made.path, fresh.data_dir, quiet, identity=str(identity))
    assert not ready.proven
    with pytest.raises(InvalidRequestError, match="no age recipient"):
        make(house, Request(recipients=("age1nonsense",)))


def test_a_restored_hob_goes_on_with_the_same_passphrase(
    backup: Backup, fresh: Settings, tmp_path: Path
) -> None:
    """Its own backups need what the old ones needed."""
    bring(backup.path, fresh)
    again = make(fresh)
    assert again.header.recipients == backup.header.recipients
    third = load_settings(data_dir=tmp_path / "third")
    bring(again.path, third)
    assert chats(third) == ["Where is the marmalade?", ANSWER]


def test_answers_stream_while_it_is_made(house: Settings, fresh: Settings) -> None:
    """A copy is of one moment, whole and in order, whatever another process writes meanwhile."""
    writer = """
import sys
from pathlib import Path
from appliance.store import Store
store = Store(Path(sys.argv[1]) / "hob.db")
_, answer = store.ask(1, "Count.", "tiny", {})
text = ""
for number in range(10**9):
    text += f" {number}"
    store.save_text(answer.id, text[-5000:])
    if number == 20:
        print("writing", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", writer, str(house.data_dir)], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"writing\n"
            made = make(house)
        finally:
            process.kill()
    bring(made.path, fresh)
    store = Store(fresh.data_dir / "hob.db")
    counted = store.thread(1)[-1].content.split()[1:]
    assert store.thread(1)[-1].state == "running", "the service ends it as interrupted when it starts"
    store.close()
    assert [*map(int, counted)] == [*range(int(counted[0]), int(counted[-1]) + 1)]


def test_nothing_is_written_where_nothing_has_changed(house: Settings) -> None:
    """Signing in, using a key and reading are no changes; a word in a chat is, and so is a new passphrase."""
    nightly = Request("nightly", only_changes=True)
    assert create.create(house, nightly, quiet)
    before = tree(house.data_dir / folder.NAME)
    store = Store(house.data_dir / "hob.db")
    store.add_session("another", 2**40, "a phone")
    store.touch_key(1)
    store.close()
    assert create.create(house, nightly, quiet) is None
    assert tree(house.data_dir / folder.NAME) == before
    store = Store(house.data_dir / "hob.db")
    store.rename_chat(1, "Jam")
    store.close()
    assert create.create(house, nightly, quiet)
    assert create.create(house, nightly, quiet) is None
    keys.save(folder.of(house.data_dir), keys.of_passphrase("another passphrase", 2.0))
    assert create.create(house, nightly, quiet)
    for backup in folder.backups(folder.of(house.data_dir)):
        backup.path.unlink()
    assert create.create(house, nightly, quiet), "the last one is gone"


def tree(place: Path) -> dict[str, tuple[int, int]]:
    """Every file with its time of change and size."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in place.rglob("*")
        if path.is_file()
    }


def test_old_nightly_ones_make_room(house: Settings) -> None:
    """The newest of the nightly ones stay, those made by hand all, those before a restoration two."""

    def of(number: int, reason: Reason) -> Backup:
        return Backup(
            Path(f"{reason}-{number}"),
            Header(created=number, reason=reason, name="hob", version="1", recipients=("age1",)),
            1,
        )

    found = [
        of(number, reason)
        for number in range(9, 0, -1)
        for reason in (("nightly", "manual", "restore") if number % 3 else ("nightly",))  # type: Reason
    ]
    gone = {backup.name for backup in folder.expired(found, 3)}
    assert gone == {*(f"nightly-{n}" for n in range(1, 7)), *(f"restore-{n}" for n in (1, 2, 4, 5))}
    kept = house.model_copy(update={"backups_kept": 1})
    for _ in range(3):
        make(kept, Request("nightly"))
    make(kept)
    left = [backup.header.reason for backup in folder.backups(folder.of(house.data_dir))]
    assert left == ["manual", "nightly"]


def test_a_clock_that_was_set_back_changes_no_order(house: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a clock's battery may think it is 1970; what is made last is last all the same."""
    first = make(house)
    monkeypatch.setattr(time, "time", lambda: 5.0)
    second = make(house)
    assert [backup.path for backup in folder.backups(folder.of(house.data_dir))] == [second.path, first.path]


def test_two_at_once(house: Settings) -> None:
    """The second is told; what killed ones left is swept away by the next."""
    place = folder.of(house.data_dir)
    (place / f"{folder.MAKING}77").mkdir(parents=True)
    (place / f"{folder.MAKING}77" / "hob.db").write_bytes(b"half")
    with folder.working(place), pytest.raises(ConflictError, match="being made already"):
        make(house)
    make(house)
    assert not list(place.glob(f"{folder.MAKING}*"))


def test_models_are_listed_with_where_they_came_from(house: Settings, fresh: Settings) -> None:
    """What is missing afterwards is known, with what brings it back; so is the default model."""
    shelf = Shelf(house.data_dir / "models")
    put(shelf, "tiny")
    default.write(house.data_dir, "tiny")
    made = make(house)
    bring(made.path, fresh)
    listed = wanted.read(fresh.data_dir)
    (one,) = wanted.missing(listed, ["hob-guide"])
    assert (one.model.name, one.default) == ("tiny", True)
    assert one.source == f"someone/model@c0ffee{'0' * 34}"
    assert wanted.missing(listed, ["tiny"]) == []
    assert default.read(fresh.data_dir) == "", "it is not here, and Hob has to answer"
    bring(made.path, house)
    assert default.read(house.data_dir) == "tiny"
    put(Shelf(fresh.data_dir / "models"), "tiny")
    bring(made.path, fresh)
    assert default.read(fresh.data_dir) == "tiny"


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        (Origin("hub", "a/b", "f" * 40), f"a/b@{'f' * 40}"),
        (Origin("hub", "a/b"), "a/b"),
        (Origin("url", "https://example.org/a.gguf"), "https://example.org/a.gguf"),
        (Origin("hob", "tiny@hob-2.local"), "tiny@hob-2.local"),
        (Origin("file", "tiny"), ""),
        (Origin("archive", "tiny.hobmodel"), ""),
    ],
)
def test_what_brings_a_model_back(origin: Origin, source: str) -> None:
    """An id, an address or another Hob; nothing for what came from a file."""
    assert wanted.source(origin) == source
    listed = Models((Model("tiny", "0" * 12, 1, origin),))
    assert [one.source for one in wanted.missing(listed, [])] == [source]


def test_settings_of_the_machine_win(
    backup: Backup, fresh: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came with a backup holds where nothing on this machine says otherwise."""
    bring(backup.path, fresh)
    monkeypatch.setenv("HOB_CONTEXT", "512")
    assert load_settings(data_dir=fresh.data_dir).context == 512
    monkeypatch.delenv("HOB_CONTEXT")
    assert load_settings(data_dir=fresh.data_dir).context == 2048
    assert load_settings(data_dir=fresh.data_dir, context=256).context == 256


def test_settings_of_the_machine_stay_there(tmp_path: Path) -> None:
    """Ports and folders are not carried away."""
    here = load_settings(data_dir=tmp_path, port=81, threads=3, lan=True, name="kitchen", unload_after=9)
    furnish(tmp_path)
    make(here)
    made = create._small(here)["settings.json"]
    assert made == b'{"name":"kitchen","unload_after":9}' or made == b'{"unload_after":9,"name":"kitchen"}'


def test_what_is_here_is_backed_up_before_it_is_replaced(house: Settings, fresh: Settings) -> None:
    """Unless there is nothing that anybody would miss."""
    assert create.keep_present(fresh, quiet) is None
    made = create.keep_present(house, quiet)
    assert made is not None
    assert made.header.reason == "restore"


def test_a_failure_is_kept_for_the_page(house: Settings) -> None:
    """The next one that succeeds clears it."""
    place = folder.of(house.data_dir)
    aside = house.data_dir / "aside"
    (house.data_dir / "hob.db").rename(aside)
    with pytest.raises(BackupError, match="nothing to back up"):
        make(house)
    assert "nothing to back up" in folder.last(place).error
    aside.rename(house.data_dir / "hob.db")
    make(house)
    assert folder.last(place).failed == 0


@pytest.mark.parametrize("length", [0, 11, 1025])
def test_a_passphrase_has_some_length(length: int) -> None:
    """A backup can be carried away and guessed at for years."""
    with pytest.raises(InvalidRequestError, match="characters"):
        keys.of_passphrase("x" * length, 0)


def test_bech32_as_its_specification_has_it() -> None:
    """A test vector of BIP 173, and age's own reading of what we write."""
    assert bech32.encode("a", b"") == "a12uel5l"
    generated = pyrage.x25519.Identity.generate()
    secret = os.urandom(32)
    text = bech32.encode(keys.SECRET, secret).upper()
    assert str(pyrage.x25519.Identity.from_str(text)) == text
    assert len(text) == len(str(generated))


def test_only_this_user_reads_them(backup: Backup) -> None:
    """Files and folder are private, whatever the umask."""
    assert backup.path.stat().st_mode & 0o077 == 0
    assert backup.path.parent.stat().st_mode & 0o077 == 0
    assert header.peek(backup.path) == backup.header


def test_schemas_older_and_newer(house: Settings, fresh: Settings, tmp_path: Path) -> None:
    """An older database is migrated; of a newer one, what this Hob does not know stays for the next."""
    with sqlite3.connect(house.data_dir / "hob.db") as db:
        db.execute("DROP TABLE pins")
        db.execute("DROP TABLE jobs")
        db.execute("DELETE FROM _sqlite_migrations WHERE name = 'jobs_and_pins'")
    db.close()
    made = make(house)
    bring(made.path, fresh)
    store = Store(fresh.data_dir / "hob.db")
    assert store.pins() == set()
    store.close()
    with sqlite3.connect(fresh.data_dir / "hob.db") as db:
        db.execute("CREATE TABLE colours (chat INTEGER, colour TEXT)")
        db.execute("INSERT INTO colours VALUES (1, 'red')")
        db.execute("INSERT INTO _sqlite_migrations VALUES (99, 'hob', 'colours', '2030-01-01')")
    db.close()
    newer = make(fresh)
    third = load_settings(data_dir=tmp_path / "third")
    bring(newer.path, third)
    assert chats(third) == ["Where is the marmalade?", ANSWER]
    with sqlite3.connect(third.data_dir / "hob.db") as db:
        assert db.execute("SELECT colour FROM colours").fetchall() == [("red",)]
    db.close()
    assert pending.apply(third) is None
