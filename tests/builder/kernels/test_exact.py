"""Float linears and embedding lookup from every stored form of a weight, against numpy."""

import numpy as np
import pytest

from builder.compile.kernels import embedding, exact
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.weights import WEIGHTS
from tests.builder.kernels.harness import Array, Library, Out, compiled, dequantised, random_int4

N, K = 37, 96


@pytest.fixture(scope="module")
def library(isa: Isa) -> Library:
    kernels = {}
    for weight in WEIGHTS:
        kernels[f"gemm {weight}"] = exact.linear(N, K, isa, weight=weight)
        kernels[f"gemv {weight}"] = exact.linear(N, K, isa, weight=weight, rows=1, residual=True)
        kernels[f"lookup {weight}"] = embedding.lookup(N, K, isa, weight=weight)
    kernels["gemm add"] = exact.linear(N, K, isa, weight="float32", residual=True)
    return compiled(isa, kernels)


def stored(rng: np.random.Generator, weight: str) -> tuple[tuple[Array, ...], Array]:
    """A random weight as stored, and its values as float32."""
    if weight in ("float16", "float32"):
        # float16's subnormals are among these.
        dense = (rng.standard_normal((N, K)) * 10.0 ** rng.integers(-7, 1, (N, K))).astype(weight)
        return (dense,), dense.astype(np.float32)
    words, scales = random_int4(rng, N, K, {"q4f16": "float16", "q4f32": "float32"}[weight])
    values = dequantised(words, scales)
    return (words, scales), values.astype(np.float16).astype(np.float32) if weight == "q4f16" else values


@pytest.mark.parametrize("weight", WEIGHTS)
def test_lookup_is_bit_exact(library: Library, rng: np.random.Generator, weight: str) -> None:
    """Rows are the dequantised values to the last bit; q4f16's are rounded to float16, as in such a model."""
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


def test_unknown_weight_is_refused(isa: Isa) -> None:
    """A form of weight that no reader knows is named in the error."""
    with pytest.raises(ValueError, match="q3f16"):
        exact.linear(N, K, isa, weight="q3f16")
