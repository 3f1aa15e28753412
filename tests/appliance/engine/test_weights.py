"""Tensors on their way into memory: every dtype arrives as it should, and broken values do not."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from appliance.engine import weights
from appliance.errors import ModelLoadError
from builder.compile.bfloat16 import narrow_bfloat16
from builder.compile.mlc import MLCDirectory, TensorEntry

Array = npt.NDArray[Any]

VALUES = np.array([0.0, -0.0, 1.5, -3.25, 2.0**-24, 65504.0, 0.15625], np.float32)


def read(folder: Path, stored: Array, dtype: str, out: Array, storage: str = "raw") -> Array:
    """Write a shard with one tensor after three other bytes, and read it into `out`."""
    (folder / "shard.bin").write_bytes(b"abc" + stored.tobytes())
    entry = TensorEntry("model.norm.weight", stored.shape, dtype, storage, "shard.bin", 3, stored.nbytes)
    model = MLCDirectory(folder, {}, {entry.name: entry}, ())
    weights.read_into(model, entry, out)
    return out


@pytest.fixture(params=[2, 2**20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that are read in many pieces, and in one."""
    monkeypatch.setattr(weights, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
def test_floats_arrive(tmp_path: Path) -> None:
    """Each float dtype reaches its own, float32 and, for bfloat16, the bits, without changing a value."""
    half, brain = VALUES.astype(np.float16), narrow_bfloat16(VALUES)
    wide = (brain.astype(np.uint32) << 16).view(np.float32)
    for stored, dtype, storage, expected in (
        (half, "float16", "raw", half),
        (half, "float16", "raw", half.astype(np.float32)),
        (VALUES, "float32", "raw", VALUES),
        (brain, "float32", "f32-to-bf16", wide),
        (brain, "bfloat16", "f32-to-bf16", wide),
        (brain, "bfloat16", "raw", brain),
    ):
        got = read(tmp_path, stored, dtype, np.empty_like(expected), storage)
        np.testing.assert_array_equal(got.view(np.uint8), expected.view(np.uint8))


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 6])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float, place: int) -> None:
    """NaN and infinity anywhere in a tensor, of any dtype, are refused by shard and name."""
    values = VALUES.copy()
    values[place] = value
    brain = (values.view(np.uint32) >> 16).astype(np.uint16)
    for stored, dtype, out in (
        (values.astype(np.float16), "float16", np.float16),
        (values.astype(np.float16), "float16", np.float32),
        (values, "float32", np.float32),
        (brain, "bfloat16", np.uint16),
        (brain, "bfloat16", np.float32),
    ):
        with pytest.raises(
            ModelLoadError, match=r"shard\.bin: model\.norm\.weight has NaN or infinity"
        ) as caught:
            read(tmp_path, stored, dtype, np.empty(VALUES.shape, out))
        assert caught.value.hint


def test_words_may_have_any_bits(tmp_path: Path) -> None:
    """Packed integers are not floats: every pattern is theirs."""
    words = np.full(5, 0xFFFFFFFF, np.uint32)
    np.testing.assert_array_equal(read(tmp_path, words, "uint32", np.empty_like(words)), words)


def test_a_shard_that_ends_early_is_named(tmp_path: Path) -> None:
    """The file shrank since it was described."""
    entry = TensorEntry("model.norm.weight", (7,), "float32", "raw", "shard.bin", 3, 28)
    (tmp_path / "shard.bin").write_bytes(b"abc" + VALUES.tobytes()[:-1])
    model = MLCDirectory(tmp_path, {}, {entry.name: entry}, ())
    with pytest.raises(ModelLoadError, match=r"shard\.bin is shorter"):
        weights.read_into(model, entry, np.empty(7, np.float32))
