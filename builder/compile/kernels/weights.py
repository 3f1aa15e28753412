"""Rows of a weight matrix as float32 vectors, whatever the matrix is held as.

    "q4f16", "q4bf16", "q4f32"       MLC's four-bit words and scales as they lie in the file in "NK" layout:
                                     q_weight uint32 [n, k/8], q_scale [n, k/32]
    "q3f16"                          bit planes uint32 [n, k/32, 3] that `packing.planes` makes of MLC's
                                     three-bit words, and q_scale float16 [n, ceil(k/40)]
    "float16", "bfloat16", "float32" one dense tensor [n, k]

bfloat16 comes as its bits, in uint16: neither numpy nor every LLVM target has the type.
"""

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.vector import Expr

DENSE = ("float16", "bfloat16", "float32")
NIBBLES = {"q4f16": "float16", "q4bf16": "bfloat16", "q4f32": "float32"}
WEIGHTS = (*NIBBLES, "q3f16", *DENSE)

PLANES = 3
"""Words that hold 32 three-bit levels."""

THREE_BIT_GROUP = 40
"""Three-bit weights that share a scale. Half a vector never has two."""

Reader = Callable[[Expr, Expr], list[Expr]]


def declare(weight: str, n: int, k: int, isa: Isa) -> Reader:
    """Declare the weight's arguments; return what reads a block of 32 columns: (row, block) -> two vectors.

    q4f16 and q3f16 values are rounded to float16, as a float16 model's dequantised weights are.
    """
    vec.blocks_of(k)
    if weight not in WEIGHTS:
        raise ValueError(f"weight must be one of {', '.join(WEIGHTS)}, not {weight}")
    if weight in DENSE:
        return _dense(weight, n, k, isa)
    return _planes(n, k, isa) if weight == "q3f16" else _nibbles(weight, n, k, isa)


def in_memory(dtype: str) -> str:
    """The dtype under which kernels get what is `dtype` on disk."""
    return "uint16" if dtype == "bfloat16" else dtype


def widened(a: Expr, dtype: str, isa: Isa, lanes: int = vec.LANES) -> Expr:
    """Values of `dtype`, as `in_memory` has them, in float32; exact for finite ones."""
    if dtype == "float16":
        return vec.half_to_float_scalar(a, isa.half) if lanes == 1 else vec.half_to_float(a, isa.half, lanes)
    if dtype == "bfloat16":
        suffix = "" if lanes == 1 else f"x{lanes}"
        shift = tirx.const(16, "uint32")
        bits = tirx.Cast(f"uint32{suffix}", a) << (shift if lanes == 1 else vec.splat(shift, lanes))
        return tirx.reinterpret(f"float32{suffix}", bits)
    return a


def _dense(dtype: str, n: int, k: int, isa: Isa) -> Reader:
    dense = vec.tensor("weight", (n, k), in_memory(dtype))

    def read(row: Expr, block: Expr) -> list[Expr]:
        parts = [vec.load(dense, row, block * vec.BLOCK + offset) for offset in (0, vec.LANES)]
        return [T.bind(widened(part, dtype, isa)) for part in parts]

    return read


def _nibbles(weight: str, n: int, k: int, isa: Isa) -> Reader:
    scale = NIBBLES[weight]
    q_weight = vec.tensor("q_weight", (n, k // 8), "uint32")
    q_scale = vec.tensor("q_scale", (n, k // 32), in_memory(scale))

    def read(row: Expr, block: Expr) -> list[Expr]:
        factor = T.bind(vec.splat(widened(q_scale[row, block], scale, isa, lanes=1)))
        values = []
        for half in range(2):
            words = [vec.splat(q_weight[row, block * 4 + 2 * half + word], 8) for word in range(2)]
            spread = tirx.Shuffle(words, list(range(vec.LANES)))
            nibbles = spread >> _ramp(4, 31) & _u32s(15)
            values.append(T.bind(_dequantised(nibbles, 7, factor, scale, isa)))
        return values

    return read


def _planes(n: int, k: int, isa: Isa) -> Reader:
    blocks = vec.blocks_of(k)
    planes = vec.tensor("planes", (n, blocks, PLANES), "uint32")
    q_scale = vec.tensor("q_scale", (n, -(-k // THREE_BIT_GROUP)), "float16")

    def factor(row: Expr, eighth: Expr) -> Expr:
        """The scale of eight columns, on eight lanes."""
        group = tirx.floordiv(eighth, THREE_BIT_GROUP // 8)
        return vec.splat(widened(q_scale[row, group], "float16", isa, lanes=1), 8)

    def read(row: Expr, block: Expr) -> list[Expr]:
        high = T.bind(vec.splat(planes[row, block, 2]))
        values = []
        for half in range(2):
            first = block * 4 + 2 * half
            scales = tirx.Shuffle([factor(row, first), factor(row, first + 1)], list(range(vec.LANES)))
            low = vec.splat(planes[row, block, half]) >> _ramp(2, 31) & _u32s(3)
            # The third bit of column c is bit c of the last plane; here it goes to place 2.
            top = (high >> (_ramp(1, 15) + _u32s(16 * half)) & _u32s(1)) << _u32s(2)
            values.append(T.bind(_dequantised(low | top, 3, T.bind(scales), "float16", isa)))
        return values

    return read


def _dequantised(levels: Expr, top: int, factor: Expr, scale: str, isa: Isa) -> Expr:
    """(level - top) * factor for 16 uint32 levels, rounded to float16 where scales are float16."""
    signed = tirx.reinterpret("int32x16", levels) - vec.splat(vec.i32(top))
    product = tirx.Cast("float32x16", signed) * factor
    return vec.round_to_half(product, isa.half) if scale == "float16" else product


def _ramp(step: int, mask: int) -> Expr:
    """0, step, 2 * step … on 16 lanes of uint32, each modulo the power of two after `mask`."""
    return tirx.Cast("uint32x16", tirx.Ramp(vec.i32(0), step, 16) & vec.splat(vec.i32(mask)))


def _u32s(number: int) -> Expr:
    return vec.splat(tirx.const(number, "uint32"))
