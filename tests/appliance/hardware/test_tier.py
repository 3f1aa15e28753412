"""What a measurement says, and when it says nothing."""

from pathlib import Path

import pytest

from appliance.hardware import tier
from appliance.hardware.bandwidth import read_bandwidth
from appliance.hardware.describe import describe
from appliance.hardware.tier import Measurement, fingerprint
from tests.appliance.hardware.machines import recording, room


def measured(bandwidth: float | None) -> Measurement:
    """A measurement of memory that is so fast."""
    return Measurement(machine="m", date=0.0, target="cpu", bandwidth=bandwidth)


@pytest.mark.parametrize(
    ("bandwidth", "name"),
    [(3.9, "small"), (9.0, "medium"), (26.0, "large"), (68.0, "extra large"), (0.0, "small"), (None, None)],
)
def test_tiers(bandwidth: float | None, name: str | None) -> None:
    """The tier is the largest published size that writes faster than people read."""
    assert measured(bandwidth).tier == name


def test_what_is_fluent() -> None:
    """At 0.8 of 45 GB/s and 0.5625 bytes a weight, 6.4 billion weights write ten tokens a second."""
    assert measured(45.0).fluent == pytest.approx(6.4)


def test_kept_and_read_again(tmp_path: Path) -> None:
    """A measurement survives; a file that is missing, damaged or of another form is none."""
    assert tier.read(tmp_path) is None
    tier.write(tmp_path, measured(45.0))
    assert tier.read(tmp_path) == measured(45.0)
    for damage in ("", "{}", '{"machine": 1}', "\xff"):
        (tmp_path / tier.NAME).write_text(damage, encoding="latin-1")
        assert tier.read(tmp_path) is None


def test_a_folder_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be kept is said in the log, and is no failure."""
    tier.write(tmp_path / "gone", measured(45.0))
    assert "cannot be written" in caplog.text


def test_other_hardware_has_another_fingerprint() -> None:
    """Board, processor, device and release count; how much memory is free does not."""
    pi4, pi5 = (describe(recording(name), room(name)) for name in ("pi4", "pi5"))
    assert fingerprint(pi4, "cpu", "1") != fingerprint(pi5, "cpu", "1")
    assert fingerprint(pi5, "cpu", "1") != fingerprint(pi5, "cpu", "2")
    assert fingerprint(pi5, "cpu", "1") != fingerprint(pi5, "vulkan", "1")
    busy = pi5.model_copy(update={"available": 1})
    assert fingerprint(pi5, "cpu", "1") == fingerprint(busy, "cpu", "1")


@pytest.mark.parametrize("threads", [1, 2])
def test_reading_memory(threads: int) -> None:
    """Memory is read at a speed that memory can have."""
    assert 0.1 < read_bandwidth(threads, size=2**24, rounds=2) < 10_000
