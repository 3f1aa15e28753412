"""Linear layers with int4 weights and int8 activations: the fast path of quantised models.

y[m, n] = W[n, k] @ x[m, k], with W as `packing` lays it out and x as blocks from `activation`. Products are
summed exactly in integers within a block of 32 columns and in float32 across blocks. The error against
float32 activations is that of their rounding to int8.
"""

from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import vector as vec
from .activation import ROW_TILE, WORDS
from .isa import Isa
from .packing import groups_of, packed_shape, scales_shape
from .vector import Buffer, Expr, PrimFunc

PREFETCH = 4096
"""Bytes a GEMV fetches ahead. One core's hardware prefetchers do not fill the memory's bandwidth alone."""

CHUNK_BYTES = 160 * 1024
"""Weights that a GEMM task holds in the second-level cache while the tokens pass by."""


def linear(
    n: int, k: int, isa: Isa, *, scale: str = "float16", rows: int | None = None, residual: bool = False
) -> PrimFunc:
    """f(packed uint8, scales, blocks int32 [p, k/32, 10], [residual float32 [m, n],] y float32 [m, n]).

    Shapes of packed and scales: `packing.packed_shape` and `scales_shape`; `scale` is the dtype of the
    latter. p is 1 for rows=1 and at least `activation.padded_rows(m)` otherwise. The residual is added to
    the product.
    """
    if rows not in (None, 1):
        raise ValueError(f"rows must be 1 or None, not {rows}")
    lanes, blocks, groups = isa.lanes, vec.blocks_of(k), groups_of(n, isa)

    def body() -> None:
        packed = vec.tensor("packed", packed_shape(n, k, isa), "uint8")
        scales = vec.tensor("scales", scales_shape(n, k, isa), scale)
        act = vec.tensor("blocks", (rows or T.int32(), blocks, WORDS), "int32")
        m = rows or T.int32()
        added = vec.tensor("residual", (m, n), "float32") if residual else None
        y = vec.tensor("y", (m, n), "float32")

        def tile(group: Expr, first: Expr, tokens: int) -> None:
            sums = [vec.local(lanes=lanes) for _ in range(tokens)]
            for sum_ in sums:
                vec.assign(sum_, vec.zero(lanes), lanes)
            with T.serial(0, blocks) as block:
                if rows == 1:
                    _prefetch(packed, group, block, isa)
                factor = T.bind(half_to_float_if(vec.load(scales, group, block, vec.i32(0), lanes=lanes)))
                for token, dot in enumerate(_dots(packed, group, block, act, first, tokens, isa)):
                    scaled = factor * vec.splat(
                        tirx.reinterpret("float32", act[first + token, block, 8]), lanes
                    )
                    sum_ = sums[token]
                    vec.assign(
                        sum_,
                        vec.fma(tirx.Cast(f"float32x{lanes}", dot), scaled, vec.value(sum_, lanes), lanes),
                        lanes,
                    )
            for token, sum_ in enumerate(sums):
                row = first + token
                vec.when(None if rows == 1 else row < m, partial(write, sum_, group, row))

        def half_to_float_if(factor: Expr) -> Expr:
            return vec.half_to_float(factor, isa.half, lanes) if scale == "float16" else factor

        def write(sum_: Buffer, group: Expr, row: Expr) -> None:
            column = group * lanes

            def whole() -> None:
                out = vec.value(sum_, lanes)
                vec.store(
                    y,
                    out if added is None else out + vec.load(added, row, column, lanes=lanes),
                    row,
                    column,
                    lanes=lanes,
                )

            def edge() -> None:
                with T.serial(0, n % lanes) as index:
                    out = sum_[index]
                    T.buffer_store(
                        y, out if added is None else out + added[row, column + index], [row, column + index]
                    )

            vec.when(column + lanes <= n if n % lanes else None, whole, edge)

        with vec.root():
            if rows == 1:
                with T.parallel(0, groups) as group:
                    tile(group, vec.i32(0), 1)
                return
            chunk = max(1, min(8, CHUNK_BYTES // (blocks * 18 * lanes)))
            with T.parallel(0, -(-groups // chunk)) as task:  # noqa: SIM117 - one loop per line
                with T.serial(0, tirx.floordiv(m + (isa.tokens - 1), isa.tokens)) as step:
                    with T.serial(0, tirx.Min(vec.i32(chunk), groups - task * chunk)) as index:
                        tile(task * chunk + index, step * isa.tokens, isa.tokens)

    assert ROW_TILE % isa.tokens == 0
    name = f"w4a8_{isa.name}_{scale}_n{n}_k{k}" + ("_m1" if rows == 1 else "") + ("_add" if residual else "")
    return vec.build(name, body)


def _prefetch(packed: Buffer, group: Expr, block: Expr, isa: Isa) -> None:
    for line in range(0, 16 * isa.lanes, 64):
        address = tirx.address_of(packed[group, block, line + PREFETCH])
        # Read access, keep in all cache levels, data.
        T.evaluate(
            tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, vec.i32(0), vec.i32(3), vec.i32(1))
        )


def _dots(
    packed: Buffer,
    group: Expr,
    block: Expr,
    act: Buffer,
    first: Expr,
    tokens: int,
    isa: Isa,
) -> list[Expr]:
    """For each token an int32 vector: sum over the block's 32 columns of (nibble - 7) * int8, row by row."""
    offsets = [vec.splat(act[first + token, block, 9], isa.lanes) for token in range(tokens)]
    if isa.dot == "plain":
        return _plain_dots(packed, group, block, act, first, offsets, isa)
    weights = _nibbles(packed, group, block, isa)
    return [
        _quad_dot(weights, act, first + token, block, offset, isa) for token, offset in enumerate(offsets)
    ]


def _nibbles(packed: Buffer, group: Expr, block: Expr, isa: Isa) -> list[Expr]:
    """The block's weights as eight int8 vectors, four columns of every row in each."""
    lanes = isa.lanes
    words, bytes_ = f"int32x{lanes}", f"int8x{4 * lanes}"
    mask = vec.splat(vec.i32(0x0F0F0F0F), lanes)
    low, high = [], []
    for quad in range(4):
        raw = vec.load(packed, group, block, vec.i32(quad * 4 * lanes), lanes=4 * lanes)
        # Shifting words is one instruction where shifting bytes is not; the mask drops what crossed over.
        raw = T.bind(tirx.reinterpret(words, raw))
        low.append(T.bind(tirx.reinterpret(bytes_, raw & mask)))
        high.append(T.bind(tirx.reinterpret(bytes_, (raw >> vec.splat(vec.i32(4), lanes)) & mask)))
    return low + high


def _quad_dot(weights: list[Expr], act: Buffer, row: Expr, block: Expr, offset: Expr, isa: Isa) -> Expr:
    lanes = isa.lanes
    words, bytes_ = f"int32x{lanes}", f"int8x{4 * lanes}"
    if isa.dot == "sdot":
        halves = [T.bind(vec.load(act, row, block, vec.i32(4 * half), lanes=4)) for half in range(2)]
        quads = [tirx.Shuffle([halves[quad // 4]], [quad % 4] * lanes) for quad in range(8)]
    else:
        quads = [vec.splat(act[row, block, quad], lanes) for quad in range(8)]
    quads = [tirx.reinterpret(bytes_, quad) for quad in quads]
    if isa.dot == "vpmaddubsw":
        # Eight steps of at most 2 * 15 * 127 stay below 2**15: int16 lanes need widening only once per block.
        pairs = f"int16x{2 * lanes}"
        sum_ = None
        for weight, quad in zip(weights, quads, strict=True):
            step = vec.intrinsic(pairs, "llvm.x86.avx2.pmadd.ub.sw", weight, quad)
            sum_ = T.bind(step if sum_ is None else sum_ + step)
        ones = vec.splat(tirx.const(1, "int16"), 2 * lanes)
        return T.bind(offset + vec.intrinsic(words, "llvm.x86.avx2.pmadd.wd", sum_, ones))
    name = {
        "vpdpbusd": "llvm.x86.avx512.vpdpbusd.512",
        "sdot": "llvm.aarch64.neon.sdot.v4i32.v16i8",
    }[isa.dot]
    sum_ = T.bind(offset)
    for weight, quad in zip(weights, quads, strict=True):
        sum_ = T.bind(vec.intrinsic(words, name, sum_, weight, quad))
    return sum_


def _plain_dots(
    packed: Buffer,
    group: Expr,
    block: Expr,
    act: Buffer,
    first: Expr,
    offsets: list[Expr],
    isa: Isa,
) -> list[Expr]:
    lanes = isa.lanes
    wide = f"int16x{lanes}"
    values = []
    for token in range(len(offsets)):
        halves = [vec.load(act, first + token, block, vec.i32(4 * half), lanes=4) for half in range(2)]
        values.append([T.bind(tirx.Cast("int16x16", tirx.reinterpret("int8x16", half))) for half in halves])
    # Sixteen products of at most 15 * 127 stay below 2**15: one int16 sum per half of the block.
    sums: list[list[Expr]] = [[None, None] for _ in offsets]
    for column in range(16):
        raw = T.bind(
            tirx.Cast(f"uint16x{lanes}", vec.load(packed, group, block, vec.i32(column * lanes), lanes=lanes))
        )
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
        T.bind(offset + tirx.Cast(words, low) + tirx.Cast(words, high))
        for offset, (low, high) in zip(offsets, sums, strict=True)
    ]
