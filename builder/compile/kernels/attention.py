"""Attention over blocks of 16 keys with a running softmax (FlashAttention-2, arXiv:2307.08691), for one task.

A task is one sequence, one key/value head, and a number of consecutive *rows*: row g is query head g % group
of the query token g // group, so that the query heads that share keys also share the work of loading them.
Scores live in base 2: the log-sum-exp that TVM's KV cache merges partial results with is m + log2(sum(2**(s
- m))).
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.heads import PAGE, Heads, Scoring
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.vector import Buffer, Expr

NO_SCORE = -5e4
"""Log-sum-exp of a row that has no keys: finite, because the merge subtracts two of them."""

UNBOUNDED = 2**30
"""The window of a layer that has none: more positions than any context."""


@dataclass(frozen=True)
class Rows:
    """Keys or values of a task.

    Attributes:
        buffer: float32, whose last dimension is that of a head.
        place: the other indices of a row, from the number of its block and its number in there.
    """

    buffer: Buffer
    place: Callable[[Expr, Expr], tuple[Expr, ...]]

    def load(self, block: Expr, row: Expr, column: Expr) -> Expr:
        """16 columns of a row that exists."""
        return vec.load(self.buffer, *self.place(block, row), column)

    def prefetch(self, block: Expr, row: Expr, column: Expr) -> None:
        """The cache line of those columns, of any row of a block that exists."""
        vec.prefetch(tirx.address_of(self.buffer[(*self.place(block, row), column)]))


@dataclass(frozen=True)
class Task:
    """One task's operands, as TIR expressions.

    Attributes:
        query, output, lse: float32 [tokens, heads, dim], the same, and [tokens, heads].
        keys, values: what is attended to.
        length: how many keys there are; may be 0.
        kv_head: the key/value head.
        token: the sequence's first query token.
        tokens: how many query tokens the sequence has.
        first: the task's first row.
        causal: int32; if not 0, the last query token sees all keys, the one before it all but one, and so on.
        scale: what scores are multiplied with before the softmax; negative in a layer with a window.
        position: of a query token (0 is the sequence's first), counted from the first key; for windows.
    """

    query: Buffer
    output: Buffer
    lse: Buffer
    keys: Rows
    values: Rows
    length: Expr
    kv_head: Expr
    token: Expr
    tokens: Expr
    first: Expr
    causal: Expr
    scale: Expr
    position: Callable[[Expr], Expr]


@dataclass(frozen=True)
class _State:
    """What a task keeps in the first-level cache: the state of all its rows, and what one block gives.

    Attributes:
        query, acc: float32 [rows, columns]: scaled queries, and values weighted so far.
        sums: float32 [rows, 16], the weights so far, by lane.
        peaks: float32 [rows], the greatest score so far.
        keys: float32 [columns, 16], the block's keys, transposed.
        weights: float32 [rows of a tile, 16], those of the block's values.
        firsts: int32 [rows], the first key that each row may look at.
    """

    columns: int
    query: Buffer
    acc: Buffer
    sums: Buffer
    peaks: Buffer
    keys: Buffer
    weights: Buffer
    firsts: Buffer | None

    @classmethod
    def of(cls, rows: int, tile: int, columns: int, *, windowed: bool) -> "_State":
        return cls(
            columns,
            query=vec.local(lanes=rows * columns),
            acc=vec.local(lanes=rows * columns),
            sums=vec.local(lanes=rows * vec.LANES),
            peaks=vec.local(lanes=rows),
            keys=vec.local(lanes=columns * vec.LANES),
            weights=vec.local(lanes=tile * vec.LANES),
            firsts=vec.local("int32", rows) if windowed else None,
        )


def chunk_rows(heads: Heads) -> int:
    """Rows of a prefill task: their queries and sums stay in the first-level cache with a block of keys."""
    return 64 if heads.dim <= 64 else 32


def attend(task: Task, heads: Heads, isa: Isa, rows: int, scoring: Scoring) -> None:
    """Emit a task of `rows` rows; rows beyond the sequence's last token are computed and dropped."""
    columns, parts, group = heads.dim, heads.dim // vec.LANES, heads.group
    tile = min(rows, isa.float_lanes // 2)
    tiles = -(-rows // tile)
    state = _State.of(tiles * tile, tile, columns, windowed=scoring.window is not None)
    last = vec.fixed(task.tokens * group - 1)

    def visible(row: Expr) -> Expr:
        """How many keys a row sees, counted from the first."""
        earlier = task.length - task.tokens + tirx.floordiv(row, group) + 1
        return tirx.Select(task.causal != 0, tirx.Min(task.length, earlier), task.length)

    def place(row: Expr) -> tuple[Expr, Expr]:
        """Token and query head of a row."""
        head = task.kv_head * group + tirx.floormod(row, group)
        return vec.fixed(task.token + tirx.floordiv(row, group)), vec.fixed(head)

    scale = task.scale
    if scoring.window is not None:
        bounded = task.scale < vec.f32(0.0)
        window = vec.fixed(tirx.Select(bounded, vec.i32(scoring.window), vec.i32(UNBOUNDED)))
        scale = vec.fixed(tirx.Max(scale, -scale), "float32")
    # A capped score is turned to base 2 after its cap.
    factor = vec.f32(vec.LOG2_E if scoring.cap is None else 1.0 / scoring.cap)
    scale = vec.fixed(scale * factor, "float32")

    # Tiles that hold a row that exists.
    steps = vec.fixed(tirx.Min(vec.i32(tiles), tirx.floordiv(last - task.first + tile, tile)))
    with T.serial(0, steps * tile) as index:
        token, head = place(tirx.Min(task.first + index, last))
        for part in range(parts):
            at = index * columns + part * vec.LANES
            query = vec.load(task.query, token, head, vec.i32(part * vec.LANES))
            vec.store(state.query, query * vec.splat(scale), at)
            vec.store(state.acc, vec.zero(), at)
        vec.store(state.sums, vec.zero(), index * vec.LANES)
        T.buffer_store(state.peaks, vec.f32(NO_SCORE), [index])

    start = vec.i32(0)
    if state.firsts is not None:
        start = _firsts(task, state.firsts, steps * tile, group, last, window)
    seen = vec.fixed(visible(tirx.Min(task.first + rows - 1, last)))
    blocks = vec.fixed(tirx.floordiv(seen + (PAGE - 1), PAGE))
    with T.serial(start, blocks) as block:
        count = vec.fixed(tirx.Min(vec.i32(PAGE), task.length - block * PAGE))
        # Pages are scattered: no hardware prefetcher knows where the next block lies.
        following = vec.fixed(tirx.Min(block + 1, blocks - 1))
        with T.serial(0, parts) as part:
            column = part * vec.LANES
            loaded = []
            for row in range(PAGE):
                loaded.append(T.bind(task.keys.load(block, tirx.Min(vec.i32(row), count - 1), column)))
                task.keys.prefetch(following, vec.i32(row), column)
                task.values.prefetch(following, vec.i32(row), column)
            for index, vector in enumerate(_transposed(loaded)):
                vec.store(state.keys, vector, (column + index) * vec.LANES)
        with T.serial(0, steps) as step:
            rows_ = [T.bind(step * tile + index) for index in range(tile)]
            bound = [vec.fixed(visible(task.first + row)) for row in rows_]

            def work(block: Expr = block, count: Expr = count) -> None:
                for index, scores in enumerate(_scores(state, rows_, isa)):
                    if scoring.cap is not None:
                        scores = vec.tanh(scores) * vec.splat(scoring.cap * vec.LOG2_E)
                    _soften(state, scores, rows_[index], index, block, bound[index])
                _accumulate(state, task.values, rows_, block, count, isa)

            vec.when(block * PAGE < bound[-1], work)

    with T.serial(0, rows) as index:
        row = vec.fixed(task.first + index)

        def finish() -> None:
            token, head = place(row)
            sum_ = vec.total(vec.load(state.sums, index * vec.LANES))
            inverse = T.bind(tirx.Select(sum_ > vec.f32(0.0), vec.f32(1.0) / sum_, vec.f32(0.0)))
            for part in range(parts):
                out = vec.load(state.acc, index * columns + part * vec.LANES) * vec.splat(inverse)
                vec.store(task.output, out, token, head, vec.i32(part * vec.LANES))
            score = state.peaks[index] + tirx.log2(sum_)
            T.buffer_store(
                task.lse,
                tirx.Select(sum_ > vec.f32(0.0), score, vec.f32(NO_SCORE)),
                [token, head],
            )

        vec.when(row <= last, finish)


def _firsts(task: Task, firsts: Buffer, rows: Expr, group: int, last: Expr, window: Expr) -> Expr:
    """Fill in the first key that each of a task's rows may look at; return the first block with such a key.

    Positions need not rise from row to row: chats with a common beginning attend to it together.
    """
    lowest = vec.local("int32", 1)
    T.buffer_store(lowest, task.length, [vec.i32(0)])
    with T.serial(0, rows) as index:
        token = vec.fixed(tirx.floordiv(tirx.Min(task.first + index, last), group))
        first = vec.fixed(tirx.Max(task.position(token) - window + 1, vec.i32(0)))
        T.buffer_store(firsts, first, [index])
        T.buffer_store(lowest, tirx.Min(lowest[vec.i32(0)], first), [vec.i32(0)])
    return vec.fixed(tirx.floordiv(lowest[vec.i32(0)], PAGE))


def _transposed(rows: list[Expr]) -> list[Expr]:
    """A 16 x 16 matrix in 16 vectors, transposed by swapping ever smaller halves: 64 two-vector shuffles."""
    rows = list(rows)
    for distance in (8, 4, 2, 1):
        lanes = range(vec.LANES)
        upper = [lane if not lane & distance else vec.LANES + lane - distance for lane in lanes]
        lower = [lane + distance if not lane & distance else vec.LANES + lane for lane in lanes]
        for index in range(vec.LANES):
            if not index & distance:
                pair = [rows[index], rows[index + distance]]
                rows[index] = vec.held(tirx.Shuffle(pair, upper))
                rows[index + distance] = vec.held(tirx.Shuffle(pair, lower))
    return rows


def _scores(state: _State, rows: list[Expr], isa: Isa) -> list[Expr]:
    """Each row's 16 dot products with the block's keys."""
    # Few rows alone would wait for each addition; several partial sums per row keep the machine busy.
    chains = 1
    while chains * len(rows) < isa.float_lanes // 2:
        chains *= 2
    partial = [[vec.local() for _ in range(chains)] for _ in rows]
    for chains_ in partial:
        for sum_ in chains_:
            vec.assign(sum_, vec.zero())
    with T.serial(0, state.columns // chains) as step:
        for chain in range(chains):
            column = step * chains + chain
            keys = T.bind(vec.load(state.keys, column * vec.LANES))
            for index, row in enumerate(rows):
                sum_ = partial[index][chain]
                query = vec.splat(state.query[row * state.columns + column])
                vec.assign(sum_, vec.fma(query, keys, vec.value(sum_)))
    scores = []
    for sums in partial:
        score = vec.value(sums[0])
        for sum_ in sums[1:]:
            score = score + vec.value(sum_)
        scores.append(T.bind(score))
    return scores


def _soften(state: _State, scores: Expr, row: Expr, index: int, block: Expr, bound: Expr) -> None:
    """Turn a row's scores into softmax weights, relative to its running maximum, and update its state.

    `index` is the row's place in its tile, `bound` how many keys it sees.
    """

    first = None
    if state.firsts is not None:
        first = vec.fixed(state.firsts[row])
        count = vec.fixed(tirx.Max(bound - first, vec.i32(0)))

    # Written out twice: TVM's analyser cannot bind a vector of booleans.
    def allowed() -> Expr:
        keys = tirx.Ramp(block * PAGE, 1, PAGE)
        if first is None:
            return keys < vec.splat(bound)
        # Keys before the first become huge as unsigned numbers: one comparison serves both ends.
        after = tirx.Cast(f"uint32x{PAGE}", tirx.Ramp(block * PAGE - first, 1, PAGE))
        return after < vec.splat(tirx.Cast("uint32", count))

    scores = vec.held(tirx.Select(allowed(), scores, vec.splat(-1e30)))
    old = vec.fixed(state.peaks[row], "float32")
    peak = vec.fixed(tirx.Max(old, vec.largest(scores)), "float32")
    lanes = row * vec.LANES

    def rescale() -> None:
        factor = vec.exp2(vec.splat(old - peak))
        T.buffer_store(state.peaks, peak, [row])
        vec.store(state.sums, vec.load(state.sums, lanes) * factor, lanes)
        for part in range(state.columns // vec.LANES):
            at = row * state.columns + part * vec.LANES
            vec.store(state.acc, vec.load(state.acc, at) * factor, at)

    # The maximum seldom moves after the first blocks.
    vec.when(peak > old, rescale)
    # exp2 is clamped, so what is not allowed must be made zero.
    weight = T.bind(tirx.Select(allowed(), vec.exp2(scores - vec.splat(peak)), vec.zero()))
    vec.store(state.weights, weight, vec.i32(index * vec.LANES))
    vec.store(state.sums, vec.load(state.sums, lanes) + weight, lanes)


def _accumulate(state: _State, source: Rows, rows: list[Expr], block: Expr, count: Expr, isa: Isa) -> None:
    """Add the block's values, weighted, to the rows' sums: as many columns at a time as registers allow."""
    parts = state.columns // vec.LANES
    width = min(parts, max(1, isa.float_lanes // len(rows)))
    for first in range(0, parts, width):
        taken = range(first, min(parts, first + width))
        places = {
            (index, part): row * state.columns + part * vec.LANES
            for index, row in enumerate(rows)
            for part in taken
        }
        sums = {place: vec.local() for place in places}
        for place, at in places.items():
            vec.assign(sums[place], vec.load(state.acc, at))
        with T.serial(0, count) as key:
            values = {part: T.bind(source.load(block, key, vec.i32(part * vec.LANES))) for part in taken}
            for index in range(len(rows)):
                weight = T.bind(vec.splat(state.weights[index * vec.LANES + key]))
                for part in taken:
                    sum_ = sums[index, part]
                    vec.assign(sum_, vec.fma(weight, values[part], vec.value(sum_)))
        for place, at in places.items():
            vec.store(state.acc, vec.value(sums[place]), at)
