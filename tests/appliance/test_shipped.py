"""What came with the system: found, read, never preferred to what somebody added, and never removed."""

import shutil
from pathlib import Path

import pytest

from appliance import shipped
from appliance.config import load_settings
from appliance.models import Models
from appliance.shipped import GUIDE, Shipped
from builder.compile import compile_model, parse_target, runnable
from builder.compile.targets import detect_target
from tests.service import GOLDEN

MODEL = GOLDEN / "llama3rope" / "q4f16_1"

pytestmark = pytest.mark.anyio


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A system folder with a model and a library for the least of this processor's levels."""
    folder = tmp_path / "system"
    shutil.copytree(MODEL, folder / "models" / "small")
    least = list(runnable("cpu"))[-1]
    compile_model(folder / "models/small", folder / "libraries", target=least, kernels="fast")
    return folder


async def test_the_models_of_a_system(system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed as built in; without a compiler the library of a lesser level serves."""
    models = Models(load_settings(data_dir=tmp_path / "data", system_dir=system))
    cards = {card.name: card for card in models.list()}
    assert list(cards) == [GUIDE, "small"]
    assert cards["small"].builtin
    monkeypatch.setattr(shipped, "has_compiler", lambda: False)
    library = await models.library("small")
    assert library.is_relative_to(system)
    assert not (tmp_path / "data/libraries").exists()


def test_a_library_of_a_lesser_level(system: Path) -> None:
    """Where there is a compiler, only the library of the best level is good enough."""
    found = Shipped(system).library(system / "models/small", "cpu", "fast")
    best = detect_target() == list(runnable("cpu"))[-1]
    assert (found is not None) == best


def test_a_damaged_library_is_not_taken(
    system: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts as missing, and the log says why."""
    monkeypatch.setattr(shipped, "has_compiler", lambda: False)
    library = next((system / "libraries").glob("*.so"))
    library.write_bytes(library.read_bytes()[:-1] + b"x")
    assert Shipped(system).library(system / "models/small", "cpu", "fast") is None
    assert "not the one its manifest describes" in caplog.text


def test_one_that_somebody_added_comes_first(system: Path, tmp_path: Path) -> None:
    """A later system may come with a model of the same name; what was chosen before stays."""
    own = tmp_path / "data/models/small"
    shutil.copytree(MODEL, own)
    models = Models(load_settings(data_dir=tmp_path / "data", system_dir=system))
    assert models.directories()["small"] == own
    assert models.entry("small").path == own


def test_levels_that_a_processor_runs() -> None:
    """The best comes first, and the one that every processor of the kind runs comes last."""
    found = list(runnable("cpu"))
    assert found[0] == detect_target() == parse_target("cpu")
    assert found[-1].isa == "generic"
    assert len(set(found)) == len(found)
