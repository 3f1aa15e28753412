"""Weight formats on disk: tensors and bytes of each, held against q4f16_1, whose bytes are MLC-LLM's."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from builder.compile import graph
from builder.compile.convert import convert
from builder.compile.mlc import CONFIG as CHAT_CONFIG
from builder.compile.mlc import MLCDirectory
from builder.compile.quantise import QUANTISATIONS
from builder.compile.targets import parse_target
from builder.errors import FormatError
from tests.builder.checkpoints import CONFIG, llama_tensors, write_checkpoint

ENDS = {"model.embed_tokens", "lm_head"}
# In narrower matrices three bits take as many words as four.
WIDE: dict[str, Any] = {"intermediate_size": 192}
TENSORS = llama_tensors(CONFIG | WIDE)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MLCDirectory]:
    """The same checkpoint in every format; shards of its own for large tensors are made as well."""
    place = tmp_path_factory.mktemp("formats")
    checkpoint = write_checkpoint(place / "hf", TENSORS, **WIDE)
    return {name: convert(checkpoint, place / name, name) for name in QUANTISATIONS}


def raw(model: MLCDirectory, name: str) -> npt.NDArray[np.generic]:
    """A tensor as its bytes stand in the file."""
    entry = model.tensors[name]
    data = (model.path / entry.shard).read_bytes()[entry.offset : entry.offset + entry.nbytes]
    return np.frombuffer(data, entry.stored_dtype).reshape(entry.shape)


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_tensors(name: str, models: dict[str, MLCDirectory]) -> None:
    """A directory passes its own checks and has words and scales, or one plain tensor, of each matrix."""
    quantisation, model = QUANTISATIONS[name], MLCDirectory.open(models[name].path)
    model.verify()
    stems = {tensor.rpartition(".")[0] for tensor in model.tensors}
    assert stems == {tensor.rpartition(".")[0] for tensor in models["q0f16"].tensors}
    for stem in stems:
        quantised = "norm" not in stem and bool(quantisation.bits) and (quantisation.ends or stem not in ENDS)
        expected = {"q_weight", "q_scale"} if quantised else {"weight"}
        assert {
            tensor.rpartition(".")[2] for tensor in model.tensors if tensor.startswith(f"{stem}.")
        } == expected
    dtypes = {entry.dtype for tensor, entry in model.tensors.items() if not tensor.endswith("q_weight")}
    assert dtypes == {quantisation.dtype}


@pytest.mark.parametrize(("turned", "plain"), [("q4f16_0", "q4f16_1"), ("q3f16_0", "q3f16_1")])
def test_transposed_formats(turned: str, plain: str, models: dict[str, MLCDirectory]) -> None:
    """Linear layers are the other variant's transposed; the embedding and the norms are its own."""
    for name in models[plain].tensors:
        same, other = raw(models[plain], name), raw(models[turned], name)
        linear = "embed_tokens" not in name and "norm" not in name
        np.testing.assert_array_equal(other, same.T if linear else same, err_msg=name)


def test_unquantised_ends(models: dict[str, MLCDirectory]) -> None:
    """q4f16_2 is q4f16_1, but embedding and output matrix are q0f16's."""
    for name in models["q4f16_2"].tensors:
        source = "q0f16" if name.rpartition(".")[0] in ENDS else "q4f16_1"
        np.testing.assert_array_equal(raw(models["q4f16_2"], name), raw(models[source], name), err_msg=name)


def test_bfloat16(models: dict[str, MLCDirectory]) -> None:
    """Norms and dense weights are the checkpoint's rounded to bfloat16, and read back as that."""
    for name, given in (("model.norm.weight", "q4bf16_1"), ("lm_head.weight", "q0bf16")):
        expected = TENSORS[name].astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(raw(models[given], name), expected)
        np.testing.assert_array_equal(models[given].read(name), expected.astype(np.float32))


def test_transposing_in_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Large matrices are transposed a few rows at a time, with the same result."""
    checkpoint = write_checkpoint(tmp_path / "hf", TENSORS, **WIDE)
    whole = convert(checkpoint, tmp_path / "whole", "q4f16_0")
    monkeypatch.setattr("builder.compile.convert.BLOCK", 100)
    pieces = convert(checkpoint, tmp_path / "pieces", "q4f16_0")
    assert pieces.shards == whole.shards


@pytest.mark.parametrize("claimed", [name for name in QUANTISATIONS if name != "q4f16_1"])
def test_a_directory_in_another_format_than_it_says(
    claimed: str, models: dict[str, MLCDirectory], tmp_path: Path
) -> None:
    """Tensors that are not those of the format in the configuration are refused by name before compiling."""
    shutil.copytree(models["q4f16_1"].path, tmp_path / "model")
    file = tmp_path / "model" / CHAT_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization": claimed}))
    model = MLCDirectory.open(tmp_path / "model")
    with pytest.raises(FormatError, match=r"tensor (model|lm_head)\.") as caught:
        graph.build_objects(
            model, parse_target("x86_64-generic"), "exact", tmp_path, lambda _step, _share: None
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "quantization"),
    [
        ("lm_head.weight", np.nan, "q3f16_1"),
        ("lm_head.weight", np.inf, "q4bf16_1"),
        ("lm_head.weight", 1e5, "q4f16_0"),
        ("model.norm.weight", np.nan, "q4bf16_1"),
        ("model.norm.weight", 3.4e38, "q0bf16"),
        ("model.embed_tokens.weight", 1e5, "q4f16_2"),
    ],
)
def test_not_finite(name: str, value: float, quantization: str, tmp_path: Path) -> None:
    """A weight that is NaN, infinite or beyond the model dtype is named, and nothing is left."""
    tensors = {key: weights.copy() for key, weights in TENSORS.items()}
    tensors[name].flat[5] = value
    with pytest.raises(FormatError, match=f"{name} has NaN or infinity"):
        convert(write_checkpoint(tmp_path / "hf", tensors, **WIDE), tmp_path / "out", quantization)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
