"""The models folder: versions side by side, complete or absent, shared content, locks, leftovers."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ConflictError, DamagedError, InvalidRequestError, UnknownModelError
from appliance.library import manifest
from appliance.library import shelf as shelves
from appliance.library.lock import in_use
from appliance.library.manifest import MANIFEST, Origin
from appliance.library.shelf import GONE, INCOMING, Entry, Shelf, describe
from tests.appliance.library.adding import MLC

ORIGIN = Origin("hub", "someone/model", "c0ffee" + "0" * 34)


def put(shelf: Shelf, name: str, revision: str = ORIGIN.revision, **changes: object) -> Entry:
    """Add a copy of the golden model with changed fields in its configuration."""
    with shelf.incoming(f"test-{name.replace('/', '-')}") as folder:
        made = Path(shutil.copytree(MLC, folder / "model", dirs_exist_ok=True))
        config = made / "mlc-chat-config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
        return shelf.commit(
            made, describe(made, name, Origin("hub", "someone/model", revision), "apache-2.0")
        )


def test_a_version_is_named_after_its_content(shelf: Shelf) -> None:
    """The directory carries the version, the manifest every file, and the bare name means it."""
    entry = put(shelf, "tiny")
    assert entry.manifest
    assert entry.path == shelf.folder / f"tiny@{entry.version}"
    assert {file.name for file in entry.manifest.files} == {path.name for path in MLC.iterdir()}
    assert entry.current
    assert entry.reference == "tiny"
    assert shelf.find("tiny") == shelf.find(f"tiny@{entry.version}") == entry
    assert not list(shelf.folder.glob(f"{INCOMING}/*"))


def test_versions_lie_side_by_side(shelf: Shelf) -> None:
    """The bare name means the one added last; the other is reached by version or revision, cut short too."""
    first = put(shelf, "tiny", "a" * 40)
    second = put(shelf, "tiny", "b" * 40, temperature=0.5)
    assert first.version != second.version
    assert shelf.find("tiny").version == second.version
    assert shelf.find(f"tiny@{first.version[:6]}").path == first.path
    assert shelf.find("tiny@aaaa").path == first.path
    assert [entry.reference for entry in shelf.entries()] == ["tiny", f"tiny@{first.version}"]
    again = put(shelf, "tiny", "a" * 40)
    assert again.path == first.path
    assert shelf.find("tiny").version == first.version


def test_a_clock_that_was_set_back_changes_no_order(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a clock's battery may think it is 1970; what is added last is last all the same."""
    put(shelf, "tiny")
    monkeypatch.setattr(time, "time", lambda: 5.0)
    second = put(shelf, "tiny", temperature=0.5)
    assert shelf.find("tiny").version == second.version


@pytest.mark.parametrize("reference", ["other", "tiny@ffffffffffff", "tiny@", "tiny@a", "../tiny", "", "@"])
def test_what_is_not_there(shelf: Shelf, reference: str) -> None:
    """Unknown names and versions are refused, with what there is."""
    put(shelf, "tiny", "a" * 40)
    with pytest.raises(UnknownModelError):
        shelf.find(reference)


def test_equal_files_are_one_file(shelf: Shelf) -> None:
    """Two versions share what is the same in both, and removing one leaves the other whole."""
    first = put(shelf, "tiny")
    assert first.manifest
    shard = first.manifest.file("params_shard_0.bin")
    assert shard
    with shelf.incoming("second") as folder:
        made = Path(shutil.copytree(MLC, folder / "model"))
        assert shelf.borrow(shard, made / shard.name)
        (made / "LICENSE").write_text("Free.")
        second = shelf.commit(made, describe(made, "tiny", ORIGIN, ""))
    assert (second.path / shard.name).samefile(first.path / shard.name)
    shelf.remove(first)
    assert manifest.digest(second.path / shard.name) == shard


def test_damaged_files_are_not_shared(shelf: Shelf, tmp_path: Path) -> None:
    """Before content is used again it is compared with its checksum."""
    entry = put(shelf, "tiny")
    assert entry.manifest
    shard = entry.manifest.file("params_shard_0.bin")
    assert shard
    file = entry.path / shard.name
    file.chmod(0o644)
    file.write_bytes(bytes(shard.size))
    assert not shelf.borrow(shard, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_adding_again_repairs(shelf: Shelf) -> None:
    """The same version once more puts sound files in the place of damaged and missing ones."""
    entry = put(shelf, "tiny")
    (entry.path / "params_shard_0.bin").unlink()
    (entry.path / "tokenizer.json").chmod(0o644)
    (entry.path / "tokenizer.json").write_text("{}")
    again = put(shelf, "tiny")
    assert again.path == entry.path
    assert again.manifest
    assert all(manifest.digest(again.path / file.name) == file for file in again.manifest.files)


def test_directories_copied_by_hand_keep_working_and_are_adopted(shelf: Shelf) -> None:
    """Without a manifest a directory is listed under its name; adopting writes one and moves nothing."""
    shutil.copytree(MLC, shelf.folder / "by-hand")
    (entry,) = shelf.entries()
    assert (entry.reference, entry.version, entry.manifest) == ("by-hand", "", None)
    with pytest.raises(ConflictError, match="by-hand"):
        put(shelf, "by-hand")
    adopted = shelf.adopt("by-hand", Origin("file", "stick"))
    assert adopted.path == shelf.folder / "by-hand"
    assert adopted.manifest
    assert shelf.find(f"by-hand@{adopted.version}") == adopted
    newer = put(shelf, "by-hand", temperature=0.5)
    assert [e.path for e in shelf.versions("by-hand")] == [newer.path, adopted.path]


def test_names_that_are_none(shelf: Shelf) -> None:
    """Nothing is ever put outside the folder, over the built-in model, or where it would be hidden."""
    for name in ("../x", "/x", "a/b/c", ".x", "a/../b", "", "hob-guide", "x.partial", "a@b", "a\n", "n" * 99):
        with pytest.raises(InvalidRequestError):
            shelf.check_free(name)
    assert put(shelf, "someone/model").reference == "someone/model"


def test_removing_the_last_of_an_owner(shelf: Shelf) -> None:
    """The folder of an owner goes with its last model."""
    shelf.remove(put(shelf, "someone/model"))
    assert [path.name for path in shelf.folder.iterdir()] == [INCOMING]


def test_what_is_in_use_stays(shelf: Shelf) -> None:
    """A model that is held by somebody is not removed, unless forced; whoever holds it goes on reading."""
    entry = put(shelf, "tiny")
    with in_use(entry.path):
        with pytest.raises(ConflictError, match="tiny is in use"):
            shelf.remove(entry)
        with (entry.path / "tokenizer.json").open("rb") as stream:
            shelf.remove(entry, force=True)
            assert stream.read() == (MLC / "tokenizer.json").read_bytes()
    assert shelf.entries() == []


def test_two_processes_do_not_add_the_same(shelf: Shelf) -> None:
    """Whoever comes second is told; the lock goes with its process, however that ends."""
    code = f"""
        import sys, time
        from pathlib import Path
        from appliance.library.shelf import Shelf
        with Shelf(Path({str(shelf.folder)!r})).incoming("key"):
            print("held", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConflictError, match="another process"), shelf.incoming("key"):
            pass
        shelf.sweep(seconds=0)
        assert (shelf.folder / INCOMING / "key").is_dir()
        other.kill()
    with shelf.incoming("key") as folder:
        assert folder.is_dir()


def test_leftovers_are_swept(shelf: Shelf) -> None:
    """What a killed process left goes: half-removed models at once, downloads after a week."""
    put(shelf, "tiny")
    for name, age in ((f"{GONE}abc", 0), (f"{INCOMING}/old", 8 * 86400), (f"{INCOMING}/new", 3600)):
        path = shelf.folder / name
        path.mkdir(parents=True)
        (path / "weights.bin.part").write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    shelf.sweep()
    assert {path.name for path in shelf.folder.glob(".*")} == {INCOMING}
    assert [path.name for path in shelf.folder.glob(f"{INCOMING}/*")] == ["new"]
    assert len(shelf.entries()) == 1


def test_a_damaged_manifest_is_told(shelf: Shelf) -> None:
    """The model is still there, and what is wrong with its manifest is said."""
    entry = put(shelf, "tiny")
    file = entry.path / MANIFEST
    file.chmod(0o644)
    file.write_text("{")
    (found,) = shelf.entries()
    assert found.manifest is None
    assert MANIFEST in found.problem


KILLED = """
import os, sys
from pathlib import Path
from appliance.library import manifest, shelf as shelves
from appliance.library.add import add, plan
from appliance.library.offer import find
from appliance.library.remote import session
from appliance.library.shelf import GONE, Shelf
from appliance.library.source import Local

folder, first, second = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
CALLS = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir", "chmod")

def work(calls):
    \"""Add and remove a version; the power fails before the next of so many calls.\"""
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
    shelf = Shelf(folder)
    with session() as client:
        offer = find(Local(second), client)
        planned = plan(offer, name="tiny", quantization="q4f16_1", context=128)
        shelf.remove(add(shelf, offer, planned, client, print, lambda *told: None))
    os._exit(0)

calls, states, status = 0, set(), 9
while status == 9:
    child = os.fork()
    if child == 0:
        work(calls)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    shelf = Shelf(folder)
    entries = shelf.entries()
    versions = {entry.version for entry in entries}
    assert first in versions, calls
    for entry in entries:
        assert entry.manifest, calls
        for file in entry.manifest.files:
            assert manifest.digest(entry.path / file.name) == file, (calls, file)
        if entry.version != first:
            shelf.remove(entry)
    shelf.sweep(seconds=0)
    assert not list(folder.glob(GONE + "*"))
    states.add(len(versions))
    calls += 1
assert status == 0, status
print(calls, sorted(states))
"""


def test_a_kill_at_any_moment_leaves_all_or_nothing(shelf: Shelf, mlc: Path) -> None:
    """Killed before each system call that changes the disk, the shelf can be read and is true."""
    first = put(shelf, "tiny")
    (mlc / "LICENSE").write_text("Free.")
    command = [sys.executable, "-c", KILLED, str(shelf.folder), first.version, str(mlc)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    calls, states = done.stdout.split(maxsplit=1)
    assert int(calls) > 10
    assert json.loads(states) == [1, 2]


def test_everything_is_on_disk_before_it_appears(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and directory are forced to disk before the rename, the folder after it, for power cuts."""
    synced: list[int] = []
    renamed: list[tuple[set[int], int]] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def recorded_rename(source: Path, target: Path) -> None:
        inside = {path.stat().st_ino for path in Path(source).iterdir()} | {Path(source).stat().st_ino}
        renamed.append((inside - set(synced), len(synced)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    put(shelf, "tiny")
    ((missing, before),) = renamed
    assert missing == set()
    assert shelf.folder.stat().st_ino in synced[before:]


def test_a_file_is_on_disk_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced to disk before it gets its name and after, as FAT wants it, and the folder last."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        calls.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def recorded_replace(source: Path, target: Path) -> Path:
        calls.append("replace")
        return replace(source, target)

    (tmp_path / "part").write_text("all of it")
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    shelves.put(tmp_path / "part", tmp_path / "whole")
    assert calls == ["part", "replace", "whole", tmp_path.name]
    assert (tmp_path / "whole").read_text() == "all of it"


def test_manifests_from_elsewhere_are_checked() -> None:
    """What a manifest may not say is refused with the place it came from."""
    good: dict[str, Any] = {
        "format": 1,
        "name": "tiny",
        "added": 1,
        "origin": {"kind": "hub", "source": "someone/model"},
        "licence": "",
        "files": [{"name": "mlc-chat-config.json", "size": 1, "sha256": "0" * 64}],
    }
    assert manifest.decode(json.dumps(good).encode(), "x").name == "tiny"
    file = {"name": "a.bin", "size": 1, "sha256": "0" * 64}
    both = [*good["files"], file]
    changes: list[dict[str, Any]] = [
        {"format": 2},
        {"name": "../x"},
        {"name": "x/../y"},
        {"added": -1},
        {"origin": {"kind": "moon", "source": ""}},
        {"files": []},
        {"files": [file]},
        {"files": [*both, {**file, "name": "A.BIN"}]},
        {"files": [*both, {**file, "name": "../a"}]},
        {"files": [*both, {**file, "name": "/etc/passwd"}]},
        {"files": [*both, {**file, "name": "b\n"}]},
        {"files": [*both, {**file, "name": MANIFEST}]},
        {"files": [*both, {**file, "name": "b", "size": -1}]},
        {"files": [*both, {**file, "name": "b", "size": 2**60}]},
        {"files": [*both, {**file, "name": "b", "sha256": "xyz"}]},
        {"files": [{**file, "name": f"f{i}"} for i in range(10_001)]},
    ]
    for change in changes:
        with pytest.raises(DamagedError, match=r"^here: "):
            manifest.decode(json.dumps({**good, **change}).encode(), "here")
    for data in (b"", b"[]", b"{", b"\xff", b"[" * 100_000, b" " * 5 * 2**20):
        with pytest.raises(DamagedError, match=r"^here: "):
            manifest.decode(data, "here")
