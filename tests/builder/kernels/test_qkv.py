"""Norms of heads and rotation before the cache, against numpy."""

import numpy as np
import pytest

from builder.compile.kernels import qkv
from builder.compile.kernels.heads import Heads
from builder.compile.kernels.isa import Isa
from builder.errors import UnsupportedError
from tests.builder.kernels.harness import Array, Library, Out, compiled
from tests.builder.kernels.test_rotary import rates_of, rotated

HEADS, EPS, GAIN = Heads(2, 6, 80), 1e-6, 1.125
RATES = rates_of(80)
TOKENS = 5


@pytest.fixture(scope="module")
def library(isa: Isa) -> Library:
    return compiled(
        isa,
        {
            "norm": qkv.finish(HEADS, eps=EPS),
            "turn": qkv.finish(HEADS, rates=RATES, gain=GAIN),
            "both": qkv.finish(HEADS, eps=EPS, rates=RATES[:16]),
            "apart": qkv.finish(HEADS, eps=EPS, rates=RATES, fused=False),
        },
    )


@pytest.fixture
def values(rng: np.random.Generator) -> Array:
    return (rng.standard_normal((TOKENS, 10, 80)) * 3).astype(np.float32)


@pytest.fixture
def gammas(rng: np.random.Generator) -> Array:
    return rng.standard_normal((2, 80)).astype(np.float32)


POSITIONS = np.array([0, 7, 100000, 3, 3], dtype=np.int32)
OUT = Out((TOKENS, 10, 80))


def normed(values: Array, gammas: Array) -> Array:
    """Query and key heads normalised, value heads as they are."""
    wide = values.astype(np.float64)
    norm = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + EPS)
    return np.concatenate([norm[:, :6] * gammas[0], norm[:, 6:8] * gammas[1], wide[:, 8:]], axis=1)


def turned(values: Array, rates: tuple[float, ...], gain: float = 1.0) -> Array:
    """Query and key heads rotated, value heads as they are."""
    return np.concatenate([rotated(values[:, :8], POSITIONS, rates, gain), values[:, 8:]], axis=1)


def test_norm(library: Library, values: Array, gammas: Array) -> None:
    """Each query head and each key head is normalised on its own, by its own weight."""
    (out,) = library("norm", values, *gammas, OUT)
    np.testing.assert_allclose(out, normed(values, gammas), rtol=3e-6, atol=1e-6)


def test_turn(library: Library, values: Array) -> None:
    """Without a norm, heads are rotated as the cache would."""
    (out,) = library("turn", values, POSITIONS, OUT)
    np.testing.assert_allclose(out, turned(values, RATES, GAIN), atol=1e-5)
    np.testing.assert_array_equal(out[:, 8:], values[:, 8:])


def test_norm_goes_before_rotation(library: Library, values: Array, gammas: Array) -> None:
    """Both at once, with dimensions that do not turn."""
    (out,) = library("both", values, *gammas, POSITIONS, OUT)
    np.testing.assert_allclose(out, turned(normed(values, gammas), RATES[:16]), rtol=1e-5, atol=1e-5)


def test_single_token(library: Library, values: Array, gammas: Array) -> None:
    """One token goes a way of its own, with the same result."""
    (out,) = library("both", values[1:2], *gammas, POSITIONS[1:2], Out((1, 10, 80)))
    expected = turned(normed(values, gammas), RATES[:16])[1:2]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_separate_matrices(library: Library, values: Array, gammas: Array) -> None:
    """Queries, keys and values from three layers come together."""
    parts = [np.ascontiguousarray(part) for part in np.split(values, [6, 8], axis=1)]
    (out,) = library("apart", *parts, *gammas, POSITIONS, OUT)
    np.testing.assert_allclose(out, turned(normed(values, gammas), RATES), rtol=1e-5, atol=1e-5)


def test_rotary_dimensions_are_checked() -> None:
    """Rotations that do not fill vectors are refused."""
    with pytest.raises(UnsupportedError, match="24 rotary dimensions of 80"):
        qkv.finish(HEADS, rates=RATES[:12])
