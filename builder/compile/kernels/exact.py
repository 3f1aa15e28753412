"""Linear layers with float32 activations and sums: the reference path, and that of unquantised models.

Weights are read where they lie, in the file's own layout; nothing is packed.
"""

from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.vector import Buffer, Expr, PrimFunc
from builder.compile.kernels.weights import declare

CHUNK_BYTES = 128 * 1024
"""Weights that a task keeps in the second-level cache while the tokens pass by."""


def linear(
    n: int,
    k: int,
    isa: Isa,
    *,
    weight: str,
    rows: int | None = None,
    bias: bool = False,
    residual: bool = False,
) -> PrimFunc:
    """f(*weight, x float32 [m, k], [bias float32 [n],] [residual float32 [m, n],] y float32 [m, n]).

    y = W @ x (+ bias) (+ residual). `weight` and its one or two arguments: see `weights.declare`.
    """
    if rows not in (None, 1):
        raise ValueError(f"rows must be 1 or None, not {rows}")
    blocks = vec.blocks_of(k)
    # Outputs and tokens of a register tile. More tokens make dequantisation pay; narrow registers hold fewer
    # sums.
    outputs, tokens = {16: (2, 8), 8: (1, 4), 4: (1, 2)}[isa.float_lanes] if rows is None else (1, 1)

    def body() -> None:
        read = declare(weight, n, k, isa)
        m = rows or T.int32()
        x = vec.tensor("x", (m, k), "float32")
        constant = vec.tensor("bias", (n,), "float32") if bias else None
        added = vec.tensor("residual", (m, n), "float32") if residual else None
        y = vec.tensor("y", (m, n), "float32")

        def tile(first_output: Expr, first_token: Expr) -> None:
            sums = [[[vec.local() for _ in range(2)] for _ in range(tokens)] for _ in range(outputs)]
            if rows is None:
                # One sum per pair is enough where there are many pairs.
                sums = [[[pair[0]] * 2 for pair in row] for row in sums]
            for sum_ in _distinct(sums):
                vec.assign(sum_, vec.zero())
            weight_rows = [
                vec.fixed(tirx.Min(first_output + index, vec.i32(n - 1))) for index in range(outputs)
            ]
            token_rows = [vec.fixed(tirx.Min(first_token + index, m - 1)) for index in range(tokens)]
            with T.serial(0, blocks) as block:
                parts = [read(row, block) for row in weight_rows]
                for half in range(2):
                    for token, row in enumerate(token_rows):
                        value = T.bind(vec.load(x, row, block * vec.BLOCK + half * vec.LANES))
                        for output in range(outputs):
                            sum_ = sums[output][token][half]
                            vec.assign(
                                sum_,
                                vec.fma(parts[output][half], value, vec.value(sum_)),
                            )
            for output in range(outputs):
                for token in range(tokens):
                    pair = sums[output][token]
                    sum_ = vec.value(pair[0])
                    if pair[1] is not pair[0]:
                        sum_ = sum_ + vec.value(pair[1])
                    column, row = first_output + output, first_token + token
                    inside = _both(
                        column < n if n % outputs else None,
                        row < m if tokens > 1 else None,
                    )
                    vec.when(inside, partial(write, sum_, row, column))

        def write(sum_: Expr, row: Expr, column: Expr) -> None:
            out = vec.total(sum_)
            if constant is not None:
                out = out + constant[column]
            T.buffer_store(y, out if added is None else out + added[row, column], [row, column])

        tiles = -(-n // outputs)
        with vec.root():
            if rows == 1:
                with T.parallel(0, tiles) as output:
                    tile(output, vec.i32(0))
                return
            chunk = max(1, min(16, CHUNK_BYTES // (k * 4 * outputs)))
            with T.parallel(0, -(-tiles // chunk)) as task:  # noqa: SIM117 - one loop per line
                with T.serial(0, tirx.floordiv(m + (tokens - 1), tokens)) as step:
                    with T.serial(0, tirx.Min(vec.i32(chunk), tiles - task * chunk)) as index:
                        tile((task * chunk + index) * outputs, step * tokens)

    name = f"exact_{isa.name}_{weight}_n{n}_k{k}" + vec.endings(m1=rows == 1, bias=bias, add=residual)
    return vec.build(name, body)


def _distinct(sums: list[list[list[Buffer]]]) -> list[Buffer]:
    return list({id(sum_): sum_ for row in sums for pair in row for sum_ in pair}.values())


def _both(one: Expr | None, other: Expr | None) -> Expr | None:
    if one is None or other is None:
        return other if one is None else one
    return tirx.And(one, other)
