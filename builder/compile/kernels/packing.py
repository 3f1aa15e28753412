"""MLC's int4 weights to the layout the fast linears read (`isa.Isa` describes it)."""

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.vector import Expr, PrimFunc


def groups_of(n: int, isa: Isa) -> int:
    """Packed groups of an n-row weight; the last is padded with zero rows of zero scale."""
    return -(-n // isa.lanes)


def packed_shape(n: int, k: int, isa: Isa) -> tuple[int, int, int]:
    """Shape of the packed nibbles, dtype uint8."""
    return groups_of(n, isa), vec.blocks_of(k), 16 * isa.lanes


def scales_shape(n: int, k: int, isa: Isa) -> tuple[int, int, int]:
    """Shape of the packed scales, dtype as the model stores them."""
    return groups_of(n, isa), vec.blocks_of(k), isa.lanes


def pack(n: int, k: int, isa: Isa, *, scale: str = "float16") -> PrimFunc:
    """f(q_weight uint32 [n, k/8], q_scale [n, k/32], packed uint8 packed_shape, scales scales_shape).

    The inputs are MLC's q4f16_1 or q4f32_1 tensors, nibbles 0..15 in column order from the low bits up.
    """
    blocks = vec.blocks_of(k)

    def body() -> None:
        q_weight = vec.tensor("q_weight", (n, k // 8), "uint32")
        q_scale = vec.tensor("q_scale", (n, blocks), scale)
        packed = vec.tensor("packed", packed_shape(n, k, isa), "uint8")
        scales = vec.tensor("scales", scales_shape(n, k, isa), scale)

        def move(group: Expr, row: Expr, block: Expr, words: list[Expr], factor: Expr) -> None:
            words = [T.bind(word) for word in words]
            if isa.quads:
                for quad in range(4):
                    low, high = words[quad // 2], words[2 + quad // 2]
                    bytes_ = _spread(low, quad % 2) | _spread(high, quad % 2) << _u32(4)
                    index = [
                        group,
                        block,
                        tirx.Ramp((row + quad * isa.lanes) * 4, 1, 4),
                    ]
                    T.buffer_store(packed, tirx.reinterpret("uint8x4", bytes_), index)
            else:
                for column in range(16):
                    low = words[column // 8] >> _u32(column % 8 * 4) & _u32(15)
                    high = words[2 + column // 8] >> _u32(column % 8 * 4) & _u32(15)
                    index = [group, block, row + column * isa.lanes]
                    T.buffer_store(packed, tirx.Cast("uint8", low | high << _u32(4)), index)
            T.buffer_store(scales, factor, [group, block, row])

        def fill(group: Expr, block: Expr, row: Expr) -> None:
            source = T.bind(group * isa.lanes + row)

            def copy() -> None:
                words = [q_weight[source, block * 4 + word] for word in range(4)]
                move(group, row, block, words, q_scale[source, block])

            def pad() -> None:
                move(group, row, block, [_u32(0)] * 4, tirx.const(0.0, scale))

            vec.when(source < n if n % isa.lanes else None, copy, pad)

        with vec.root(), T.parallel(0, groups_of(n, isa)) as group:  # noqa: SIM117 - one loop nest per line
            with T.serial(0, blocks) as block, T.serial(0, isa.lanes) as row:
                fill(group, block, row)

    return vec.build(f"pack_{isa.name}_{scale}_n{n}_k{k}", body)


def _u32(number: int) -> Expr:
    return tirx.const(number, "uint32")


def _spread(word: Expr, half: int) -> Expr:
    """Four nibbles (the word's low or high half) to the low nibbles of four bytes."""
    bits = T.bind(word >> _u32(16 * half) & _u32(0xFFFF))
    spread = bits & _u32(0xF)
    for index in range(1, 4):
        spread = spread | (bits & _u32(0xF << 4 * index)) << _u32(4 * index)
    return spread
