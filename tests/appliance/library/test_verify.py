"""Files against their manifest."""

import shutil
from pathlib import Path

import pytest

from appliance.errors import ConflictError, DamagedError
from appliance.library.lock import locked
from appliance.library.manifest import MANIFEST
from appliance.library.shelf import Shelf
from appliance.library.verify import Finding, ensure, verify
from tests.appliance.library.adding import MLC
from tests.appliance.library.test_shelf import put


def damage(file: Path) -> None:
    """Flip one bit, as a worn-out card does."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)


def test_a_sound_model(shelf: Shelf) -> None:
    """Nothing is found, and every file was read."""
    read: list[str] = []
    entry = put(shelf, "tiny")
    assert verify(entry, lambda name, done, total: read.append(name)) == []
    assert sorted(read) == sorted(path.name for path in MLC.iterdir())


def test_every_kind_of_damage_is_named(shelf: Shelf) -> None:
    """Damaged, missing and added files are told apart; what was added does no harm."""
    entry = put(shelf, "tiny")
    damage(entry.path / "tokenizer.json")
    (entry.path / "tokenizer_config.json").unlink()
    (entry.path / "notes.txt").write_text("mine")
    assert verify(entry) == [
        Finding("tokenizer.json", "damaged"),
        Finding("tokenizer_config.json", "missing"),
        Finding("notes.txt", "unknown"),
    ]
    with pytest.raises(
        DamagedError, match=r"tokenizer\.json \(damaged\), tokenizer_config\.json \(missing\)"
    ):
        ensure(entry)


def test_unknown_files_alone_are_no_damage(shelf: Shelf) -> None:
    """A note beside a model does not make it damaged."""
    entry = put(shelf, "tiny")
    (entry.path / "notes.txt").write_text("mine")
    ensure(entry)


def test_a_directory_copied_by_hand(shelf: Shelf) -> None:
    """Without a manifest the weights are compared with the sums that came with them."""
    path = Path(shutil.copytree(MLC, shelf.folder / "by-hand"))
    assert verify(shelf.find("by-hand")) == []
    damage(path / "params_shard_0.bin")
    (finding,) = verify(shelf.find("by-hand"))
    assert "params_shard_0.bin" in finding.problem


def test_a_damaged_manifest(shelf: Shelf) -> None:
    """A manifest that cannot be read is damage too."""
    entry = put(shelf, "tiny")
    (entry.path / MANIFEST).chmod(0o644)
    (entry.path / MANIFEST).write_text("{")
    (found,) = shelf.entries()
    assert [finding.file for finding in verify(found)] == [MANIFEST]


def test_a_model_that_is_being_removed(shelf: Shelf) -> None:
    """Nobody reports damage where somebody is deleting."""
    entry = put(shelf, "tiny")
    with (
        locked(entry.path, exclusive=True, busy="x"),
        pytest.raises(ConflictError, match="being removed"),
    ):
        verify(entry)
