"""Kernels that MLC's libraries export by plain name, for a GPU: one thread a number.

Signatures and meaning are those of `builder.compile.kernels.logits`. Indices are not checked.
"""

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.operators import Kernel

Value = Any  # tvm.tirx.PrimExpr; TVM has no type information
THREADS = 256


def kernels(vocab: int) -> dict[str, Kernel]:
    """All of them, by name, for a vocabulary of `vocab` tokens."""
    return {
        "apply_logit_bias_inplace": apply_logit_bias(vocab),
        "apply_penalty_inplace": apply_penalty(vocab),
        "apply_bitmask_inplace": apply_bitmask(vocab),
        **{name: copy_rows(name, gather=True) for name in ("gather_hidden_states", "gather_probs")},
        **{name: copy_rows(name, gather=False) for name in ("scatter_hidden_states", "scatter_probs")},
    }


def apply_logit_bias(vocab: int) -> Kernel:
    """f(logits [b, vocab], row int32 [n], token int32 [n], bias float32 [n]): adds each bias."""

    def body() -> None:
        logits = vec.tensor("logits", (T.int32(), vocab), "float32")
        count = T.int32()
        row, token = _indices("row", count), _indices("token", count)
        bias = vec.tensor("bias", (count,), "float32")

        def add(i: Value) -> None:
            T.buffer_store(logits, logits[row[i], token[i]] + bias[i], [row[i], token[i]])

        each(count, add)

    return vec.build("apply_logit_bias_inplace", body)


def apply_penalty(vocab: int) -> Kernel:
    """f(logits [b, vocab], rows int32 [s], sequence int32 [n], token int32 [n], count int32 [n],
    penalties float32 [s, 3]).
    """

    def body() -> None:
        logits = vec.tensor("logits", (T.int32(), vocab), "float32")
        sequences, count = T.int32(), T.int32()
        rows = _indices("rows", sequences)
        sequence, token, times = (_indices(name, count) for name in ("sequence", "token", "count"))
        penalties = vec.tensor("penalties", (sequences, 3), "float32")

        def lower(i: Value) -> None:
            of = sequence[i]
            index = [rows[of], token[i]]
            lowered = penalties[of, 0] + tirx.Cast("float32", times[i]) * penalties[of, 1]
            logit = T.bind(logits[tuple(index)] - lowered)
            repetition = penalties[of, 2]
            T.buffer_store(logits, tirx.Select(logit < 0.0, logit * repetition, logit / repetition), index)

        each(count, lower)

    return vec.build("apply_penalty_inplace", body)


def apply_bitmask(vocab: int) -> Kernel:
    """f(logits [b, vocab], rows int32 [s], bitmask int32 [b, ceil(vocab/32)])."""

    def body() -> None:
        batch, count = T.int32(), T.int32()
        logits = vec.tensor("logits", (batch, vocab), "float32")
        rows = _indices("rows", count)
        bitmask = vec.tensor("bitmask", (batch, -(-vocab // 32)), "int32")

        def mask(i: Value) -> None:
            row, token = rows[tirx.floordiv(i, vocab)], tirx.floormod(i, vocab)
            allowed = (bitmask[row, tirx.floordiv(token, 32)] >> tirx.floormod(token, 32)) & 1
            kept = tirx.Select(allowed == 1, logits[row, token], tirx.min_value("float32"))
            T.buffer_store(logits, kept, [row, token])

        each(count * vocab, mask)

    return vec.build("apply_bitmask_inplace", body)


def copy_rows(name: str, *, gather: bool) -> Kernel:
    """f(source [n, width], index int32 [i], target [m, width]), float32."""

    def body() -> None:
        width, count, other = T.int32(), T.int32(), T.int32()
        source = vec.tensor("source", (other if gather else count, width), "float32")
        index = _indices("index", count)
        target = vec.tensor("target", (count if gather else other, width), "float32")

        def copy(i: Value) -> None:
            k, column = tirx.floordiv(i, width), tirx.floormod(i, width)
            there, here = (k, index[k]) if gather else (index[k], k)
            T.buffer_store(target, source[here, column], [there, column])

        each(count * width, copy)

    return vec.build(name, body)


def each(count: Value, body: Callable[[Value], None]) -> None:
    """Run `body` for 0 <= i < `count`, each in a thread of its own."""
    with (
        vec.root(),
        T.thread_binding(0, tirx.floordiv(count + (THREADS - 1), THREADS), thread="blockIdx.x") as block,
        T.thread_binding(0, THREADS, thread="threadIdx.x") as thread,
    ):
        index = block * THREADS + thread
        vec.when(index < count, lambda: body(index))


def _indices(name: str, count: Any) -> Any:
    return vec.tensor(name, (count,), "int32")
