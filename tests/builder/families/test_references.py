"""Every family gives the logits of transformers, whatever way the tokens come in."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from builder.compile.convert import convert
from tests.builder.driver import Library
from tests.builder.families.tiny import CONTEXTS, GOLDEN, MODELS, ROWS, prompts, write_tiny

LONG, SHORT = prompts()
START = len(LONG) - ROWS + 1  # tokens up to the first recorded position of the long text
NEAR = 1e-4

References = dict[str, npt.NDArray[np.float32]]
Model = tuple[Library, References]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model converted without quantising and compiled exactly, and its recorded logits by text."""
    name: str = request.param
    place = tmp_path_factory.mktemp(name)
    context = CONTEXTS.get(name)
    convert(write_tiny(name, place / "hf"), place / "model", "q0f32", context_window_size=context)
    return Library(place / "model"), references(name)


def references(name: str) -> References:
    """The recorded logits of a model."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {text: arrays[text] for text in ("long", "short")}


def error(found: Any, expected: Any) -> float:
    """The largest difference."""
    return float(np.abs(found - expected).max())


def test_prefill(model: Model) -> None:
    """A whole prompt at once, alone and beside another one of another length."""
    library, expected = model
    library.add(0)
    assert error(library.prefill({0: LONG[:START]})[0], expected["long"][0]) < NEAR
    library.add(0, 1)
    both = library.prefill({1: SHORT, 0: LONG})
    assert error(both[0], expected["short"][-1]) < NEAR
    assert error(both[1], expected["long"][-1]) < NEAR


def test_decode(model: Model) -> None:
    """Token by token after a prompt, alone and beside another sequence."""
    library, expected = model
    library.add(0)
    library.prefill({0: LONG[:START]})
    for row, token in enumerate(LONG[START:], 1):
        assert error(library.decode({0: token})[0], expected["long"][row]) < NEAR
    library.add(5, 3)
    library.prefill({5: LONG[:START], 3: SHORT[: -ROWS + 1]})
    for row, (long, short) in enumerate(zip(LONG[START:], SHORT[-ROWS + 1 :], strict=True), 1):
        both = library.decode({5: long, 3: short})
        assert error(both[0], expected["long"][row]) < NEAR
        assert error(both[1], expected["short"][row]) < NEAR


def test_prefill_onto_history(model: Model) -> None:
    """A prompt in chunks of any size, as later turns of a chat come in, then a token."""
    library, expected = model
    library.add(0, 1)
    for start, stop in ((0, 17), (17, 19), (19, 34), (34, START)):
        logits = library.prefill({0: LONG[start:stop], 1: [1, 2, 3]})
    assert error(logits[0], expected["long"][0]) < NEAR
    assert error(library.decode({0: LONG[START]})[0], expected["long"][1]) < NEAR


def test_forks(model: Model) -> None:
    """Chats that share their beginning attend to it together, each from its own position."""
    library, expected = model
    library.add(0)
    library.prefill({0: LONG[:START]})
    library.fork(0, 1, 30)
    library.fork(0, 2, 19)
    logits = library.prefill({2: LONG[19:START], 1: LONG[30:START]})
    assert error(logits[0], expected["long"][0]) < NEAR
    assert error(logits[1], expected["long"][0]) < NEAR
    for row, token in enumerate(LONG[START:], 1):
        logits = library.decode({1: token, 0: token, 2: token})
        assert max(error(found, expected["long"][row]) for found in logits) < NEAR


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_fast_kernels_stay_near(name: str, tmp_path: Path) -> None:
    """int8 activations change logits by a few per cent, whatever is folded into their quantisation."""
    convert(write_tiny(name, tmp_path / "hf"), tmp_path / "model", "q4f16_1")
    found = []
    for kernels in ("exact", "fast"):
        library = Library(tmp_path / "model", kernels)
        library.add(0, 1)
        prefilled = library.prefill({0: LONG[:START], 1: SHORT})
        found.append([*prefilled, *library.decode({0: 3, 1: 4}), *library.decode({0: 5})])
    for exact, fast in zip(*found, strict=True):
        assert np.linalg.norm(fast - exact) < 0.1 * np.linalg.norm(exact)
