"""MLC's quantised weights to the layouts that kernels read, when a model is loaded.

`pack` makes what the fast linears read (`isa.Isa` describes it); `transpose` and `planes` make what the exact
ones do of words that they do not read as they lie. Inputs are MLC's q_weight and q_scale: "NK" is
[n, words], [n, groups]; "KN" is the transposed. bfloat16 scales come and stay as their bits, in uint16.
"""

from collections.abc import Callable
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.vector import Buffer, Expr, PrimFunc
from builder.compile.kernels.weights import PLANES, THREE_BIT_GROUP, in_memory
from builder.compile.quantise import Layout

ROWS = 16
"""Rows that a task moves together: neighbours in "KN" layout share cache lines."""


def groups_of(n: int, isa: Isa) -> int:
    """Packed groups of an n-row weight; the last is padded with zero rows of zero scale."""
    return -(-n // isa.lanes)


def packed_shape(n: int, k: int, isa: Isa) -> tuple[int, int, int]:
    """Shape of the packed nibbles, dtype uint8."""
    return groups_of(n, isa), vec.blocks_of(k), 16 * isa.lanes


def scales_shape(n: int, k: int, isa: Isa) -> tuple[int, int, int]:
    """Shape of the packed scales, dtype as the model stores them."""
    return groups_of(n, isa), vec.blocks_of(k), isa.lanes


def pack(n: int, k: int, isa: Isa, *, scale: str = "float16", layout: Layout = "NK") -> PrimFunc:
    """f(q_weight uint32, q_scale, packed uint8 packed_shape, scales scales_shape), four-bit words."""
    blocks = vec.blocks_of(k)

    def body() -> None:
        q_weight, q_scale = _inputs(n, k // 8, blocks, scale, layout)
        packed = vec.tensor("packed", packed_shape(n, k, isa), "uint8")
        scales = vec.tensor("scales", scales_shape(n, k, isa), in_memory(scale))

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
                words = [q_weight(source, block * 4 + word) for word in range(4)]
                move(group, row, block, words, q_scale(source, block))

            def pad() -> None:
                move(group, row, block, [_u32(0)] * 4, tirx.const(0, in_memory(scale)))

            vec.when(source < n if n % isa.lanes else None, copy, pad)

        with vec.root(), T.parallel(0, groups_of(n, isa)) as group:  # noqa: SIM117 - one loop nest per line
            with T.serial(0, blocks) as block, T.serial(0, isa.lanes) as row:
                fill(group, block, row)

    return vec.build(f"pack_{isa.name}_{layout}_{scale}_n{n}_k{k}", body)


def transpose(n: int, k: int, *, scale: str = "float16") -> PrimFunc:
    """f(q_weight uint32 [k/8, n], q_scale [k/32, n], uint32 [n, k/8], [n, k/32]): four bits, KN to NK."""
    blocks = vec.blocks_of(k)

    def body() -> None:
        q_weight, q_scale = _inputs(n, k // 8, blocks, scale, "KN")
        words = vec.tensor("words", (n, k // 8), "uint32")
        scales = vec.tensor("scales", (n, blocks), in_memory(scale))

        def move(source: Callable[[Expr, Expr], Expr], out: Buffer, row: Expr, column: Expr) -> None:
            T.buffer_store(out, source(row, column), [row, column])

        with vec.root():
            _each(n, k // 8, partial(move, q_weight, words))
            _each(n, blocks, partial(move, q_scale, scales))

    return vec.build(f"transpose_{scale}_n{n}_k{k}", body)


def planes_shape(n: int, k: int) -> tuple[int, int, int]:
    """Shape of the bit planes, dtype uint32."""
    return n, vec.blocks_of(k), PLANES


def planes(n: int, k: int, *, layout: Layout = "NK") -> PrimFunc:
    """f(q_weight uint32, q_scale float16, planes uint32 planes_shape, float16 [n, ceil(k/40)]), three bits.

    MLC puts ten levels into a word, whose 32 bits thus never line up with blocks of 32 columns. Of three
    planes to a block the first two hold the low two bits of 16 columns each and the last all the third bits.
    """
    blocks, groups = vec.blocks_of(k), -(-k // THREE_BIT_GROUP)

    def body() -> None:
        q_weight, q_scale = _inputs(n, groups * 4, groups, "float16", layout)
        out = vec.tensor("planes", planes_shape(n, k), "uint32")
        scales = vec.tensor("scales", (n, groups), "float16")

        def gather(row: Expr, block: Expr) -> None:
            low, high = [_u32(0), _u32(0)], _u32(0)
            for lane in range(vec.BLOCK):
                column = block * vec.BLOCK + lane
                shift = tirx.Cast("uint32", tirx.floormod(column, 10) * 3)
                level = T.bind(q_weight(row, tirx.floordiv(column, 10)) >> shift)
                half, place = divmod(lane, 16)
                low[half] = T.bind(low[half] | (level & _u32(3)) << _u32(2 * place))
                high = T.bind(high | (level >> _u32(2) & _u32(1)) << _u32(lane))
            for index, plane in enumerate([*low, high]):
                T.buffer_store(out, plane, [row, block, vec.i32(index)])

        def copy(row: Expr, group: Expr) -> None:
            T.buffer_store(scales, q_scale(row, group), [row, group])

        with vec.root():
            _each(n, blocks, gather)
            _each(n, groups, copy)

    return vec.build(f"planes_{layout}_n{n}_k{k}", body)


def _inputs(
    n: int, words: int, groups: int, scale: str, layout: Layout
) -> tuple[Callable[[Expr, Expr], Expr], Callable[[Expr, Expr], Expr]]:
    """Declare q_weight and q_scale; return what reads each by row and column, whatever the layout."""

    def reader(name: str, columns: int, dtype: str) -> Callable[[Expr, Expr], Expr]:
        turned = layout == "KN"
        buffer = vec.tensor(name, (columns, n) if turned else (n, columns), dtype)
        return lambda row, column: buffer[column, row] if turned else buffer[row, column]

    return reader("q_weight", words, "uint32"), reader("q_scale", groups, in_memory(scale))


def _each(n: int, columns: int, body: Callable[[Expr, Expr], None]) -> None:
    """`body` for every row and column, a few rows to a task and those innermost."""
    with T.parallel(0, -(-n // ROWS)) as task, T.serial(0, columns) as column, T.serial(0, ROWS) as index:
        row = T.bind(task * ROWS + index)
        vec.when(row < n if n % ROWS else None, partial(body, row, column))


def _u32(number: int) -> Expr:
    return tirx.const(number, "uint32")


def _spread(word: Expr, half: int) -> Expr:
    """Four nibbles (the word's low or high half) to the low nibbles of four bytes."""
    bits = T.bind(word >> _u32(16 * half) & _u32(0xFFFF))
    spread = bits & _u32(0xF)
    for index in range(1, 4):
        spread = spread | (bits & _u32(0xF << 4 * index)) << _u32(4 * index)
    return spread
