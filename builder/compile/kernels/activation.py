"""What happens to activations between linears: RMSNorm and the gated product, in float32 or into int8 blocks.

A block holds 32 neighbouring values of a row as ten int32 words: eight of int8 values in order, the bits of
the float32 scale, and -7 times the sum of the int8 values. value = int8 * scale, scale = max|value| / 127,
rounding to nearest even. The last word lets the linears use MLC's nibbles 0..15 as they are:
sum((q - 7) * a) = sum(q * a) - 7 * sum(a).
"""

import math
from collections.abc import Callable
from typing import Any, Literal

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.vector import Buffer, Expr, PrimFunc

ROW_TILE = 4
"""Block tensors of many rows have zero rows up to a multiple of this: small GEMM tiles have no edge."""

WORDS = vec.BLOCK // 4 + 2
"""int32 words of a block."""

Gate = Literal["silu", "gelu"]
"""What a gate passes through: x * sigmoid(x), or GELU by its tanh formula (arXiv:1606.08415, section 2)."""

Pair = tuple[Expr, Expr]


def padded_rows(rows: Any) -> Any:
    """Rows of the block tensor of a rows=None kernel, for a matrix of `rows` rows (int or TIR expression)."""
    return (rows + (ROW_TILE - 1)) // ROW_TILE * ROW_TILE


def quantise(k: int, *, rows: int | None = None) -> PrimFunc:
    """f(x float32 [m, k], blocks int32 [p, k/32, 10])."""

    def body() -> None:
        m = _rows(rows)
        x = vec.tensor("x", (m, k), "float32")
        out = _blocks(k, rows)
        _quantise_rows(out, m, k, rows, lambda row: lambda column: T.bind(vec.load(x, row, column)))

    return vec.build(f"quantise_k{k}{_suffix(rows)}", body)


def rms_norm_quantise(k: int, eps: float, *, rows: int | None = None) -> PrimFunc:
    """f(x float32 [m, k], gamma float32 [k], blocks int32 [p, k/32, 10]): x / sqrt(mean(x²) + eps) gamma."""

    def body() -> None:
        m = _rows(rows)
        x = vec.tensor("x", (m, k), "float32")
        gamma = vec.tensor("gamma", (k,), "float32")
        out = _blocks(k, rows)
        _quantise_rows(out, m, k, rows, lambda row: _normed(x, gamma, row, k, eps))

    return vec.build(f"rms_norm_quantise_k{k}_eps{vec.digits(eps)}{_suffix(rows)}", body)


def gated_quantise(k: int, gate: Gate, *, rows: int | None = None) -> PrimFunc:
    """f(gate_up float32 [m, 2k], blocks int32 [p, k/32, 10]): blocks of gate(left half) * right half."""

    def body() -> None:
        m = _rows(rows)
        gate_up = vec.tensor("gate_up", (m, 2 * k), "float32")
        out = _blocks(k, rows)
        _quantise_rows(
            out,
            m,
            k,
            rows,
            lambda row: lambda column: _gated(gate_up, row, column, k, gate),
        )

    return vec.build(f"{gate}_mul_quantise_k{k}{_suffix(rows)}", body)


def rms_norm(k: int, eps: float, *, rows: int | None = None, residual: bool = False) -> PrimFunc:
    """f(x float32 [m, k], gamma float32 [k], [residual float32 [m, k],] y float32 [m, k]).

    The residual is added to what is normalised.
    """

    def body() -> None:
        m = _rows(rows)
        x = vec.tensor("x", (m, k), "float32")
        gamma = vec.tensor("gamma", (k,), "float32")
        added = vec.tensor("residual", (m, k), "float32") if residual else None
        y = vec.tensor("y", (m, k), "float32")

        def source(row: Expr) -> Callable[[Expr], Expr]:
            normed = _normed(x, gamma, row, k, eps)
            return normed if added is None else lambda column: normed(column) + vec.load(added, row, column)

        _float_rows(y, m, k, source)

    return vec.build(
        f"rms_norm_k{k}_eps{vec.digits(eps)}{_suffix(rows)}" + ("_add" if residual else ""), body
    )


def soft_cap(k: int, cap: float, *, rows: int | None = None) -> PrimFunc:
    """f(x float32 [m, k], y float32 [m, k]): cap * tanh(x / cap). k is at least 16."""
    if k < vec.LANES:
        raise ValueError(f"rows of {k} are shorter than a vector")
    parts = -(-k // vec.LANES)
    chunk = min(parts, 256)

    def body() -> None:
        m = _rows(rows)
        x = vec.tensor("x", (m, k), "float32")
        y = vec.tensor("y", (m, k), "float32")
        chunks = -(-parts // chunk)
        with vec.root(), T.parallel(0, m * chunks) as task:
            row = vec.fixed(tirx.floordiv(task, chunks))
            first = vec.fixed(tirx.floormod(task, chunks) * chunk)
            with T.serial(0, tirx.Min(vec.i32(chunk), parts - first)) as part:
                # The last vector of a row overlaps the one before it.
                column = vec.fixed(tirx.Min((first + part) * vec.LANES, vec.i32(k - vec.LANES)))
                value = vec.tanh(vec.load(x, row, column) * vec.splat(1.0 / cap)) * vec.splat(cap)
                vec.store(y, value, row, column)

    return vec.build(f"soft_cap_k{k}_c{vec.digits(cap)}{_suffix(rows)}", body)


def gated(k: int, gate: Gate, *, rows: int | None = None) -> PrimFunc:
    """f(gate_up float32 [m, 2k], y float32 [m, k]): gate(left half) * right half."""

    def body() -> None:
        m = _rows(rows)
        gate_up = vec.tensor("gate_up", (m, 2 * k), "float32")
        y = vec.tensor("y", (m, k), "float32")
        _float_rows(y, m, k, lambda row: lambda column: _gated(gate_up, row, column, k, gate))

    return vec.build(f"{gate}_mul_k{k}{_suffix(rows)}", body)


def _rows(rows: int | None) -> Expr:
    return rows if rows is not None else T.int32()


def _suffix(rows: int | None) -> str:
    return "" if rows is None else f"_m{rows}"


def _blocks(k: int, rows: int | None) -> Buffer:
    return vec.tensor("blocks", (_rows(rows), vec.blocks_of(k), WORDS), "int32")


def _normed(x: Buffer, gamma: Buffer, row: Expr, k: int, eps: float) -> Callable[[Expr], Expr]:
    """Emit the row's mean square; return what emits 16 normalised values from a column on."""
    sums = [vec.local(), vec.local()]
    for half in sums:
        vec.assign(half, vec.zero())
    with T.serial(0, vec.blocks_of(k)) as block:
        for index, half in enumerate(sums):
            part = T.bind(vec.load(x, row, block * vec.BLOCK + index * vec.LANES))
            vec.assign(half, vec.fma(part, part, vec.value(half)))
    mean = vec.total(vec.value(sums[0]) + vec.value(sums[1])) * vec.f32(1.0 / k)
    inverse = T.bind(vec.f32(1.0) / tirx.sqrt(mean + vec.f32(eps)))
    return lambda column: T.bind(vec.load(x, row, column) * vec.splat(inverse) * vec.load(gamma, column))


def _gated(gate_up: Buffer, row: Expr, column: Expr, k: int, gate: Gate) -> Expr:
    x = T.bind(vec.load(gate_up, row, column))
    # Both gates are x * sigmoid(z): GELU's tanh formula with z = sqrt(8/pi) (x + 0.044715 x**3).
    if gate == "silu":
        exponent = x * vec.splat(-vec.LOG2_E)
    else:
        slope = -vec.LOG2_E * math.sqrt(8 / math.pi)
        exponent = x * vec.fma(T.bind(x * x), vec.splat(slope * 0.044715), vec.splat(slope))
    return T.bind(x * vec.load(gate_up, row, column + k) / (vec.splat(1.0) + vec.exp2(exponent)))


def _quantise_rows(
    out: Buffer,
    m: Expr,
    k: int,
    rows: int | None,
    source: Callable[[Expr], Callable[[Expr], Expr]],
) -> None:
    """Every row of `out` in parallel; rows beyond m, which only a padded tensor has, become zeros."""
    blocks = vec.blocks_of(k)

    def convert(row: Expr) -> None:
        values = source(row)
        with T.serial(0, blocks) as block:
            _quantise_block(
                (values(block * vec.BLOCK), values(block * vec.BLOCK + vec.LANES)),
                out,
                row,
                block,
            )

    def clear(row: Expr) -> None:
        with T.serial(0, blocks) as block, T.serial(0, WORDS) as word:
            T.buffer_store(out, vec.i32(0), [row, block, word])

    with vec.root():
        if rows == 1:
            convert(vec.i32(0))
            return
        with T.parallel(0, out.shape[0]) as row:
            vec.when(row < m, lambda: convert(row), lambda: clear(row))


def _quantise_block(values: Pair, out: Buffer, row: Expr, block: Expr) -> None:
    peak = T.bind(vec.largest(tirx.Max(vec.fabs(values[0]), vec.fabs(values[1]))))
    # Below 1e-30 the quotient could overflow, and nothing downstream could tell the block from zeros.
    inverse = T.bind(tirx.Select(peak > vec.f32(1e-30), vec.f32(127.0) / peak, vec.f32(0.0)))
    ints = []
    for half, part in enumerate(values):
        # Adding 1.5 * 2**23 rounds to nearest even and leaves the integer in the low bits.
        shifted = tirx.reinterpret(
            f"int32x{vec.LANES}",
            vec.fma(part, vec.splat(inverse), vec.splat(12582912.0)),
        )
        ints.append(T.bind(shifted - vec.splat(vec.i32(0x4B400000))))
        words = tirx.reinterpret("int32x4", tirx.Cast(f"int8x{vec.LANES}", ints[half]))
        vec.store(out, words, row, block, vec.i32(4 * half), lanes=4)
    T.buffer_store(
        out,
        tirx.reinterpret("int32", peak * vec.f32(1 / 127.0)),
        [row, block, vec.i32(8)],
    )
    sum_ = vec.intrinsic("int32", "llvm.vector.reduce.add", ints[0] + ints[1])
    T.buffer_store(out, sum_ * vec.i32(-7), [row, block, vec.i32(9)])


def _float_rows(y: Buffer, m: Expr, k: int, source: Callable[[Expr], Callable[[Expr], Expr]]) -> None:
    vec.blocks_of(k)
    with vec.root(), T.parallel(0, m) as row:
        values = source(row)
        with T.serial(0, k // vec.LANES) as part:
            vec.store(y, values(part * vec.LANES), row, part * vec.LANES)
