"""Qwen3 against what MLC-LLM wrote and answered for the same model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from builder.compile.convert import convert
from builder.compile.mlc import CONFIG, MLCDirectory
from builder.compile.quantise import dequantise
from tests.builder.checkpoints import Tensors, write_safetensors
from tests.builder.driver import Library

GOLDEN = Path(__file__).parents[2] / "golden" / "qwen3"
MLC = GOLDEN / "q4f32_1"

HIDDEN, Q_ROWS, KV_ROWS, INNER = 128, 256, 128, 352
# MLC's stacked projections and the rows of each part, by Hugging Face's names.
STACKED = {
    "self_attn.c_attn": {
        "self_attn.q_proj": Q_ROWS,
        "self_attn.k_proj": KV_ROWS,
        "self_attn.v_proj": KV_ROWS,
    },
    "mlp.gate_up_proj": {"mlp.gate_proj": INNER, "mlp.up_proj": INNER},
}


def dequantised(model: MLCDirectory) -> Tensors:
    """The checkpoint whose weights are what a directory stands for; quantised again, they are the same."""
    tensors: Tensors = {}
    for name in model.tensors:
        if name.endswith(".q_scale"):
            continue
        if not name.endswith(".q_weight"):
            tensors[name] = np.asarray(model.read(name), np.float32)
            continue
        stem = name.removesuffix(".q_weight")
        width = INNER if stem.endswith("down_proj") else Q_ROWS if stem.endswith("o_proj") else HIDDEN
        weight = dequantise(np.asarray(model.read(name)), np.asarray(model.read(f"{stem}.q_scale")), width)
        parts = next((STACKED[part] for part in STACKED if stem.endswith(part)), None)
        if parts is None:
            tensors[f"{stem}.weight"] = weight
            continue
        prefix = ".".join(stem.split(".")[:3])
        pieces = np.split(weight, np.cumsum(list(parts.values()))[:-1])
        tensors |= {f"{prefix}.{part}.weight": piece for part, piece in zip(parts, pieces, strict=True)}
    return dict(sorted(tensors.items()))


def test_bit_exact_with_mlc(tmp_path: Path) -> None:
    """Weights, tensor caches and configuration are MLC-LLM's; the conversation is the tokenizer's own."""
    checkpoint = tmp_path / "hf"
    checkpoint.mkdir()
    write_safetensors(checkpoint / "model.safetensors", dequantised(MLCDirectory.open(MLC)))
    for file in (GOLDEN / "config.json", MLC / "tokenizer.json", MLC / "tokenizer_config.json"):
        shutil.copy(file, checkpoint)
    out = tmp_path / "out"
    convert(checkpoint, out, "q4f32_1", context_window_size=1024, prefill_chunk_size=256, max_batch_size=4)
    expected = {path.name: path.read_bytes() for path in MLC.iterdir()}
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    ours, theirs = (json.loads(files.pop(CONFIG)) for files in (found, expected))
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert list(ours) == list(theirs)
    assert list(ours["model_config"].items()) == list(theirs["model_config"].items())
    del ours["conv_template"], theirs["conv_template"]
    assert ours == theirs


@pytest.fixture(scope="module")
def library() -> Library:
    """The exact library of MLC-LLM's own directory."""
    return Library(MLC)


@pytest.mark.parametrize("prompt", [0, 1])
def test_greedy_tokens_are_those_of_mlc(library: Library, prompt: int) -> None:
    """The logits after the prompt and 32 greedy tokens equal those of MLC-LLM's own library."""
    reference = json.loads((GOLDEN / "reference.json").read_text())
    with np.load(GOLDEN / "reference.npz") as arrays:
        expected = arrays[f"mlc_prefill_{prompt}"]
    library.add(0)
    logits = library.prefill({0: reference["prompts"][prompt]})
    assert float(np.abs(logits[0] - expected).max()) < 1e-4
    ids = []
    for _ in range(32):
        ids.append(int(logits.argmax()))
        logits = library.decode({0: ids[-1]})
    assert ids == reference["mlc_q4f32_1"][prompt]["greedy_ids"]
