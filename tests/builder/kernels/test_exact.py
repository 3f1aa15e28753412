"""Float linears and embedding lookup from every stored form of a weight, against numpy."""

import numpy as np
import pytest

from builder.compile.bfloat16 import narrow_bfloat16, widen_bfloat16
from builder.compile.kernels import embedding, exact
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.weights import NIBBLES, WEIGHTS
from tests.builder.kernels.harness import Array, Library, Out, bit_planes, compiled, dequantised, random_int4

N, K = 37, 96


@pytest.fixture(scope="module")
def library(isa: Isa) -> Library:
    kernels = {}
    for weight in WEIGHTS:
        kernels[f"gemm {weight}"] = exact.linear(N, K, isa, weight=weight)
        kernels[f"gemv {weight}"] = exact.linear(N, K, isa, weight=weight, rows=1, residual=True)
        kernels[f"lookup {weight}"] = embedding.lookup(N, K, isa, weight=weight)
    kernels["gemm add"] = exact.linear(N, K, isa, weight="float32", residual=True)
    kernels["gemm bias"] = exact.linear(N, K, isa, weight="float32", bias=True)
    kernels["gemv bias add"] = exact.linear(N, K, isa, weight="float32", rows=1, bias=True, residual=True)
    kernels["lookup scaled"] = embedding.lookup(N, K, isa, weight="float32", multiplier=1.5)
    return compiled(isa, kernels)


def stored(rng: np.random.Generator, weight: str) -> tuple[tuple[Array, ...], Array]:
    """A random weight as stored, and its values as float32."""
    if weight in ("float16", "bfloat16", "float32"):
        # float16's subnormals are among these.
        dense = rng.standard_normal((N, K)) * 10.0 ** rng.integers(-7, 1, (N, K))
        if weight == "bfloat16":
            bits = narrow_bfloat16(dense.astype(np.float32))
            return (bits,), widen_bfloat16(bits)
        return (dense.astype(weight),), dense.astype(weight).astype(np.float32)
    if weight == "q3f16":
        levels = rng.integers(0, 8, (N, K))
        scales = (rng.random((N, 3)) * 10.0 ** rng.integers(-6, 0, (N, 3))).astype(np.float16)
        values = (levels - 3) * np.repeat(scales.astype(np.float32), 40, axis=1)[:, :K]
        return (bit_planes(levels), scales), values.astype(np.float16).astype(np.float32)
    words, scales = random_int4(rng, N, K, NIBBLES[weight])
    values = dequantised(words, scales)
    return (words, scales), values.astype(np.float16).astype(np.float32) if weight == "q4f16" else values


@pytest.mark.parametrize("weight", WEIGHTS)
def test_lookup_is_bit_exact(library: Library, rng: np.random.Generator, weight: str) -> None:
    """Rows are the dequantised values to the last bit; those of float16 models are rounded to it."""
    arguments, values = stored(rng, weight)
    ids = np.array([0, N - 1, 5, 5, 17], dtype=np.int32)
    (y,) = library(f"lookup {weight}", *arguments, ids, Out((5, K)))
    np.testing.assert_array_equal(y, values[ids])


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 33])
def test_gemm(library: Library, rng: np.random.Generator, weight: str, m: int) -> None:
    """Products agree with numpy to float32's rounding for any number of rows."""
    arguments, values = stored(rng, weight)
    x = rng.standard_normal((m, K)).astype(np.float32)
    (y,) = library(f"gemm {weight}", *arguments, x, Out((m, N)))
    expected = x.astype(np.float64) @ values.T.astype(np.float64)
    np.testing.assert_allclose(y, expected, atol=3e-7 * K * np.abs(values).max())


@pytest.mark.parametrize("weight", WEIGHTS)
def test_gemv_with_residual(library: Library, rng: np.random.Generator, weight: str) -> None:
    """The one-row kernel adds the residual."""
    arguments, values = stored(rng, weight)
    x, residual = (rng.standard_normal((1, size)).astype(np.float32) for size in (K, N))
    (y,) = library(f"gemv {weight}", *arguments, x, residual, Out((1, N)))
    expected = x.astype(np.float64) @ values.T.astype(np.float64) + residual
    np.testing.assert_allclose(y, expected, atol=3e-7 * K * max(1.0, np.abs(values).max()))


def test_gemm_with_residual(library: Library, rng: np.random.Generator) -> None:
    """So does the kernel for many rows."""
    (weight,), _ = stored(rng, "float32")
    x, residual = (rng.standard_normal((9, size)).astype(np.float32) for size in (K, N))
    (y,) = library("gemm add", weight, x, residual, Out((9, N)))
    np.testing.assert_allclose(y, x @ weight.T + residual, rtol=1e-5, atol=1e-4)


def test_bias(library: Library, rng: np.random.Generator) -> None:
    """A bias is added to every row, beside a residual too."""
    (weight,), _ = stored(rng, "float32")
    x, residual = (rng.standard_normal((9, size)).astype(np.float32) for size in (K, N))
    bias = rng.standard_normal(N).astype(np.float32)
    (y,) = library("gemm bias", weight, x, bias, Out((9, N)))
    np.testing.assert_allclose(y, x @ weight.T + bias, rtol=1e-5, atol=1e-4)
    (y,) = library("gemv bias add", weight, x[:1], bias, residual[:1], Out((1, N)))
    np.testing.assert_allclose(y, x[:1] @ weight.T + bias + residual[:1], rtol=1e-5, atol=1e-4)


def test_lookup_multiplied(library: Library, rng: np.random.Generator) -> None:
    """Rows of the table times a constant."""
    (weight,), _ = stored(rng, "float32")
    (y,) = library("lookup scaled", weight, np.array([3, 0], dtype=np.int32), Out((2, K)))
    np.testing.assert_array_equal(y, weight[[3, 0]] * np.float32(1.5))


def test_unknown_weight_is_refused(isa: Isa) -> None:
    """A form of weight that no reader knows is named in the error."""
    with pytest.raises(ValueError, match="q5f16"):
        exact.linear(N, K, isa, weight="q5f16")
