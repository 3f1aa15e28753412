"""What the operators compute, as tensor expressions for TVM to schedule.

Sums and everything else inside an operator are float32; results are rounded to the activations' dtype once.
"""

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from builder.compile.operators import Gate
from builder.compile.quantise import GROUPS, Form

Value = Any  # tvm.tirx.PrimExpr; TVM has no type information
Tensor = Any  # tvm.te.Tensor

GELU_SCALE = 0.7978845608028654  # sqrt(2 / pi), of the tanh form


def weight(form: Form, shape: tuple[int, ...], stored: Sequence[Tensor]) -> Tensor:
    """A matrix [n, k], or [k, n] where it lies so, out of its tensors on disk; what `linear` inlines."""
    if form.bits is None:
        return stored[0]
    n, k = map(wide, shape)

    def read(row: Value, column: Value) -> Value:
        return level(form, stored, row, column)

    if form.layout == "KN":
        return te.compute((k, n), lambda column, row: read(row, column), "dequantised")
    return te.compute((n, k), read, "dequantised")


def level(form: Form, stored: Sequence[Tensor], row: Value, column: Value) -> Value:
    """One weight in the model's dtype: `(level - top) * scale`, each operation rounded, as MLC-LLM has it."""
    if form.bits is None:
        return stored[0][row, column]
    words, scales = stored
    per_word, group = 32 // form.bits, GROUPS[form.bits]
    places = (column // per_word, row), (column // group, row)
    if form.layout == "NK":
        places = places[0][::-1], places[1][::-1]
    shift = tirx.Cast("uint32", column % per_word * form.bits)
    bits = words[places[0]] >> shift & tirx.const(2**form.bits - 1, "uint32")
    top = tirx.const(2 ** (form.bits - 1) - 1, form.dtype)
    return (tirx.Cast(form.dtype, bits) - top) * scales[places[1]]


def linear(
    form: Form,
    shape: tuple[int, ...],
    dtype: str,
    x: Tensor,
    stored: Sequence[Tensor],
    added: Sequence[Tensor],
) -> Tensor:
    """x [m, k] times a matrix, plus what is `added`: vectors [n], matrices [m, n]. Returns [m, n] `dtype`."""
    matrix = weight(form, shape, stored)
    n, k = map(wide, shape)
    inner = te.reduce_axis((wide(0), k), "k")

    def product(i: Value, j: Value) -> Value:
        factor = matrix[inner, j] if form.bits is not None and form.layout == "KN" else matrix[j, inner]
        return te.sum(single(x[i, inner]) * single(factor), axis=inner)

    total = te.compute((x.shape[0], n), product, "matmul")

    def finish(i: Value, j: Value) -> Value:
        value = total[i, j]
        for other in added:
            value = value + single(other[j] if len(other.shape) == 1 else other[i, j])
        return value.astype(dtype)

    return te.compute((x.shape[0], n), finish, "linear")


def lookup(
    form: Form, shape: tuple[int, ...], dtype: str, ids: Tensor, stored: Sequence[Tensor], scale: float
) -> Tensor:
    """Rows of an embedding table at `ids` [m], times `scale`: [m, width]. Ids are not checked."""

    def value(i: Value, j: Value) -> Value:
        found = level(form, stored, ids[i].astype("int64"), j)
        return found.astype(dtype) if scale == 1.0 else (single(found) * real(scale)).astype(dtype)

    return te.compute((ids.shape[0], wide(shape[1])), value, "lookup")


def gated(gate_up: Tensor, gate: Gate) -> Tensor:
    """gate(left half) times right half of each row."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2

    def value(i: Value, j: Value) -> Value:
        x = single(gate_up[i, j])
        if gate == "silu":
            opened = x / (real(1.0) + te.exp(-x))
        else:
            inner = real(GELU_SCALE) * (x + real(0.044715) * x * x * x)
            opened = x * real(0.5) * (te.tanh(inner) + real(1.0))
        return (opened * single(gate_up[i, j + width])).astype(gate_up.dtype)

    return te.compute((rows, width), value, "gated")


def softcap(x: Tensor, cap: float) -> Tensor:
    """cap · tanh(x / cap)."""
    return te.compute(
        x.shape, lambda i, j: (te.tanh(single(x[i, j]) / real(cap)) * real(cap)).astype(x.dtype), "softcap"
    )


def heads(
    parts: Sequence[Tensor],
    counts: tuple[int, int],
    positions: Tensor | None,
    rates: Tensor | None,
    gain: float,
) -> Tensor:
    """Queries, keys and values [m, heads of all three, head_dim] from one tensor or three.

    Args:
        parts: [m, heads, head_dim] each.
        counts: heads of the queries, and of the keys.
        positions, rates: int32 [m] and float32 [pairs]: queries and keys are rotated by them, if given.
            Dimension i turns with dimension i + pairs.
        gain: what cosine and sine are multiplied with.
    """
    queries, keys = counts
    rows, dim, dtype = parts[0].shape[0], parts[0].shape[2], parts[0].dtype

    def element(i: Value, h: Value, d: Value) -> Value:
        if len(parts) == 1:
            return parts[0][i, h, d]
        q, k, v = parts
        rest = tirx.if_then_else(h < queries + keys, k[i, h - queries, d], v[i, h - queries - keys, d])
        return tirx.if_then_else(h < queries, q[i, h, d], rest)

    def rotated(i: Value, h: Value, d: Value) -> Value:
        assert positions is not None
        assert rates is not None
        pairs = rates.shape[0]
        angle = single(positions[i]) * rates[d % pairs]
        before, after = single(element(i, h, d - pairs)), single(element(i, h, d + pairs))
        other = tirx.if_then_else(d < pairs, -after, before)
        turned = single(element(i, h, d)) * te.cos(angle) + other * te.sin(angle)
        kept = tirx.any(h >= queries + keys, d >= 2 * pairs)
        return tirx.if_then_else(kept, element(i, h, d), (turned * real(gain)).astype(dtype))

    return te.compute(
        (rows, wide(queries + 2 * keys), dim), element if positions is None else rotated, "heads"
    )


def wide(number: int) -> Value:
    """An index of the width that Relax has."""
    return tirx.IntImm("int64", number)


def real(number: float) -> Value:
    """A float32 constant."""
    return tirx.const(number, "float32")


def single(value: Value) -> Value:
    """As float32."""
    return tirx.Cast("float32", value)
