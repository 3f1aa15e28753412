"""Fixtures: a shelf, small models, a hub on this machine, and impatience."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from appliance.library.remote import Patience, session
from appliance.library.shelf import Shelf
from tests.appliance.library import hub
from tests.service import GOLDEN

MLC = GOLDEN / "llama3rope" / "q4f16_1"
CHECKPOINT = GOLDEN / "llama3rope" / "hf"

QUICK = Patience(silence=0.4, pause=0.01, window=60)
"""For servers on this machine."""


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
