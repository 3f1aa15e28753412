"""What is made of MLC's words when a model is loaded, against numpy."""

from typing import Literal

import numpy as np
import pytest

from builder.compile.kernels import packing
from builder.compile.kernels.isa import Isa
from tests.builder.kernels.harness import Library, Out, bit_planes, compiled, random_int4

# Rows that fill tasks of 16 and groups of 8, 4 or 16, and rows that do not; columns that fill no group of 40.
SIZES = [(37, 96), (64, 160)]
CASES = [(37, 96, "float16"), (37, 96, "bfloat16"), (37, 96, "float32"), (64, 160, "float16")]
LAYOUTS: list[Literal["NK", "KN"]] = ["NK", "KN"]


@pytest.fixture(scope="module")
def library(isa: Isa) -> Library:
    kernels = {}
    for n, k, scale in CASES:
        kernels[f"transpose{n}{scale}"] = packing.transpose(n, k, scale=scale)
        for layout in LAYOUTS:
            kernels[f"pack{n}{scale}{layout}"] = packing.pack(n, k, isa, scale=scale, layout=layout)
    for n, k in SIZES:
        for layout in LAYOUTS:
            kernels[f"planes{n}{layout}"] = packing.planes(n, k, layout=layout)
    return compiled(isa, kernels)


@pytest.mark.parametrize(("n", "k", "scale"), CASES)
def test_transpose(library: Library, rng: np.random.Generator, n: int, k: int, scale: str) -> None:
    """Words and scales change places, and no bit of them."""
    words, scales = random_int4(rng, n, k, scale)
    got = library(
        f"transpose{n}{scale}",
        np.ascontiguousarray(words.T),
        np.ascontiguousarray(scales.T),
        Out(words.shape, "uint32"),
        Out(scales.shape, str(scales.dtype)),
    )
    np.testing.assert_array_equal(got[0], words)
    np.testing.assert_array_equal(got[1].view(np.uint8), scales.view(np.uint8))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n", "k", "scale"), CASES)
def test_pack(
    library: Library,
    isa: Isa,
    rng: np.random.Generator,
    n: int,
    k: int,
    scale: str,
    layout: Literal["NK", "KN"],
) -> None:
    """Every nibble and scale lies where the layout says, from either layout on disk; padding rows are 0."""
    words, scales = random_int4(rng, n, k, scale)
    given = (words, scales) if layout == "NK" else (words.T, scales.T)
    shapes = packing.packed_shape(n, k, isa), packing.scales_shape(n, k, isa)
    packed, factors = library(
        f"pack{n}{scale}{layout}",
        *(np.ascontiguousarray(array) for array in given),
        Out(shapes[0], "uint8"),
        Out(shapes[1], str(scales.dtype)),
    )
    rows = shapes[0][0] * isa.lanes
    whole = np.zeros((rows, k // 32, 32), np.uint8)
    whole[:n] = (words[:, :, None] >> (np.arange(8, dtype=np.uint32) * 4) & 15).reshape(n, k // 32, 32)
    pairs = whole[..., :16] | whole[..., 16:] << 4
    expected = np.zeros(shapes[0], np.uint8)
    for row in range(rows):
        group, place = divmod(row, isa.lanes)
        for column in range(16):
            expected[group, :, isa.byte(place, column)] = pairs[row, :, column]
    np.testing.assert_array_equal(packed, expected)
    padded = np.zeros((rows, k // 32), scales.dtype)
    padded[:n] = scales
    turned = padded.reshape(shapes[1][0], isa.lanes, -1).swapaxes(1, 2)
    np.testing.assert_array_equal(factors.view(np.uint8), np.ascontiguousarray(turned).view(np.uint8))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_planes(
    library: Library, rng: np.random.Generator, n: int, k: int, layout: Literal["NK", "KN"]
) -> None:
    """Three-bit levels come out of words of ten into blocks of 32, from either layout; scales are copied."""
    groups = -(-k // 40)
    levels = np.zeros((n, groups * 40), np.uint32)
    levels[:, :k] = rng.integers(0, 8, (n, k))
    words = (levels.reshape(n, -1, 10) << (np.arange(10, dtype=np.uint32) * 3)).sum(-1, dtype=np.uint32)
    scales = rng.random((n, groups)).astype(np.float16)
    given = (words, scales) if layout == "NK" else (words.T, scales.T)
    planes, factors = library(
        f"planes{n}{layout}",
        *(np.ascontiguousarray(array) for array in given),
        Out(packing.planes_shape(n, k), "uint32"),
        Out((n, groups), "float16"),
    )
    np.testing.assert_array_equal(planes, bit_planes(levels[:, :k]))
    np.testing.assert_array_equal(factors, scales)
