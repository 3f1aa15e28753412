"""Golden models and libraries compiled for them, once for all tests that ask."""

import functools
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from builder.compile.convert import convert

GOLDEN = Path(__file__).parent / "golden" / "llama3rope"

# Removed when the process ends.
_folder = tempfile.TemporaryDirectory(prefix="hob-tests-")


@dataclass(frozen=True)
class Reference:
    """What an independent program made of a golden model.

    Attributes:
        prompt: token ids.
        greedy_ids: 32 tokens that follow.
        gaps: distance of the two best logits at each of those steps.
        logits: after the prompt, float32 [vocab].
    """

    prompt: list[int]
    greedy_ids: list[int]
    gaps: list[float]
    logits: npt.NDArray[np.float32]


def references(source: str, logits: str) -> list[Reference]:
    """The references of one source; the names are those of `tests/golden/README.md`."""
    record = json.loads((GOLDEN / "reference.json").read_text())
    with np.load(GOLDEN / "reference.npz") as arrays:
        return [
            Reference(prompt, answer["greedy_ids"], answer["gaps"], arrays[f"{logits}_prefill_{index}"])
            for index, (prompt, answer) in enumerate(zip(record["prompts"], record[source], strict=True))
        ]


REFERENCES = {
    "q4f32_1": references("mlc_q4f32_1", "mlc"),
    "q4f16_1": references("transformers_dequant_q4f16_1", "deq_q4f16_1"),
    "q0f16": references("transformers_dequant_q0f16", "deq_q0f16"),
    "q0f32": references("transformers_fp32", "hf"),
}


@functools.cache
def golden(quantization: str) -> Path:
    """A golden model directory: written by MLC-LLM, or converted here where the weights are not kept."""
    if quantization.startswith("q4"):
        return GOLDEN / quantization
    out = Path(_folder.name) / quantization
    convert(GOLDEN / "hf", out, quantization, context_window_size=1024, prefill_chunk_size=256)
    return out


@functools.cache
def library(directory: Path, kernels: str = "exact", target: str = "auto") -> Path:
    """The library compiled for a model, by the compiler's own process."""
    command = [sys.executable, "-m", "builder.compile", str(directory), f"{_folder.name}/libraries"]
    done = subprocess.run(
        [*command, "--kernels", kernels, "--target", target], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(json.loads(done.stdout.splitlines()[-1])["library"])
