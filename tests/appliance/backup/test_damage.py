"""What is no backup, or no longer one, or has no room: one line, a hint, and what is here stays as it is."""

import contextlib
import hashlib
import io
import os
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.backup import content, create, folder, header, keys, pending, restore, sealing
from appliance.backup.content import Counts, File, Manifest
from appliance.backup.create import Request
from appliance.backup.folder import Backup
from appliance.backup.header import Header
from appliance.backup.keys import Key
from appliance.config import Settings
from appliance.errors import (
    BackupError,
    DiskFullError,
    HobError,
    LibraryError,
    NotFoundError,
    PassphraseError,
)
from appliance.library import space
from tests.appliance.backup.conftest import ANSWER, PASSPHRASE, bring, chats, make, quiet

Edit = Callable[[bytes], bytes]


def refused(
    path: Path, here: Settings, kind: type[HobError] = BackupError, passphrase: str = PASSPHRASE
) -> str:
    """What is said when a file cannot be restored; nothing is left of the attempt."""
    with pytest.raises(kind) as caught:
        restore.prepare(path, here.data_dir, quiet, passphrase=passphrase)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert not list((here.data_dir / restore.PLACE).glob("*"))
    assert pending.apply(here) is None
    assert chats(here) == ["Where is the marmalade?", ANSWER]
    return caught.value.message


def changed(backup: Backup, edit: Edit) -> Path:
    """The backup after an edit."""
    copy = backup.path.with_name("changed.hobbackup")
    copy.write_bytes(edit(backup.path.read_bytes()))
    return copy


def first_line(**changes: Any) -> Edit:
    """An edit of the first line alone."""

    def edit(data: bytes) -> bytes:
        line, _, sealed = data.partition(b"\n")
        said = msgspec.json.decode(line.split(b" ", 2)[2]) | changes
        return b"hob-backup 1 " + msgspec.json.encode(said) + b"\n" + sealed

    return edit


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda data: b"", "not a backup"),
        (lambda data: b"SQLite format 3\0" + data, "not a backup"),
        (lambda data: data[:20], "first line"),
        (lambda data: data[:300], "damaged"),
        (lambda data: data.replace(b"hob-backup 1", b"hob-backup 2", 1), "version 2"),
        (lambda data: data.replace(b"hob-backup 1", b"hob-backup x", 1), "first line"),
        (lambda data: data.replace(b'"created"', b'"creation"', 1), "first line"),
        (lambda data: b"hob-backup 1 " + b"[" * 10**6 + b"\n", "first line"),
        (first_line(name="another"), "first line was changed"),
        (first_line(created=1), "first line was changed"),
        (first_line(kdf={"salt": "A" * 24, "memory": 2**30, "passes": 1}), "first line says"),
        (first_line(kdf={"salt": "A" * 24, "memory": 8192, "passes": 10**6}), "first line says"),
        (first_line(recipients=[]), "first line says"),
        (lambda data: data[: data.index(b"\n") + 1], "damaged"),
        (lambda data: data[:-1], "damaged"),
        (lambda data: data[:-2000], "damaged"),
        (lambda data: data + b"x", "damaged"),
        (lambda data: data[:-500] + bytes([data[-500] ^ 1]) + data[-499:], "damaged"),
    ],
)
def test_a_damaged_file(house: Settings, backup: Backup, edit: Edit, text: str) -> None:
    """Cut off, changed by a bit, or something else: it is refused, and said what it is."""
    assert text in refused(changed(backup, edit), house)


@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bit(house: Settings, backup: Backup, place: int, bit: int) -> None:
    """No bit can be changed without being noticed before anything has changed here."""
    data = bytearray(backup.path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    refused(changed(backup, lambda _: bytes(data)), house)


def test_the_wrong_passphrase(house: Settings, backup: Backup) -> None:
    """It is told from damage; a salt that was changed makes every passphrase wrong."""
    assert "passphrase is not right" in refused(
        backup.path, house, PassphraseError, "correct horse battery stable"
    )
    assert "needs its passphrase" in refused(backup.path, house, PassphraseError, "")
    salted = first_line(kdf={"salt": "A" * 22 + "==", "memory": 8192, "passes": 1})
    assert "passphrase is not right" in refused(changed(backup, salted), house, PassphraseError)
    other = keys.of_passphrase("quite another passphrase", 0)
    swapped = first_line(recipients=other.recipients, kdf=msgspec.to_builtins(other.kdf))
    assert "was not made for this" in refused(
        changed(backup, swapped), house, PassphraseError, "quite another passphrase"
    )


class Forger:
    """Makes backups for the house's key that Hob itself would never make."""

    def __init__(self, house: Settings) -> None:
        key = keys.load(folder.of(house.data_dir))
        assert key is not None
        self.key: Key = key
        self.head = Header(
            created=5, reason="manual", name="hob", version="9", recipients=key.recipients, kdf=key.kdf
        )
        self.path = house.data_dir / "forged.hobbackup"

    def seal(self, tar: bytes) -> Path:
        """A backup with this tar in it."""
        with self.path.open("wb") as out:
            out.write(header.encode(self.head))
            sealing.seal(iter([tar]), out, self.key.recipients)
        return self.path

    def tar(self, data: dict[str, bytes], *, key: Key | None = None, **changes: Any) -> bytes:
        """The tar of a backup with these files; `changes` are of its manifest."""
        listed = tuple(File(name, len(one), hashlib.sha256(one).hexdigest()) for name, one in data.items())
        line = hashlib.sha256(header.encode(self.head)).hexdigest()
        manifest = Manifest(header=self.head, line=line, counts=Counts(), models=0, steps=(), files=listed)
        manifest = msgspec.structs.replace(manifest, **changes)
        return b"".join(content.pack(manifest, key or self.key, data))

    def database(self) -> bytes:
        """An empty SQLite database."""
        with contextlib.closing(sqlite3.connect(self.path.with_name("empty.db"))) as db:
            db.execute("VACUUM")
        return self.path.with_name("empty.db").read_bytes()


@pytest.fixture
def forger(house: Settings) -> Forger:
    """Somebody who knows the house's passphrase, and means ill."""
    return Forger(house)


def members(*infos: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar by the hand of Python's own writer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in infos:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_tar_of_another_program(house: Settings, forger: Forger) -> None:
    """It does not begin with a manifest."""
    assert "does not begin with its manifest" in refused(
        forger.seal(members((tarfile.TarInfo("notes.txt"), b"hello"))), house
    )


@pytest.mark.parametrize(
    "name", ["../hob.db", "/etc/passwd", "a/b", ".hidden", "", "hob.db\n", "HOB.DB", "x" * 60]
)
def test_paths_in_the_list(house: Settings, forger: Forger, name: str) -> None:
    """A manifest cannot even say where else a file should go."""
    data = forger.database()
    assert "manifest is not valid" in refused(forger.seal(forger.tar({"hob.db": data, name: b"x"})), house)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME]
)
def test_links_and_extended_headers(house: Settings, forger: Forger, kind: bytes) -> None:
    """They are refused where they are met; nothing follows them."""
    sound = forger.tar({"hob.db": forger.database()})
    link = tarfile.TarInfo("hob.db")
    link.type, link.linkname = kind, "/etc/passwd"
    start = sound.index(b"hob.db\0")
    assert "not a plain file" in refused(
        forger.seal(sound[:start] + link.tobuf(tarfile.USTAR_FORMAT) + sound[start + 512 :]), house
    )


def test_members_that_the_list_does_not_have(house: Settings, forger: Forger) -> None:
    """Other files, other sizes, another order, more at the end: refused."""
    files = {"hob.db": forger.database(), "models.json": b"{}"}
    sound = forger.tar(files)
    swapped = forger.tar(dict(reversed(files.items())))
    start, end = sound.index(b"hob.db\0"), swapped.index(b"models.json\0")
    assert "is not where its manifest says" in refused(forger.seal(sound[:start] + swapped[end:]), house)
    assert "more than its manifest lists" in refused(forger.seal(sound + b"x" * 512), house)
    assert "ends within hob.db" in refused(forger.seal(sound[: start + 3000]), house)
    assert "has no header" in refused(forger.seal(sound[:start]), house)
    broken = bytearray(sound)
    broken[start + 600] ^= 1
    assert "has SHA-256" in refused(forger.seal(bytes(broken)), house)
    twice = (File("hob.db", 0, "0" * 64),) * 2
    assert "a file twice" in refused(forger.seal(forger.tar(files, files=twice)), house)


def test_lists_that_take_too_much(house: Settings, forger: Forger) -> None:
    """However well packed, a list stays within what memory is set aside for."""
    files = {"hob.db": forger.database(), "models.json": bytes(content.MAX_SMALL + 1)}
    assert "too large" in refused(forger.seal(forger.tar(files)), house)
    assert "its manifest" in refused(
        forger.seal(members((tarfile.TarInfo("manifest.json"), bytes(content.MAX_MANIFEST + 1)))), house
    )


def test_a_database_that_is_none(house: Settings, forger: Forger) -> None:
    """Garbage, pages that were swapped, or tables of something else: the old one stays."""
    assert "database in" in refused(forger.seal(forger.tar({"hob.db": b"x" * 5000})), house)
    with contextlib.closing(sqlite3.connect(forger.path.with_name("other.db"))) as db:
        db.execute("CREATE TABLE chats (photograph BLOB)")
        db.commit()
    other = forger.path.with_name("other.db").read_bytes()
    assert "database in" in refused(forger.seal(forger.tar({"hob.db": other})), house)
    for name in ("models.json", "settings.json", "key.json"):
        broken = {"hob.db": forger.database(), name: b"[}"}
        assert "list in" in refused(forger.seal(forger.tar(broken)), house)


def test_somebody_who_only_knows_the_recipient(house: Settings, forger: Forger) -> None:
    """The recipient stands in every backup: who knows no more makes none that the passphrase accepts."""
    data = {"hob.db": forger.database()}
    without = msgspec.structs.replace(forger.key, proof="")
    other = msgspec.structs.replace(forger.key, proof=keys.kept_here(0).proof)
    for key in (without, other):
        assert "does not know the passphrase" in refused(forger.seal(forger.tar(data, key=key)), house)


def test_settings_that_do_not_belong(house: Settings, forger: Forger) -> None:
    """A backup cannot point the service elsewhere; what it may not set is said and left out."""
    data = {
        "hob.db": forger.database(),
        "settings.json": b'{"data_dir": "/", "host": "0.0.0.0", "context": -1, "unload_after": 7}',
    }
    ready = restore.prepare(forger.seal(forger.tar(data)), house.data_dir, quiet, passphrase=PASSPHRASE)
    assert [note.split()[2] for note in ready.notes] == ["data_dir", "host", "context"]
    restore.commit(house.data_dir, ready.token)
    pending.apply(house)
    assert (house.data_dir / "restored-settings.json").read_bytes() == b'{"unload_after":7}'


def test_files_of_a_newer_hob_are_left_alone(house: Settings, forger: Forger) -> None:
    """What this Hob has no use for is no reason to refuse the rest."""
    data = {"hob.db": forger.database(), "voices.bin": b"la la"}
    ready = restore.prepare(forger.seal(forger.tar(data)), house.data_dir, quiet, passphrase=PASSPHRASE)
    names = {path.name for path in (house.data_dir / restore.PLACE / f"ready-{ready.token}").iterdir()}
    assert names == {"hob.db", "manifest.json", "settings.json"}


def test_there_is_no_such_file(house: Settings, tmp_path: Path) -> None:
    """A path with nothing at its end, a folder, a name that is not in the list."""
    assert "cannot be read" in refused(tmp_path / "absent", house, LibraryError)
    with pytest.raises(BackupError, match="is a folder"):
        folder.sound(tmp_path)
    with pytest.raises(NotFoundError, match="no backup"):
        folder.find(folder.of(house.data_dir), "absent")


def test_a_prepared_one_waits_for_an_hour(house: Settings, backup: Backup) -> None:
    """Then it is swept away, as by the next start; a token that is none means nothing."""
    ready = restore.prepare(backup.path, house.data_dir, quiet, passphrase=PASSPHRASE)
    assert restore.prepared(house.data_dir, ready.token) == ready.manifest
    old = time.time() - restore.WAITS - 1
    os.utime(house.data_dir / restore.PLACE / f"ready-{ready.token}", (old, old))
    restore.sweep(house.data_dir)
    for token in (ready.token, "", "../../etc", "pending"):
        with pytest.raises(NotFoundError, match="no longer prepared"):
            restore.commit(house.data_dir, token)
    ready = restore.prepare(backup.path, house.data_dir, quiet, passphrase=PASSPHRASE)
    assert pending.apply(house) is None
    with pytest.raises(NotFoundError):
        restore.commit(house.data_dir, ready.token)


def test_a_damaged_database_gives_way_and_is_kept(house: Settings, backup: Backup) -> None:
    """A backup is what there is for this; what can still be recovered from the old file stays."""
    database = house.data_dir / "hob.db"
    damaged = b"no longer a database" + database.read_bytes()[20:]
    database.write_bytes(damaged)
    with pytest.raises(HobError, match=r"hob\.db"):
        make(house)
    assert create.keep_present(house, quiet) is None
    bring(backup.path, house)
    assert chats(house) == ["Where is the marmalade?", ANSWER]
    assert (house.data_dir / pending.DAMAGED).read_bytes() == damaged


def test_room_is_looked_for_first(house: Settings, backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how much is missing; nothing was written, and what is here stays."""
    monkeypatch.setattr(space, "free", lambda place: space.RESERVE + 1000)
    before = sorted(path.name for path in folder.of(house.data_dir).iterdir())
    with pytest.raises(DiskFullError, match="not enough room"):
        make(house)
    assert "not enough room" in refused(backup.path, house, DiskFullError)
    assert sorted(path.name for path in folder.of(house.data_dir).iterdir()) == before


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[Path]:
    """A stick with room for 64 kB."""
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    place = tmp_path / "stick"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this system mounts no tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_a_stick_that_fills_or_is_pulled(
    house: Settings, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a backup never has a backup's name, even where the last bytes alone find no room."""
    with pytest.raises(DiskFullError, match="not enough room"):
        make(house, Request(to=stick))
    monkeypatch.setattr(space, "free", lambda place: 10**10)
    (stick / "photographs").write_bytes(bytes(60 * 1024))
    with pytest.raises(DiskFullError, match="disk is full"):
        make(house, Request(to=stick))
    assert [path.name for path in stick.iterdir()] == ["photographs"]
    (stick / "photographs").unlink()
    made = make(house, Request(to=stick))
    assert folder.backups(stick) == [made]
    subprocess.run(["umount", "--lazy", stick], check=True)
    stick.rmdir()
    with pytest.raises(LibraryError, match="cannot be read or written") as caught:
        make(house, Request(to=stick))
    assert "stick" in caught.value.hint
    stick.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", stick], check=True)  # for the fixture to take away
