"""Linear layers with int4 weights and int8 activations: the fast path of quantised models.

y[m, n] = W[n, k] @ x[m, k], with W as `packing` lays it out and x as blocks from `activation`. Products are
summed exactly in integers within a block of 32 columns and in float32 across blocks. The error against
float32 activations is that of their rounding to int8.
"""

from dataclasses import dataclass
from functools import partial
from itertools import chain

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.activation import WORDS
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.packing import groups_of, packed_shape, scales_shape
from builder.compile.kernels.vector import Buffer, Expr, PrimFunc
from builder.compile.kernels.weights import in_memory, widened

PREFETCH = 4096
"""Bytes fetched ahead where weights stream from memory: hardware prefetchers do not fill its bandwidth."""

CHUNK_BYTES = 160 * 1024
"""Weights that a GEMM task holds in the second-level cache while the tokens pass by."""


@dataclass(frozen=True)
class Tile:
    """What a register tile covers: `groups` of packed rows times `tokens`, for at most `limit` tokens in all.

    Fewer tokens than a tile has are filled up by `activation.ROW_TILE`; more get tiles that overlap.
    """

    limit: int | None
    groups: int
    tokens: int


# The decode batches of a few sequences are bound by memory and get tiles without idle tokens. Beyond them the
# tile is what fills the registers: weights of a block (eight vectors per group), sums, and one activation.
TILES = {
    "vpdpbusd": (Tile(2, 2, 2), Tile(4, 2, 4), Tile(None, 2, 5)),
    "vpmaddubsw": (Tile(2, 1, 2), Tile(4, 1, 4), Tile(None, 1, 3)),
    "sdot": (Tile(2, 2, 2), Tile(4, 2, 4), Tile(None, 1, 8)),
    "plain": (Tile(2, 1, 2), Tile(None, 1, 4)),
}


def linear(
    n: int,
    k: int,
    isa: Isa,
    *,
    scale: str = "float16",
    rows: int | None = None,
    bias: bool = False,
    residual: bool = False,
) -> PrimFunc:
    """f(packed uint8, scales, blocks int32 [p, k/32, 10], [bias float32 [n],] [residual float32 [m, n],] y).

    y is float32 [m, n]. Shapes of packed and scales: `packing.packed_shape` and `scales_shape`; `scale` is
    the dtype of the latter. p is 1 for rows=1 and at least `activation.padded_rows(m)` otherwise. Bias and
    residual are added to the product.
    """
    if rows not in (None, 1):
        raise ValueError(f"rows must be 1 or None, not {rows}")
    lanes, blocks, groups = isa.lanes, vec.blocks_of(k), groups_of(n, isa)

    def body() -> None:
        packed = vec.tensor("packed", packed_shape(n, k, isa), "uint8")
        scales = vec.tensor("scales", scales_shape(n, k, isa), in_memory(scale))
        act = vec.tensor("blocks", (rows or T.int32(), blocks, WORDS), "int32")
        m = rows or T.int32()
        constant = vec.tensor("bias", (n,), "float32") if bias else None
        added = vec.tensor("residual", (m, n), "float32") if residual else None
        y = vec.tensor("y", (m, n), "float32")

        def tile(group: Expr, first: Expr, shape: Tile, streams: bool) -> None:
            """Tokens from `first` on times groups from `group` on; a group too many repeats the last."""
            taken = [group] + [
                vec.fixed(tirx.Min(group + index, vec.i32(groups - 1))) for index in range(1, shape.groups)
            ]
            sums = [[vec.local(lanes=lanes) for _ in range(shape.tokens)] for _ in taken]
            for sum_ in chain(*sums):
                vec.assign(sum_, vec.zero(lanes), lanes)
            with T.serial(0, blocks) as block:
                factors = []
                for source in taken:
                    if streams:
                        _prefetch(packed, source, block, isa)
                    factor = vec.load(scales, source, block, vec.i32(0), lanes=lanes)
                    factors.append(T.bind(widened(factor, scale, isa, lanes)))
                dots = _dots(
                    packed,
                    taken,
                    block,
                    act,
                    [first + token for token in range(shape.tokens)],
                    isa,
                )
                for token in range(shape.tokens):
                    step = tirx.reinterpret("float32", act[first + token, block, 8])
                    step = T.bind(vec.splat(step, lanes))
                    for index, factor in enumerate(factors):
                        sum_ = sums[index][token]
                        dot = tirx.Cast(f"float32x{lanes}", dots[index][token])
                        vec.assign(
                            sum_,
                            vec.fma(dot, factor * step, vec.value(sum_, lanes), lanes),
                            lanes,
                        )
            for index in range(shape.groups):
                for token in range(shape.tokens):
                    row = first + token
                    inside = [] if rows == 1 else [row < m]
                    if index and groups % shape.groups:
                        inside.append(group + index < groups)
                    condition = tirx.all(*inside) if inside else None
                    vec.when(
                        condition,
                        partial(write, sums[index][token], group + index, row),
                    )

        def write(sum_: Buffer, group: Expr, row: Expr) -> None:
            column = group * lanes

            def whole() -> None:
                out = vec.value(sum_, lanes)
                if constant is not None:
                    out = out + vec.load(constant, column, lanes=lanes)
                if added is not None:
                    out = out + vec.load(added, row, column, lanes=lanes)
                vec.store(y, out, row, column, lanes=lanes)

            def edge() -> None:
                with T.serial(0, n % lanes) as index:
                    out = sum_[index]
                    if constant is not None:
                        out = out + constant[column + index]
                    if added is not None:
                        out = out + added[row, column + index]
                    T.buffer_store(y, out, [row, column + index])

            vec.when(column + lanes <= n if n % lanes else None, whole, edge)

        def tiled(shape: Tile) -> None:
            steps = -(-groups // shape.groups)
            chunk = max(1, min(8, CHUNK_BYTES // (blocks * 18 * lanes)) // shape.groups)
            with T.parallel(0, -(-steps // chunk)) as task:  # noqa: SIM117 - one loop per line
                with T.serial(0, tirx.floordiv(m + (shape.tokens - 1), shape.tokens)) as step:
                    with T.serial(0, tirx.Min(vec.i32(chunk), steps - task * chunk)) as index:
                        # The last tile overlaps the one before it rather than have idle tokens.
                        first = tirx.Max(tirx.Min(step * shape.tokens, m - shape.tokens), vec.i32(0))
                        group = (task * chunk + index) * shape.groups
                        tile(
                            group,
                            vec.fixed(first),
                            shape,
                            streams=shape.limit is not None,
                        )

        def best(shapes: tuple[Tile, ...]) -> None:
            condition = None if shapes[0].limit is None else m <= shapes[0].limit
            vec.when(condition, partial(tiled, shapes[0]), partial(best, shapes[1:]))

        with vec.root():
            if rows == 1:
                with T.parallel(0, groups) as group:
                    tile(group, vec.i32(0), Tile(1, 1, 1), streams=True)
            else:
                best(TILES[isa.dot])

    name = f"w4a8_{isa.name}_{scale}_n{n}_k{k}" + vec.endings(m1=rows == 1, bias=bias, add=residual)
    return vec.build(name, body)


def _prefetch(packed: Buffer, group: Expr, block: Expr, isa: Isa) -> None:
    for line in range(0, 16 * isa.lanes, 64):
        vec.prefetch(tirx.address_of(packed[group, block, line + PREFETCH]))


def _dots(
    packed: Buffer,
    groups: list[Expr],
    block: Expr,
    act: Buffer,
    rows: list[Expr],
    isa: Isa,
) -> list[list[Expr]]:
    """By group and activation row, int32 vectors: sums over the block's 32 columns of (nibble - 7) * int8."""
    if isa.dot == "plain":
        return [_plain_dots(packed, group, block, act, rows, isa) for group in groups]
    if isa.dot == "vpmaddubsw":
        return [_pair_dots(packed, group, block, act, rows, isa) for group in groups]
    weights = [_nibbles(packed, group, block, isa) for group in groups]
    dots: list[list[Expr]] = [[] for _ in groups]
    for row in rows:
        quads = _quads(act, row, block, isa)
        offset = T.bind(vec.splat(act[row, block, 9], isa.lanes))
        for index, weight in enumerate(weights):
            dots[index].append(_quad_dot(weight, quads, offset, isa))
    return dots


def _nibbles(packed: Buffer, group: Expr, block: Expr, isa: Isa) -> list[Expr]:
    """The block's weights as eight int8 vectors, four columns of every row in each."""
    pairs = [_nibble_pair(packed, group, block, quad, isa) for quad in range(4)]
    return [low for low, _high in pairs] + [high for _low, high in pairs]


def _nibble_pair(packed: Buffer, group: Expr, block: Expr, quad: int, isa: Isa) -> tuple[Expr, Expr]:
    """Columns 4 * quad and the three after it as int8, and those 16 further on."""
    lanes = isa.lanes
    words, bytes_ = f"int32x{lanes}", f"int8x{4 * lanes}"
    mask = vec.splat(vec.i32(0x0F0F0F0F), lanes)
    raw = vec.load(packed, group, block, vec.i32(quad * 4 * lanes), lanes=4 * lanes)
    # Shifting words is one instruction where shifting bytes is not; the mask drops what crossed over.
    raw = T.bind(tirx.reinterpret(words, raw))
    high = (raw >> vec.splat(vec.i32(4), lanes)) & mask
    return T.bind(tirx.reinterpret(bytes_, raw & mask)), T.bind(tirx.reinterpret(bytes_, high))


def _quads(act: Buffer, row: Expr, block: Expr, isa: Isa) -> list[Expr]:
    """The block's activations as eight int8 vectors: four columns, repeated for every packed row."""
    if isa.dot == "sdot":
        # By element of a register: sdot reads one of four words itself.
        halves = [T.bind(vec.load(act, row, block, vec.i32(4 * half), lanes=4)) for half in range(2)]
        quads = [tirx.Shuffle([halves[quad // 4]], [quad % 4] * isa.lanes) for quad in range(8)]
    else:
        quads = [vec.splat(act[row, block, quad], isa.lanes) for quad in range(8)]
    return [T.bind(tirx.reinterpret(f"int8x{4 * isa.lanes}", quad)) for quad in quads]


def _quad_dot(weights: list[Expr], quads: list[Expr], offset: Expr, isa: Isa) -> Expr:
    name = {
        "vpdpbusd": "llvm.x86.avx512.vpdpbusd.512",
        "sdot": "llvm.aarch64.neon.sdot.v4i32.v16i8",
    }[isa.dot]
    sum_ = offset
    for weight, quad in zip(weights, quads, strict=True):
        sum_ = T.bind(vec.intrinsic(f"int32x{isa.lanes}", name, sum_, weight, quad))
    return sum_


def _pair_dots(
    packed: Buffer, group: Expr, block: Expr, act: Buffer, rows: list[Expr], isa: Isa
) -> list[Expr]:
    """Columns outermost: sixteen registers do not hold a block's weights beside the sums."""
    lanes = isa.lanes
    pairs, words, bytes_ = f"int16x{2 * lanes}", f"int32x{lanes}", f"int8x{4 * lanes}"
    # Eight steps of at most 2 * 15 * 127 stay below 2**15: int16 lanes need widening only once per block.
    sums: list[Expr] = [None] * len(rows)
    for quad in range(4):
        for half, weight in enumerate(_nibble_pair(packed, group, block, quad, isa)):
            for token, row in enumerate(rows):
                four = tirx.reinterpret(bytes_, vec.splat(act[row, block, quad + 4 * half], lanes))
                step = vec.intrinsic(pairs, "llvm.x86.avx2.pmadd.ub.sw", weight, four)
                if sums[token] is not None:
                    # Saturating, though nothing saturates: LLVM does not reorder it, so spills nothing.
                    step = vec.intrinsic(pairs, "llvm.sadd.sat", sums[token], step)
                sums[token] = T.bind(step)
    ones = vec.splat(tirx.const(1, "int16"), 2 * lanes)
    return [
        T.bind(
            vec.splat(act[row, block, 9], lanes) + vec.intrinsic(words, "llvm.x86.avx2.pmadd.wd", sum_, ones)
        )
        for row, sum_ in zip(rows, sums, strict=True)
    ]


def _plain_dots(
    packed: Buffer, group: Expr, block: Expr, act: Buffer, rows: list[Expr], isa: Isa
) -> list[Expr]:
    lanes = isa.lanes
    wide = f"int16x{lanes}"
    values = []
    for row in rows:
        halves = [vec.load(act, row, block, vec.i32(4 * half), lanes=4) for half in range(2)]
        values.append([T.bind(tirx.Cast("int16x16", tirx.reinterpret("int8x16", half))) for half in halves])
    # Sixteen products of at most 15 * 127 stay below 2**15: one int16 sum per half of the block.
    sums: list[list[Expr]] = [[None, None] for _ in rows]
    for column in range(16):
        raw = vec.load(packed, group, block, vec.i32(column * lanes), lanes=lanes)
        raw = T.bind(tirx.Cast(f"uint16x{lanes}", raw))
        nibbles = (
            raw & vec.splat(tirx.const(15, "uint16"), lanes),
            raw >> vec.splat(tirx.const(4, "uint16"), lanes),
        )
        weights = [T.bind(tirx.reinterpret(wide, nibble)) for nibble in nibbles]
        for token, halves in enumerate(values):
            for half in range(2):
                step = weights[half] * tirx.Shuffle([halves[half]], [column] * lanes)
                sums[token][half] = T.bind(step if column == 0 else sums[token][half] + step)
    words = f"int32x{lanes}"
    return [
        T.bind(vec.splat(act[row, block, 9], lanes) + tirx.Cast(words, low) + tirx.Cast(words, high))
        for row, (low, high) in zip(rows, sums, strict=True)
    ]
