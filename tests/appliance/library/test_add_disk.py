"""Adding models where the disk is small: room is looked for first, and running out of it harms nothing."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from appliance.errors import (
    DiskFullError,
)
from appliance.library import space
from appliance.library.shelf import INCOMING, Shelf
from appliance.library.verify import verify
from builder.errors import BuildError
from tests.appliance.library.adding import MLC, REPOSITORY, Adding
from tests.appliance.library.hub import Hub
from tests.builder.checkpoints import write_checkpoint


@pytest.mark.usefixtures("unchanged")
def test_room_is_looked_for_first(adding: Adding, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how much is missing, and nothing was fetched."""
    server.publish(REPOSITORY, MLC)
    monkeypatch.setattr(space, "free", lambda folder: space.RESERVE + 100_000)
    with pytest.raises(DiskFullError, match="not enough room") as caught:
        adding(REPOSITORY)
    assert "Free 357 kB" in caught.value.hint
    assert server.asked("params_shard_0.bin") == []


def test_room_for_what_is_here_already(adding: Adding, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second version needs room for what differs, and no more."""
    files = {path.name: path.read_bytes() for path in MLC.iterdir()}
    server.publish(REPOSITORY, files)
    adding(REPOSITORY)
    server.publish(REPOSITORY, files | {"LICENSE": b"Free."})
    monkeypatch.setattr(space, "free", lambda folder: space.RESERVE + 50_000)
    assert adding(REPOSITORY).current


def test_leftovers_of_others_give_way(
    adding: Adding, server: Hub, mlc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is not enough room, what waits to be gone on with is given up."""
    other = adding.shelf.folder / INCOMING / "other"
    other.mkdir(parents=True)
    monkeypatch.setattr(space, "free", lambda folder: space.RESERVE if other.exists() else 10**9)
    assert adding(mlc).reference == "Tiny-q4f16_1"
    assert not other.exists()


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of its own with three megabytes, none of them reserved."""
    monkeypatch.setattr(space, "RESERVE", 0)
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this system mounts no tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Take all the room there is, as another program may."""
    with (folder / "filler").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))


@pytest.mark.parametrize("step", ["fetching", "copying", "converting"])
def test_a_disk_that_fills_halfway(
    small_disk: Path,
    client: httpx.Client,
    server: Hub,
    mlc: Path,
    tmp_path: Path,
    step: str,
) -> None:
    """Another program takes the last bytes meanwhile: an error, no half model, and the room is given back."""
    adding = Adding(Shelf(small_disk / "models"), client)
    first = adding(mlc, name="first")
    source: str | Path = mlc
    if step == "fetching":
        source = REPOSITORY
        files = {path.name: path.read_bytes() for path in MLC.iterdir()}
        server.publish(REPOSITORY, files | {"tokenizer.model": os.urandom(500_000)})
    if step == "converting":
        source = write_checkpoint(tmp_path / "stick")
    filler = small_disk / "filler"
    adding.at = {step: lambda: None if filler.exists() else fill(small_disk)}
    with pytest.raises((DiskFullError, BuildError)) as caught:
        adding(source, name="second")
    error = caught.value
    assert isinstance(error, DiskFullError | BuildError)
    assert "full" in str(error) or "space" in error.hint or "room" in str(error)
    filler.unlink()
    (only,) = adding.shelf.entries()
    assert only.version == first.version
    assert verify(only) == []
    assert not list((adding.shelf.folder / INCOMING).iterdir())
    adding.at = {}
    assert verify(adding(source, name="second")) == []


def test_a_full_disk_is_freed_by_removing(small_disk: Path, mlc: Path, client: httpx.Client) -> None:
    """Removing needs no room of its own."""
    shelf = Shelf(small_disk / "models")
    entry = Adding(shelf, client)(mlc)
    fill(small_disk)
    shelf.remove(entry)
    assert shelf.entries() == []
    assert space.free(small_disk) > 400_000
