"""The attention kernels that TVM's paged KV cache calls on a CPU: decode, prefill, and prefill onto history.

Argument lists are those of `tvm.relax.frontend.nn.llm.kv_cache` for the `llvm` target. Rotation inside the
kernels is not offered: the cache must be made with RoPE mode "normal" (keys are rotated before they are
stored) or "none", and without its own sliding windows. Windows are these kernels' business (`Scoring`): the
pages of a layer hold all positions, and a bounded layer reads the last ones only. Pages hold 16 positions;
queries, keys and values are float32.
"""

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.attention import Rows, Task, attend, chunk_rows
from builder.compile.kernels.heads import PAGE, Heads, Scoring
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.vector import Buffer, Expr, PrimFunc

PLAIN = Scoring()


def decode(heads: Heads, isa: Isa, scoring: Scoring = PLAIN) -> PrimFunc:
    """One query token per sequence over its pages.

    f(q [b, heads, dim], pages [p, 2, kv_heads, 16, dim], page_indptr [b+1], page_values [nnz], last_page_len
    [b], k_rope_pos_offset [b], q_rope_position [b], output [b, heads, dim], lse [b, heads], rotary_mode,
    rope_scale, rope_theta, sm_scale). A sequence without pages yields zeros.
    """

    def body() -> None:
        batch = T.int32()
        query = vec.tensor("q", (batch, heads.query, heads.dim), "float32")
        pages = _Pages(heads, batch)
        start = _index("k_rope_pos_offset", batch)
        place = _index("q_rope_position", batch)
        output = vec.tensor("output", (batch, heads.query, heads.dim), "float32")
        lse = vec.tensor("lse", (batch, heads.query), "float32")
        scale = _rotary_and_scale()
        with vec.root(), T.parallel(0, batch * heads.kv) as index:
            sequence = vec.fixed(tirx.floordiv(index, heads.kv))
            kv_head = vec.fixed(tirx.floormod(index, heads.kv))
            keys, values = pages.rows(sequence, kv_head)
            task = Task(
                query=query,
                output=output,
                lse=lse,
                keys=keys,
                values=values,
                length=pages.length(sequence),
                kv_head=kv_head,
                token=sequence,
                tokens=vec.i32(1),
                first=vec.i32(0),
                causal=vec.i32(0),
                scale=scale,
                position=lambda _token: place[sequence] - start[sequence],
            )
            attend(task, heads, isa, heads.group, scoring)

    return vec.build(f"paged_decode_{isa.name}_{heads.name}{scoring.name}", body)


def paged_prefill(heads: Heads, isa: Isa, scoring: Scoring = PLAIN) -> PrimFunc:
    """Several query tokens per sequence over its pages: what a later chunk or turn sees of the history.

    f(q [t, heads, dim], q_indptr [b+1], pages [p, 2, kv_heads, 16, dim], page_indptr [b+1], page_values
    [nnz], last_page_len [b], k_rope_pos_offset [b], q_rope_position [t], output [t, heads, dim], lse [t,
    heads], causal, rotary_mode, rope_scale, rope_theta, sm_scale). Rows without keys yield zeros and a
    log-sum-exp of -5e4.
    """

    def body() -> None:
        total, batch = T.int32(), T.int32()
        query = vec.tensor("q", (total, heads.query, heads.dim), "float32")
        q_indptr = _index("q_indptr", batch + 1)
        pages = _Pages(heads, batch)
        start = _index("k_rope_pos_offset", batch)
        place = _index("q_rope_position", total)
        output = vec.tensor("output", (total, heads.query, heads.dim), "float32")
        lse = vec.tensor("lse", (total, heads.query), "float32")
        causal = T.arg("causal", T.int32())
        scale = _rotary_and_scale()

        def task(sequence: Expr, kv_head: Expr, token: Expr, tokens: Expr, first: Expr) -> Task:
            keys, values = pages.rows(sequence, kv_head)
            return Task(
                query=query,
                output=output,
                lse=lse,
                keys=keys,
                values=values,
                length=pages.length(sequence),
                kv_head=kv_head,
                token=token,
                tokens=tokens,
                first=first,
                causal=causal,
                scale=scale,
                position=lambda index: place[token + index] - start[sequence],
            )

        with vec.root():
            _each_task(batch, q_indptr, heads, isa, scoring, task)

    return vec.build(f"paged_prefill_{isa.name}_{heads.name}{scoring.name}", body)


def ragged_prefill(heads: Heads, isa: Isa, scoring: Scoring = PLAIN) -> PrimFunc:
    """Several query tokens per sequence over keys and values that are not in pages yet: the chunk's own.

    f(q [t, heads, dim], q_indptr [b+1], k [s, kv_heads, dim], v [s, kv_heads, dim], kv_indptr [b+1],
    q_rope_position [t], k_rope_pos_offset [b], output [t, heads, dim], lse [t, heads], causal, rotary_mode,
    rope_scale, rope_theta, sm_scale).
    """

    def body() -> None:
        total, batch, length = T.int32(), T.int32(), T.int32()
        query = vec.tensor("q", (total, heads.query, heads.dim), "float32")
        q_indptr = _index("q_indptr", batch + 1)
        k = vec.tensor("k", (length, heads.kv, heads.dim), "float32")
        v = vec.tensor("v", (length, heads.kv, heads.dim), "float32")
        kv_indptr = _index("kv_indptr", batch + 1)
        _index("q_rope_position", total)
        _index("k_rope_pos_offset", batch)
        output = vec.tensor("output", (total, heads.query, heads.dim), "float32")
        lse = vec.tensor("lse", (total, heads.query), "float32")
        causal = T.arg("causal", T.int32())
        scale = _rotary_and_scale()

        def task(sequence: Expr, kv_head: Expr, token: Expr, tokens: Expr, first: Expr) -> Task:
            start = vec.fixed(kv_indptr[sequence])

            def part(source: Buffer) -> Rows:
                return Rows(source, lambda block, row: (start + block * PAGE + row, kv_head))

            return Task(
                query=query,
                output=output,
                lse=lse,
                keys=part(k),
                values=part(v),
                length=vec.fixed(kv_indptr[sequence + 1] - start),
                kv_head=kv_head,
                token=token,
                tokens=tokens,
                first=first,
                causal=causal,
                scale=scale,
                position=lambda index: index,  # queries and keys are the same tokens
            )

        with vec.root():
            _each_task(batch, q_indptr, heads, isa, scoring, task)

    return vec.build(f"ragged_prefill_{isa.name}_{heads.name}{scoring.name}", body)


class _Pages:
    """The four arguments that describe the pages of every sequence."""

    def __init__(self, heads: Heads, batch: Expr) -> None:
        shape = (T.int32(), 2, heads.kv, PAGE, heads.dim)
        self._pages = vec.tensor("pages", shape, "float32")
        self._indptr = _index("page_indptr", batch + 1)
        self._values = _index("page_values", T.int32())
        self._last = _index("last_page_len", batch)

    def length(self, sequence: Expr) -> Expr:
        """Keys of a sequence."""
        count = vec.fixed(self._indptr[sequence + 1] - self._indptr[sequence])
        return vec.fixed(tirx.Select(count > 0, (count - 1) * PAGE + self._last[sequence], vec.i32(0)))

    def rows(self, sequence: Expr, kv_head: Expr) -> list[Rows]:
        """Keys and values of a sequence's head."""
        start = vec.fixed(self._indptr[sequence])

        def part(which: int) -> Rows:
            return Rows(
                self._pages,
                lambda block, row: (
                    self._values[start + block],
                    vec.i32(which),
                    kv_head,
                    row,
                ),
            )

        return [part(0), part(1)]


def _index(name: str, length: Expr) -> Buffer:
    """An int32 argument; the cache passes views into one buffer, hence the offset."""
    return vec.tensor(name, (length,), "int32", elem_offset=T.int32())


def _rotary_and_scale() -> Expr:
    T.arg("rotary_mode", T.int32())
    T.arg("rope_scale", T.float32())
    T.arg("rope_theta", T.float32())
    return T.arg("sm_scale", T.float32())


def _each_task(
    batch: Expr,
    q_indptr: Buffer,
    heads: Heads,
    isa: Isa,
    scoring: Scoring,
    task: Callable[[Expr, Expr, Expr, Expr, Expr], Task],
) -> None:
    """All tasks of a prefill: sequences one after another, heads and chunks of rows in parallel."""
    rows = chunk_rows(heads)
    with T.serial(0, batch) as sequence:
        token = vec.fixed(q_indptr[sequence])
        tokens = vec.fixed(q_indptr[sequence + 1] - token)
        chunks = vec.fixed(tirx.floordiv(tokens * heads.group + (rows - 1), rows))
        with T.parallel(0, chunks * heads.kv) as index:
            kv_head = vec.fixed(tirx.floordiv(index, chunks))
            first = vec.fixed(tirx.floormod(index, chunks) * rows)
            attend(task(sequence, kv_head, token, tokens, first), heads, isa, rows, scoring)
