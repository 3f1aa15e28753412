"""Int4 weights times int8 activations against numpy, from MLC's tensors through packing to the product."""

import numpy as np
import pytest

from builder.compile.kernels import activation, embedding, packing, w4a8
from builder.compile.kernels.isa import Isa
from builder.errors import UnsupportedError
from tests.builder.kernels.harness import Array, Library, Out, compiled, dequantised, random_int4

# Outputs that do not fill groups of 16 or 8 rows, and ones that do; odd numbers of blocks.
CASES = [(37, 96, "float16"), (37, 96, "bfloat16"), (37, 96, "float32"), (64, 160, "float16")]
# Whether there is a bias, and a residual.
ADDED = [(False, True), (True, False), (True, True)]


@pytest.fixture(scope="module")
def library(isa: Isa) -> Library:
    kernels = {}
    for n, k, scale in CASES:
        kernels[f"quantise{k}"] = activation.quantise(k)
        kernels[f"quantise1_{k}"] = activation.quantise(k, rows=1)
        kernels[f"pack{n}{scale}"] = packing.pack(n, k, isa, scale=scale)
        kernels[f"lookup{n}{scale}"] = embedding.lookup_packed(n, k, isa, scale=scale)
        kernels[f"gemm{n}{scale}"] = w4a8.linear(n, k, isa, scale=scale)
        kernels[f"gemv{n}{scale}"] = w4a8.linear(n, k, isa, scale=scale, rows=1)
        kernels[f"lookup scaled{n}{scale}"] = embedding.lookup_packed(n, k, isa, scale=scale, multiplier=1.5)
    for bias, residual in ADDED:
        for name, rows in (("gemm", None), ("gemv", 1)):
            kernel = w4a8.linear(37, 96, isa, rows=rows, bias=bias, residual=residual)
            kernels[f"{name} {bias} {residual}"] = kernel
    return compiled(isa, kernels)


def rounded(x: Array) -> Array:
    """x as int8 blocks represent it."""
    blocks = x.reshape(len(x), -1, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    return np.asarray((np.rint(blocks / np.where(scale > 0, scale, 1)) * scale).reshape(x.shape))


def pack(library: Library, isa: Isa, words: Array, scales: Array) -> list[Array]:
    n, k = len(words), words.shape[1] * 8
    shapes = packing.packed_shape(n, k, isa), packing.scales_shape(n, k, isa)
    dtype = str(scales.dtype)
    name = f"pack{n}{'bfloat16' if dtype == 'uint16' else dtype}"
    return library(name, words, scales, Out(shapes[0], "uint8"), Out(shapes[1], dtype))


@pytest.mark.parametrize(("n", "k", "scale"), CASES)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 7, 8, 9, 33])
def test_gemm(
    library: Library, isa: Isa, rng: np.random.Generator, n: int, k: int, m: int, scale: str
) -> None:
    """Any number of rows gives the product with the rounded activations, nothing outside of y is written."""
    words, scales = random_int4(rng, n, k, scale)
    x = rng.standard_normal((m, k)).astype(np.float32)
    (blocks,) = library(f"quantise{k}", x, Out((activation.padded_rows(m), k // 32, 10), "int32"))
    (y,) = library(f"gemm{n}{scale}", *pack(library, isa, words, scales), blocks, Out((m, n)))
    expected = rounded(x) @ dequantised(words, scales).T
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("n", "k", "scale"), CASES)
def test_gemv(library: Library, isa: Isa, rng: np.random.Generator, n: int, k: int, scale: str) -> None:
    """The one-row kernels agree with numpy too."""
    words, scales = random_int4(rng, n, k, scale)
    x = rng.standard_normal((1, k)).astype(np.float32)
    (blocks,) = library(f"quantise1_{k}", x, Out((1, k // 32, 10), "int32"))
    (y,) = library(f"gemv{n}{scale}", *pack(library, isa, words, scales), blocks, Out((1, n)))
    expected = rounded(x) @ dequantised(words, scales).T
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("bias", "residual"), ADDED)
@pytest.mark.parametrize("m", [1, 9])
def test_bias_and_residual(
    library: Library, isa: Isa, rng: np.random.Generator, m: int, bias: bool, residual: bool
) -> None:
    """A bias is added to every row, a residual to its own."""
    n, k = 37, 96
    words, scales = random_int4(rng, n, k, "float16")
    x = rng.standard_normal((m, k)).astype(np.float32)
    added = [rng.standard_normal(n).astype(np.float32)] if bias else []
    added += [rng.standard_normal((m, n)).astype(np.float32)] if residual else []
    rows = 1 if m == 1 else activation.padded_rows(m)
    (blocks,) = library("quantise1_96" if m == 1 else "quantise96", x, Out((rows, k // 32, 10), "int32"))
    packed = pack(library, isa, words, scales)
    name = f"{'gemv' if m == 1 else 'gemm'} {bias} {residual}"
    (y,) = library(name, *packed, blocks, *added, Out((m, n)))
    expected = sum(added, rounded(x) @ dequantised(words, scales).T)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_largest_products_do_not_overflow(library: Library, isa: Isa) -> None:
    """Nibbles of 15 against activations of 127 and -127 come out exactly: no int16 sum wraps."""
    n, k = 37, 96
    words = np.full((n, k // 8), 0xFFFFFFFF, dtype=np.uint32)
    scales = np.ones((n, k // 32), dtype=np.float16)
    packed = pack(library, isa, words, scales)
    for sign in (1, -1):
        x = np.full((2, k), sign * 127, dtype=np.float32)
        (blocks,) = library("quantise96", x, Out((8, k // 32, 10), "int32"))
        (y,) = library("gemm37float16", *packed, blocks, Out((2, n)))
        np.testing.assert_array_equal(y, np.full((2, n), sign * 127 * 8 * k, dtype=np.float32))


@pytest.mark.parametrize(("n", "k", "scale"), CASES)
def test_lookup_reads_packed_rows(
    library: Library, isa: Isa, rng: np.random.Generator, n: int, k: int, scale: str
) -> None:
    """Rows of the packed table come back as they went in, the first and the last included, or multiplied."""
    words, scales = random_int4(rng, n, k, scale)
    ids = np.array([0, n - 1, 2, 2, n // 2], dtype=np.int32)
    packed = pack(library, isa, words, scales)
    (y,) = library(f"lookup{n}{scale}", *packed, ids, Out((5, k)))
    np.testing.assert_array_equal(y, dequantised(words, scales)[ids])
    (y,) = library(f"lookup scaled{n}{scale}", *packed, ids, Out((5, k)))
    np.testing.assert_allclose(y, dequantised(words, scales)[ids] * np.float32(1.5), rtol=2e-7)


def test_inner_dimension_must_fill_blocks(isa: Isa) -> None:
    """A k that is not a multiple of 32 is refused with its value and a hint."""
    with pytest.raises(UnsupportedError, match="48 is not a multiple of 32") as error:
        w4a8.linear(16, 48, isa)
    assert error.value.hint
