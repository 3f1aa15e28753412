"""Fixtures: a shelf, small models, a hub on this machine, and impatience."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from appliance.library.remote import session
from appliance.library.shelf import Shelf
from tests.appliance.library import hub
from tests.appliance.library.adding import MLC, QUICK, Adding


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """An empty library."""
    return Shelf(tmp_path / "data" / "models", frozenset({"hob-guide"}))


@pytest.fixture
def mlc(tmp_path: Path) -> Path:
    """An MLC directory to add, half a megabyte."""
    return Path(shutil.copytree(MLC, tmp_path / "Tiny-q4f16_1"))


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """A client for downloads that does not wait long."""
    with session(QUICK) as client:
        yield client


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub.Hub]:
    """A hub on this machine, which huggingface_hub takes for the real one; no token of the person testing."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with hub.running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        yield running


@pytest.fixture
def adding(shelf: Shelf, client: httpx.Client) -> Adding:
    """Adds to the empty shelf."""
    return Adding(shelf, client)


@pytest.fixture
def unchanged(shelf: Shelf) -> Iterator[None]:
    """Afterwards the library is as it was: no model, and nothing that would be taken for one."""
    yield
    assert shelf.entries() == []
    visible = [path for path in shelf.folder.glob("*") if not path.name.startswith(".")]
    assert visible == []
