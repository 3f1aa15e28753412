"""Embedding lookup: rows of the token table as float32, dequantised on the fly.

Token ids are not checked here: the caller validates 0 <= id < vocab.
"""

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.packing import packed_shape, scales_shape
from builder.compile.kernels.vector import PrimFunc
from builder.compile.kernels.weights import declare, in_memory, widened


def lookup(vocab: int, k: int, isa: Isa, *, weight: str, multiplier: float = 1.0) -> PrimFunc:
    """f(*weight, ids int32 [t], y float32 [t, k]); `weight` and its arguments as in `weights.declare`.

    The rows are multiplied with `multiplier`.
    """
    blocks = vec.blocks_of(k)

    def body() -> None:
        read = declare(weight, vocab, k, isa)
        tokens = T.int32()
        ids = vec.tensor("ids", (tokens,), "int32")
        y = vec.tensor("y", (tokens, k), "float32")
        with vec.root(), T.parallel(0, tokens) as token:
            row = T.bind(ids[token])
            with T.serial(0, blocks) as block:
                for half, part in enumerate(read(row, block)):
                    if multiplier != 1:
                        part = part * vec.splat(multiplier)
                    vec.store(y, part, token, block * vec.BLOCK + half * vec.LANES)

    return vec.build(f"lookup_{isa.name}_{weight}_v{vocab}_k{k}{_times(multiplier)}", body)


def lookup_packed(
    vocab: int, k: int, isa: Isa, *, scale: str = "float16", multiplier: float = 1.0
) -> PrimFunc:
    """f(packed uint8, scales, ids int32 [t], y float32 [t, k]), the table as `packing.pack` lays it out.

    For tied embeddings: the table that serves as the output layer's weight is kept once. Values are not
    rounded to float16, and multiplied with `multiplier`.
    """
    blocks = vec.blocks_of(k)

    def body() -> None:
        packed = vec.tensor("packed", packed_shape(vocab, k, isa), "uint8")
        scales = vec.tensor("scales", scales_shape(vocab, k, isa), in_memory(scale))
        tokens = T.int32()
        ids = vec.tensor("ids", (tokens,), "int32")
        y = vec.tensor("y", (tokens, k), "float32")
        with vec.root(), T.parallel(0, tokens) as token:
            group = vec.fixed(tirx.floordiv(ids[token], isa.lanes))
            row = vec.fixed(tirx.floormod(ids[token], isa.lanes))
            with T.serial(0, blocks) as block:
                factor = widened(scales[group, block, row], scale, isa, lanes=1)
                factor = T.bind(factor if multiplier == 1 else factor * vec.f32(multiplier))
                for column in range(16):
                    raw = T.bind(tirx.Cast("int32", packed[group, block, isa.byte(row, column)]))
                    for half, nibble in enumerate((raw & vec.i32(15), raw >> vec.i32(4))):
                        value = tirx.Cast("float32", nibble - 7) * factor
                        T.buffer_store(
                            y,
                            value,
                            [token, block * vec.BLOCK + half * vec.LANES + column],
                        )

    return vec.build(f"lookup_packed_{isa.name}_{scale}_v{vocab}_k{k}{_times(multiplier)}", body)


def _times(multiplier: float) -> str:
    return "" if multiplier == 1 else f"_x{vec.digits(multiplier)}"
