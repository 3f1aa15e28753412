"""RMSNorm, SiLU·mul and the int8 blocks against numpy."""

import numpy as np
import pytest

from builder.compile.kernels import activation
from builder.compile.kernels.isa import Isa
from tests.builder.kernels.harness import Array, Library, Out, compiled

K, EPS = 96, 1e-5
# Several chunks of a row, and a last vector that is not whole.
WIDE, CAP = 16 * 260 + 5, 30.0
GATES: tuple[activation.Gate, ...] = ("silu", "gelu")
ROWS = [None, 1]


@pytest.fixture(scope="module")
def library(isa: Isa) -> Library:
    kernels = {}
    for rows in ROWS:
        kernels[f"quantise{rows}"] = activation.quantise(K, rows=rows)
        kernels[f"rms_norm_quantise{rows}"] = activation.rms_norm_quantise(K, EPS, rows=rows)
        kernels[f"rms_norm{rows}"] = activation.rms_norm(K, EPS, rows=rows)
        kernels[f"rms_norm_add{rows}"] = activation.rms_norm(K, EPS, rows=rows, residual=True)
        kernels[f"soft_cap{rows}"] = activation.soft_cap(WIDE, CAP, rows=rows)
        for gate in GATES:
            kernels[f"{gate}_quantise{rows}"] = activation.gated_quantise(K, gate, rows=rows)
            kernels[f"{gate}{rows}"] = activation.gated(K, gate, rows=rows)
    return compiled(isa, kernels)


def normed(x: Array, gamma: Array) -> Array:
    return np.asarray(x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + EPS) * gamma)


def gated(gate_up: Array, kind: activation.Gate) -> Array:
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
    if kind == "silu":
        return np.asarray(gate / (1 + np.exp(-gate)) * up)
    return np.asarray(0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up)


def check_blocks(blocks: Array, expected: Array) -> None:
    """Blocks hold `expected` to half a step, their sums are right, and rows beyond it are zero."""
    m = len(expected)
    ints = np.ascontiguousarray(blocks[:, :, :8]).view(np.int8)
    scale = np.ascontiguousarray(blocks[:, :, 8]).view(np.float32)
    peaks = np.abs(expected.reshape(m, -1, 32)).max(axis=-1)
    np.testing.assert_allclose(scale[:m], peaks / 127, rtol=2e-6, atol=1e-30)
    error = np.abs(ints[:m] * scale[:m, :, None] - expected.reshape(m, -1, 32))
    assert (error <= scale[:m, :, None] * 0.501 + 1e-30).all()
    np.testing.assert_array_equal(blocks[:, :, 9], -7 * ints.sum(axis=-1, dtype=np.int32))
    assert not blocks[m:].any()


@pytest.mark.parametrize("m", [1, 7, 8, 9])
@pytest.mark.parametrize("rows", ROWS)
def test_blocks(library: Library, rng: np.random.Generator, rows: int | None, m: int) -> None:
    """Each of the sources gives blocks within half a quantisation step; padding rows are zero."""
    m = rows or m
    padded = rows or activation.padded_rows(m)
    x = (rng.standard_normal((m, K)) * 10.0 ** rng.integers(-3, 3, (m, 1))).astype(np.float32)
    gamma = rng.standard_normal(K).astype(np.float32)
    gate_up = (rng.standard_normal((m, 2 * K)) * 4).astype(np.float32)
    out = Out((padded, K // 32, 10), "int32")
    check_blocks(library(f"quantise{rows}", x, out)[0], x)
    check_blocks(library(f"rms_norm_quantise{rows}", x, gamma, out)[0], normed(x, gamma))
    for gate in GATES:
        check_blocks(library(f"{gate}_quantise{rows}", gate_up, out)[0], gated(gate_up, gate))


@pytest.mark.parametrize("m", [1, 7])
@pytest.mark.parametrize("rows", ROWS)
def test_float(library: Library, rng: np.random.Generator, rows: int | None, m: int) -> None:
    """The float forms agree with numpy, the gates also where exp(-x) is far outside of float32."""
    m = rows or m
    x = rng.standard_normal((m, K)).astype(np.float32)
    gamma = rng.standard_normal(K).astype(np.float32)
    (y,) = library(f"rms_norm{rows}", x, gamma, Out((m, K)))
    np.testing.assert_allclose(y, normed(x, gamma), rtol=2e-6, atol=1e-6)
    gate_up = (rng.standard_normal((m, 2 * K)) * 5).astype(np.float32)
    gate_up[0, :3] = (-200.0, 200.0, 0.0)
    for gate in GATES:
        (y,) = library(f"{gate}{rows}", gate_up, Out((m, K)))
        np.testing.assert_allclose(y, gated(gate_up, gate), rtol=1e-5, atol=1e-6)
    (y,) = library(f"rms_norm_add{rows}", x, gamma, gate_up[:, :K].copy(), Out((m, K)))
    np.testing.assert_allclose(y, normed(x, gamma) + gate_up[:, :K], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("rows", ROWS)
def test_soft_cap(library: Library, rng: np.random.Generator, rows: int | None, m: int) -> None:
    """Values stay below the cap, small ones stay what they are to float32's precision."""
    m = rows or m
    x = (rng.standard_normal((m, WIDE)) * 10.0 ** rng.integers(-8, 5, (m, WIDE))).astype(np.float32)
    (y,) = library(f"soft_cap{rows}", x, Out((m, WIDE)))
    np.testing.assert_allclose(y, CAP * np.tanh(x.astype(np.float64) / CAP), rtol=6e-7)


def test_zeros_stay_zeros(library: Library) -> None:
    """A block of zeros quantises to zeros with scale zero, not to NaN."""
    (blocks,) = library("quantiseNone", np.zeros((3, K), np.float32), Out((8, K // 32, 10), "int32"))
    assert not blocks.any()
