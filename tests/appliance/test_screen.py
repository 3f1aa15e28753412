"""What the screen of a device shows."""

import asyncio
from pathlib import Path

import pytest

from appliance.cli import screen


async def turns(count: int) -> None:
    """Let other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_where_hob_is_and_the_code() -> None:
    """Name, addresses, the code for the first visit, and a QR code of an address for any phone."""
    text = screen.text(["kitchen.local", "192.168.1.7", "10.0.0.3"], 80, "K7WQ-3MZP-XR5T")
    assert "Hob is at   http://kitchen.local\n" in text
    assert "http://192.168.1.7\n" in text
    assert "K7WQ-3MZP-XR5T" in text
    assert "▀" in text
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 25  # the smallest text screen


def test_with_an_owner_there_is_no_code_to_show() -> None:
    """The code opens nothing any more, so it is not asked for."""
    assert "code" not in screen.text(["kitchen.local", "192.168.1.7"], 8080, "").partition("▀")[0]


def test_without_a_network_nothing_is_promised() -> None:
    """A name that nobody can resolve is not shown."""
    text = screen.text(["kitchen.local"], 80, "K7WQ-3MZP-XR5T")
    assert "has no network" in text
    assert "http://" not in text


@pytest.mark.anyio
async def test_the_file_follows_what_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written when something has changed, and only then."""
    monkeypatch.setattr(screen, "LOOK_SECONDS", 0.0)
    file, said = tmp_path / "screen", ["one"]
    task = asyncio.create_task(screen.keep(file, lambda: said[0]))
    try:
        await turns(20)
        assert file.read_text() == "one"
        inode = file.stat().st_ino
        await turns(20)
        assert file.stat().st_ino == inode
        said[0] = "two"
        await turns(20)
        assert file.read_text() == "two"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.anyio
async def test_a_screen_that_cannot_be_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is gone: the service goes on, and the text appears when the folder is back."""
    monkeypatch.setattr(screen, "LOOK_SECONDS", 0.0)
    file = tmp_path / "gone" / "screen"
    task = asyncio.create_task(screen.keep(file, lambda: "text"))
    try:
        await turns(20)
        file.parent.mkdir()
        await turns(20)
        assert file.read_text() == "text"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
