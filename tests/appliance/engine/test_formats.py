"""The engine computes from every weight format what numpy computes from the weights that are on disk."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from appliance.engine.native import NativeModel
from builder.compile.convert import convert
from builder.compile.quantise import QUANTISATIONS
from builder.guide.forward import Guide
from tests.builder.checkpoints import CONFIG, llama_tensors, write_checkpoint
from tests.compiled import REFERENCES, library

PROMPT = [17, 3, 900, 44, 5, 5, 612, 1000, 71]
NEXT = 250

# Removed when the process ends.
_folder = tempfile.TemporaryDirectory(prefix="hob-formats-")

Floats = npt.NDArray[np.float32]


@functools.cache
def directory(quantization: str) -> Path:
    """A small random Llama in that format; its widths, 64 and 96, fill no group of 40."""
    folder = Path(_folder.name)
    config = CONFIG | {"num_hidden_layers": 1}
    # Small enough that attention does not saturate: it would blow up every rounding.
    tensors = {name: w * 0.15 if w.ndim > 1 else w for name, w in llama_tensors(config).items()}
    checkpoint = write_checkpoint(folder / "hf", tensors, num_hidden_layers=1)
    return convert(checkpoint, folder / quantization, quantization).path


@functools.cache
def engine(quantization: str, kernels: str) -> Floats:
    """Logits after the prompt and after one more token, by the compiled library: [2, vocabulary]."""
    path = directory(quantization)
    model = NativeModel.load(path, library(path, kernels), context=64, max_sequences=1)
    try:
        model.add_sequence(0)
        first = model.prefill(0, PROMPT).copy()
        return np.stack([first, model.decode([0], [NEXT])[0]])
    finally:
        model.close()


@functools.cache
def reference(quantization: str) -> Floats:
    """The same by numpy in float32; float16 models round every weight to float16, as MLC-LLM does."""
    guide = Guide.of_directory(directory(quantization))
    if QUANTISATIONS[quantization].dtype == "float16":
        rounded = {name: w.astype(np.float16).astype(np.float32) for name, w in guide.weights.items()}
        guide = Guide(guide.config, rounded)
    cache = guide.start()
    return np.stack([guide.forward(PROMPT, cache), guide.forward([NEXT], cache)])


def error(found: Floats, expected: Floats) -> float:
    """Largest relative distance of a row."""
    return float(max(np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)))


EXACT = ["q4bf16_1", "q4f16_0", "q3f16_1", "q3f16_0", "q0bf16"]
FAST = ["q4bf16_1", "q4f16_0", "q4f16_2"]


@pytest.mark.parametrize("quantization", EXACT)
def test_exact_kernels_compute_from_the_stored_weights(quantization: str) -> None:
    """Logits differ from numpy's by float32's rounding only."""
    assert error(engine(quantization, "exact"), reference(quantization)) < 1e-5


@pytest.mark.parametrize("quantization", FAST)
def test_fast_kernels_stay_within_their_rounding(quantization: str) -> None:
    """Int8 activations move the logits by a few percent, and they do move them."""
    assert 1e-4 < error(engine(quantization, "fast"), reference(quantization)) < 0.03


def test_every_format_runs_somewhere() -> None:
    """This file or the golden references of `tests.compiled` cover all formats; no format is only a name."""
    assert {*EXACT, *FAST, *REFERENCES} == set(QUANTISATIONS)
