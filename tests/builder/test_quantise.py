"""Quantisation, bit for bit."""

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.compile.quantise import dequantise, quantise


def by_the_book(row: npt.NDArray[np.float32], dtype: str) -> tuple[list[int], list[float]]:
    """The format's definition, one weight at a time in the arithmetic of the model dtype."""
    kind = np.dtype(dtype).type
    weights = [kind(value) for value in row]
    nibbles, scales = [], []
    for start in range(0, len(weights), 32):
        group = weights[start : start + 32]
        scale = kind(max(abs(w) for w in group) / kind(7))
        scales.append(float(scale))
        for weight in group:
            if scale == 0:
                level = 0.0 if weight == 0 else (14.0 if weight > 0 else 0.0)
            else:
                level = float(np.rint(kind(kind(weight / scale) + kind(7))))
            nibbles.append(int(min(max(level, 0), 14)))
        nibbles += [0] * (32 - len(group))
    words = [sum(n << 4 * i for i, n in enumerate(nibbles[k : k + 8])) for k in range(0, len(nibbles), 8)]
    return words, scales


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_known_words(dtype: str) -> None:
    """An even ramp packs to the words that MLC-LLM writes for it."""
    words, scale = quantise(np.linspace(-1, 1, 32, dtype=np.float32)[None], dtype)
    assert [hex(word) for word in words[0]] == ["0x33221100", "0x76655544", "0xaa999887", "0xeeddccbb"]
    assert scale.dtype == dtype
    assert scale.shape == (1, 1)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@settings(deadline=None)
@given(data=st.data())
def test_equals_the_definition(dtype: str, data: st.DataObject) -> None:
    """Any weights, also tiny ones and widths that are no multiple of 32, give the defined bits."""
    width = data.draw(st.integers(1, 70))
    element = st.floats(-8, 8, width=16) | st.floats(-(2**-14), 2**-14, width=32)
    row = data.draw(hnp.arrays(np.float32, width, elements=element))
    with np.errstate(all="ignore"):
        words, scales = by_the_book(row, dtype)
    got_words, got_scales = quantise(row[None], dtype)
    assert got_words[0].tolist() == words
    assert got_scales[0].astype(float).tolist() == scales


def test_error_is_within_half_a_step() -> None:
    """Reading the words back gives each weight to within half a scale (and the scale's own rounding)."""
    weights = np.random.default_rng(3).standard_normal((16, 100), dtype=np.float32)
    words, scale = quantise(weights, "float32")
    steps = np.repeat(scale, 32, axis=1)[:, :100]
    assert np.all(np.abs(dequantise(words, scale, 100) - weights) <= 0.501 * steps)


def test_all_zero_group() -> None:
    """A group without any weight is scale 0 and words 0, as MLC-LLM stores it."""
    words, scale = quantise(np.zeros((2, 64), np.float32), "float16")
    assert not words.any()
    assert not scale.any()


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (np.inf, "float32"), (1e6, "float16")])
def test_not_finite_shows_in_the_scale(value: float, dtype: str) -> None:
    """NaN, infinity and overflow make the group's scale not finite, and only that group's."""
    weights = np.ones((1, 64), np.float32)
    weights[0, 40] = value
    _, scale = quantise(weights, dtype)
    assert np.isfinite(scale).tolist() == [[True, False]]
