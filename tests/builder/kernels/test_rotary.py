"""Rotary embedding and the writing of pages against numpy."""

import numpy as np
import pytest

from builder.compile.kernels import kv_pages, rotary
from builder.compile.kernels.heads import Heads
from builder.compile.kernels.isa import Isa
from builder.errors import UnsupportedError
from tests.builder.kernels.harness import Array, InOut, Library, Out, compiled

HEADS = Heads(2, 6, 80)


def rates_of(dim: int) -> tuple[float, ...]:
    """Llama's."""
    return tuple(float(rate) for rate in (1e4 ** -(np.arange(0, dim, 2) / dim)).astype(np.float32))


RATES, PARTIAL = rates_of(80), rates_of(32)


@pytest.fixture(scope="module")
def library(isa: Isa) -> Library:
    return compiled(
        isa,
        {
            "full": rotary.split_rotary(HEADS, RATES),
            "partial": rotary.split_rotary(HEADS, PARTIAL),
            "louder": rotary.split_rotary(HEADS, PARTIAL, 1.25),
            "none": rotary.split_rotary(HEADS, ()),
            "append": kv_pages.append(HEADS),
        },
    )


def split(library: Library, name: str, qkv: Array, positions: Array, *, apply: bool) -> list[Array]:
    shapes = [(len(qkv), count, HEADS.dim) for count in (HEADS.query, HEADS.kv, HEADS.kv)]
    return library(name, qkv, positions, *(Out(shape) for shape in shapes), int(apply))


def rotated(x: Array, positions: Array, rates: tuple[float, ...], gain: float = 1.0) -> Array:
    half = len(rates)
    # The product is float32's, as in transformers; its sine and cosine are exact here.
    angles = (positions[:, None].astype(np.float32) * np.array(rates, np.float32)).astype(np.float64)
    cos, sin = gain * np.cos(angles)[:, None], gain * np.sin(angles)[:, None]
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)


@pytest.mark.parametrize(("name", "rates"), [("full", RATES), ("partial", PARTIAL)])
def test_rotation(library: Library, rng: np.random.Generator, name: str, rates: tuple[float, ...]) -> None:
    """Queries and keys turn by their position, up to 131072; values and other dimensions pass."""
    positions = np.array([0, 1, 2, 1000, 65535, 131071, 5], dtype=np.int32)
    qkv = rng.standard_normal((7, 10, 80)).astype(np.float32)
    q, k, v = split(library, name, qkv, positions, apply=True)
    np.testing.assert_allclose(q, rotated(qkv[:, :6], positions, rates), atol=2e-6)
    np.testing.assert_allclose(k, rotated(qkv[:, 6:8], positions, rates), atol=2e-6)
    np.testing.assert_array_equal(v, qkv[:, 8:])


def test_gain(library: Library, rng: np.random.Generator) -> None:
    """A gain multiplies what turns, and nothing else."""
    positions = np.array([0, 3, 70000], dtype=np.int32)
    qkv = rng.standard_normal((3, 10, 80)).astype(np.float32)
    q, k, v = split(library, "louder", qkv, positions, apply=True)
    np.testing.assert_allclose(q, rotated(qkv[:, :6], positions, PARTIAL, 1.25), atol=3e-6)
    np.testing.assert_allclose(k, rotated(qkv[:, 6:8], positions, PARTIAL, 1.25), atol=3e-6)
    np.testing.assert_array_equal(v, qkv[:, 8:])


@pytest.mark.parametrize(("name", "apply"), [("full", False), ("louder", False), ("none", True)])
def test_only_split(library: Library, rng: np.random.Generator, name: str, apply: bool) -> None:
    """apply_rope = 0 copies, and so does a kernel without rotary dimensions."""
    qkv = rng.standard_normal((3, 10, 80)).astype(np.float32)
    q, k, v = split(library, name, qkv, np.arange(3, dtype=np.int32), apply=apply)
    np.testing.assert_array_equal(np.concatenate([q, k, v], axis=1), qkv)


def test_odd_rotary_dimensions_are_refused() -> None:
    """Fewer than 16 dimensions at a time cannot be rotated."""
    with pytest.raises(UnsupportedError, match="24 rotary dimensions of 80"):
        rotary.split_rotary(HEADS, rates_of(24))


def test_append(library: Library, rng: np.random.Generator) -> None:
    """Each token's keys and values land at its position, -1 nowhere, and nothing else changes."""
    k, v = (rng.standard_normal((7, 2, 80)).astype(np.float32) for _ in range(2))
    pages = rng.standard_normal((3, 2, 2, 16, 80)).astype(np.float32)
    positions = np.array([5, -1, 16, 47, 3, 2, 1], dtype=np.int32)
    expected = pages.copy()
    for token, position in enumerate(positions):
        if position >= 0:
            expected[position // 16, 0, :, position % 16] = k[token]
            expected[position // 16, 1, :, position % 16] = v[token]
    (found,) = library("append", InOut(pages), k, v, positions)
    np.testing.assert_array_equal(found, expected)
