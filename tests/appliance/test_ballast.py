"""Room kept back: a disk that runs full does not lock its owner out."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import ballast
from appliance.ballast import AMPLE, LOW, WEIGHT, decide
from appliance.store import Store

pytestmark = pytest.mark.anyio


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a file system of its own with room for the ballast, and little else."""
    place = tmp_path / "disk"
    place.mkdir()
    size = WEIGHT + AMPLE + 2**20
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(folder: Path) -> Path:
    """Write a file until nothing more fits."""
    file = folder / "filler"
    handle = os.open(file, os.O_CREAT | os.O_WRONLY)
    for piece in (2**16, 2**12):
        try:
            while os.write(handle, bytes(piece)) == piece:
                pass
        except OSError:
            continue
    os.close(handle)
    return file


def room(file: Path) -> int:
    """Bytes of the disk that a file takes; 0 where it does not exist."""
    return file.stat().st_blocks * 512 if file.exists() else 0


@pytest.mark.parametrize(
    ("free", "aboard", "change"),
    [
        (0, True, "throw off"),
        (LOW - 1, True, "throw off"),
        (LOW, True, "none"),
        (AMPLE, True, "none"),
        (0, False, "none"),
        (LOW + WEIGHT, False, "none"),  # just thrown off: not taken on again at once
        (AMPLE - 1, False, "none"),
        (AMPLE, False, "take on"),
    ],
)
def test_what_the_disk_asks_for(free: int, aboard: bool, change: str) -> None:
    """It goes when the disk is all but full, and comes back only when there is far more room."""
    assert decide(free, aboard) == change


async def test_a_full_disk_leaves_room_to_start(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken on while there is room; thrown off when the disk is full. Then the database opens and writes."""
    monkeypatch.setattr(ballast, "FIRST", 0)
    keeping = asyncio.create_task(ballast.keep(small_disk))
    async with asyncio.timeout(10):
        while room(small_disk / ballast.FILE) < WEIGHT:  # noqa: ASYNC110 - a file sets no event
            await asyncio.sleep(0.01)
    keeping.cancel()
    assert ballast.short(small_disk) == ""

    filler = fill(small_disk)
    ballast.throw_off(small_disk)
    assert not (small_disk / ballast.FILE).exists()
    assert re.match(r"The disk is full: 3\d MB are left\.", ballast.short(small_disk))
    store = Store(small_disk / "hob.db")
    store.create_owner("a password's hash")
    store.close()

    filler.unlink()
    assert ballast.short(small_disk) == ""


def test_without_it_the_database_does_not_open(small_disk: Path) -> None:
    """What it is there for: on a disk without a free block SQLite opens nothing, not even to read."""
    Store(small_disk / "hob.db").close()
    fill(small_disk)
    program = (
        "import pathlib, sys; from appliance.store import Store; Store(pathlib.Path(sys.argv[1])).close()"
    )
    command = [sys.executable, "-c", program, str(small_disk / "hob.db")]
    opening = subprocess.run(command, capture_output=True, text=True, check=False)
    assert opening.returncode != 0
    assert "StoreError" in opening.stderr
