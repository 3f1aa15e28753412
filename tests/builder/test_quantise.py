"""Quantisation, bit for bit."""

import math
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.compile.bfloat16 import round_bfloat16
from builder.compile.quantise import QUANTISATIONS, Quantisation, dequantise, quantise

GOLDEN = Path(__file__).parents[1] / "golden" / "quantisation.npz"

DTYPES = ["float16", "bfloat16", "float32"]
QUANTISED = [q for q in QUANTISATIONS.values() if q.bits and f"{q.name}_q_weight" in np.load(GOLDEN)]


def by_the_book(row: npt.NDArray[np.float32], dtype: str, bits: int) -> tuple[list[int], list[float]]:
    """The format's definition, one weight at a time, in float16 or float32 arithmetic."""
    stored = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[dtype]
    arithmetic: Any = np.float16 if dtype == "float16" else np.float32
    group, top, per_word = {4: (32, 7, 8), 3: (40, 3, 10)}[bits]
    weights = [arithmetic(stored(value)) for value in row]
    levels, scales = [], []
    for start in range(0, len(weights), group):
        part = weights[start : start + group]
        scale = arithmetic(stored(max(abs(w) for w in part) / arithmetic(top)))
        scales.append(float(scale))
        for weight in part:
            if scale == 0:
                level = 2.0 * top if weight > 0 else 0.0
            else:
                level = float(np.rint(arithmetic(arithmetic(weight / scale) + arithmetic(top))))
            levels.append(int(min(max(level, 0), 2 * top)))
        levels += [0] * (group - len(part))
    words = [
        sum(level << bits * i for i, level in enumerate(levels[k : k + per_word]))
        for k in range(0, len(levels), per_word)
    ]
    return words, scales


@pytest.mark.parametrize("dtype", DTYPES)
def test_known_words_of_four_bits(dtype: str) -> None:
    """An even ramp packs to the words that MLC-LLM writes for it."""
    words, scale = quantise(np.linspace(-1, 1, 32, dtype=np.float32)[None], dtype)
    assert [hex(word) for word in words[0]] == ["0x33221100", "0x76655544", "0xaa999887", "0xeeddccbb"]
    assert scale.dtype == ("float16" if dtype == "float16" else "float32")
    assert scale.shape == (1, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_known_words_of_three_bits(dtype: str) -> None:
    """Forty weights fill four words of ten levels; by hand: seven levels 0 to 6 around the middle, 3."""
    weights = np.repeat(np.array([-3, -2, -1, 0, 1, 2, 3, -3], np.float32), 5)[None]
    words, scale = quantise(weights, dtype, 3)
    # Octal digits are levels, the first in the last digit.
    assert [oct(word) for word in words[0]] == ["0o1111100000", "0o3333322222", "0o5555544444", "0o66666"]
    assert scale.tolist() == [[1.0]]


@pytest.mark.parametrize("quantisation", QUANTISED, ids=lambda q: q.name)
def test_words_that_mlc_writes(quantisation: Any) -> None:
    """Random rows, ties, zeros and subnormals come out as MLC-LLM's own quantiser has them, bit for bit."""
    with np.load(GOLDEN) as arrays:
        weight = arrays["weight"]
        words, scales = (arrays[f"{quantisation.name}_{part}"] for part in ("q_weight", "q_scale"))
    if quantisation.layout == "KN":
        words, scales = words.T, scales.T
    got_words, got_scales = quantise(weight, quantisation.dtype, quantisation.bits)
    np.testing.assert_array_equal(got_words, words)
    if quantisation.dtype == "bfloat16":
        scales = scales.view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got_scales, scales.astype(got_scales.dtype))


def test_golden_covers_every_arithmetic() -> None:
    """Each pair of bits and dtype that can be written is compared with MLC-LLM's."""
    written = {(q.bits, q.dtype, q.layout) for q in QUANTISATIONS.values() if q.bits}
    assert written == {(q.bits, q.dtype, q.layout) for q in QUANTISED}


@pytest.mark.parametrize("quantisation", QUANTISATIONS.values(), ids=lambda q: q.name)
def test_bits_per_weight(quantisation: Quantisation) -> None:
    """What a format says of its size is what the tensors of a matrix without padding take."""
    tensors = quantisation.form("linear").tensors("mlp.weight", (7, 320))
    bits = sum(math.prod(tensor.shape) * (32 if tensor.dtype == "uint32" else 16) for tensor in tensors)
    assert quantisation.bits_per_weight == pytest.approx(bits / (7 * 320))


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)
@given(data=st.data())
def test_equals_the_definition(dtype: str, bits: int, data: st.DataObject) -> None:
    """Any weights, also tiny ones and widths that fill no group, give the defined bits."""
    width = data.draw(st.integers(1, 90))
    element = st.floats(-8, 8, width=16) | st.floats(-(2**-14), 2**-14, width=32)
    row = data.draw(hnp.arrays(np.float32, width, elements=element))
    with np.errstate(all="ignore"):
        words, scales = by_the_book(row, dtype, bits)
    got_words, got_scales = quantise(row[None], dtype, bits)
    assert got_words[0].tolist() == words
    assert got_scales[0].astype(float).tolist() == scales


@pytest.mark.parametrize("bits", [3, 4])
def test_error_is_within_half_a_step(bits: int) -> None:
    """Reading the words back gives each weight to within half a scale (and the scale's own rounding)."""
    weights = np.random.default_rng(3).standard_normal((16, 100), dtype=np.float32)
    words, scale = quantise(weights, "float32", bits)
    steps = np.repeat(scale, {4: 32, 3: 40}[bits], axis=1)[:, :100]
    assert np.all(np.abs(dequantise(words, scale, 100, bits) - weights) <= 0.501 * steps)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_zero_group(dtype: str, bits: int) -> None:
    """A group without any weight is scale 0 and words 0, as MLC-LLM stores it."""
    words, scale = quantise(np.zeros((2, 64), np.float32), dtype, bits)
    assert not words.any()
    assert not scale.any()


# With every mantissa bit set, adding the rounding to bfloat16 carries into the sign.
LOUD_NAN = float(np.uint32(0x7FFFFFFF).view(np.float32))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.nan, "float32"),
        (np.inf, "float32"),
        (1e6, "float16"),
        (np.nan, "bfloat16"),
        (LOUD_NAN, "bfloat16"),
        (3.4e38, "bfloat16"),
    ],
)
@pytest.mark.parametrize("bits", [3, 4])
def test_not_finite_shows_in_the_scale(value: float, dtype: str, bits: int) -> None:
    """NaN, infinity and overflow make the group's scale not finite, and only that group's."""
    weights = np.ones((1, 80), np.float32)
    weights[0, 50] = value
    _, scale = quantise(weights, dtype, bits)
    assert np.isfinite(scale).tolist() == [[True, False, True][: scale.shape[1]]]


def test_bfloat16_rounds_to_nearest_even() -> None:
    """Rounding to bfloat16 agrees with ml_dtypes on every kind of value."""
    random = np.random.default_rng(4)
    values = random.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(round_bfloat16(values), expected)
