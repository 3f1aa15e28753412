"""A device with two slots for the tests of updates."""

from pathlib import Path

import pytest

from tests.appliance.update.device import Device, make


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """It was flashed with 0.1.0, which runs from slot A; slot B is empty."""
    return make(tmp_path / "device", monkeypatch)
