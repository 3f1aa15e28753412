"""Rows of a weight matrix as float32 vectors, whatever the matrix is stored as.

"q4f16" and "q4f32" are MLC's q4f16_1 and q4f32_1 as they lie in the file: q_weight uint32 [n, k/8] (nibbles
from the low bits up) and q_scale [n, k/32]. "float16" and "float32" are one dense [n, k] tensor.
"""

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.vector import Expr

WEIGHTS = ("q4f16", "q4f32", "float16", "float32")

Reader = Callable[[Expr, Expr], list[Expr]]


def declare(weight: str, n: int, k: int, isa: Isa) -> Reader:
    """Declare the weight's arguments; return what reads a block of 32 columns: (row, block) -> two vectors.

    q4f16 values are rounded to float16, as a float16 model's dequantised weights are.
    """
    blocks = vec.blocks_of(k)
    if weight not in WEIGHTS:
        raise ValueError(f"weight must be one of {', '.join(WEIGHTS)}, not {weight}")
    if weight in ("float16", "float32"):
        dense = vec.tensor("weight", (n, k), weight)

        def read_dense(row: Expr, block: Expr) -> list[Expr]:
            parts = [vec.load(dense, row, block * vec.BLOCK + offset) for offset in (0, vec.LANES)]
            if weight == "float16":
                parts = [vec.half_to_float(part, isa.half) for part in parts]
            return [T.bind(part) for part in parts]

        return read_dense

    scale = {"q4f16": "float16", "q4f32": "float32"}[weight]
    q_weight = vec.tensor("q_weight", (n, k // 8), "uint32")
    q_scale = vec.tensor("q_scale", (n, blocks), scale)

    def read_nibbles(row: Expr, block: Expr) -> list[Expr]:
        factor = q_scale[row, block]
        if scale == "float16":
            factor = vec.half_to_float_scalar(factor, isa.half)
        factor = T.bind(vec.splat(factor))
        values = []
        for half in range(2):
            words = [vec.splat(q_weight[row, block * 4 + 2 * half + word], 8) for word in range(2)]
            spread = tirx.Shuffle(words, list(range(vec.LANES)))
            shifts = tirx.Cast("uint32x16", tirx.Ramp(vec.i32(0), 4, 16) & vec.splat(vec.i32(31)))
            nibbles = spread >> shifts & vec.splat(tirx.const(15, "uint32"))
            value = dequantised(tirx.reinterpret("int32x16", nibbles), factor, weight, isa)
            values.append(T.bind(value))
        return values

    return read_nibbles


def dequantised(nibbles: Expr, factor: Expr, weight: str, isa: Isa) -> Expr:
    """(nibble - 7) * factor for 16 int32 nibbles, rounded as `weight` says."""
    product = tirx.Cast("float32x16", nibbles - vec.splat(vec.i32(7))) * factor
    return vec.round_to_half(product, isa.half) if weight == "q4f16" else product
