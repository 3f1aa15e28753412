"""GGML's weight types against the `gguf` package's own arithmetic."""

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from builder.compile.import_.gguf.blocks import BY_NAME, TYPES, decode, q4_0_groups
from builder.compile.quantise import dequantise

BLOCKS = [number for number, kind in TYPES.items() if kind.weights > 1]


def random_rows(number: int, rows: int = 16) -> npt.NDArray[np.uint8]:
    """Random bytes of a type, with scales that are finite."""
    kind = TYPES[number]
    raw = np.random.default_rng(number).integers(0, 256, (rows * 2, kind.nbytes), dtype=np.uint8)
    scales = {10: (208,), 14: (208,)}.get(number, (0,) if kind.name in ("Q4_0", "Q5_0", "Q8_0") else (0, 2))
    for at in scales:
        raw[:, at + 1] &= 0x3F  # exponents below those of large numbers, infinity and NaN
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("number", BLOCKS, ids=lambda number: TYPES[number].name)
def test_quantised_types(number: int) -> None:
    """Every block type decodes to the bit as the reference does."""
    raw = random_rows(number)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(number))
    assert np.array_equal(decode(TYPES[number], raw), expected)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_float_types(name: str) -> None:
    """Floats of every width are read exactly."""
    values = np.array([[1.5, -0.25, 0.0, 240.0]], np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    assert np.array_equal(decode(BY_NAME[name], raw.view(np.uint8)), values)


def test_q4_0_without_loss() -> None:
    """Q4_0 as words and scales of q4f16_1 stands for exactly the same numbers, level 15 included."""
    raw = random_rows(2)
    words, scale = q4_0_groups(raw)
    assert (words.shape, scale.shape) == ((16, 8), (16, 2))
    assert (words.dtype.name, scale.dtype.name) == ("uint32", "float16")
    assert np.array_equal(dequantise(words, scale, 64), decode(TYPES[2], raw))
    assert (words & 15).max() == 15
