"""Kernels that MLC's libraries export by plain name: change logits in place and copy rows.

Signatures follow MLC-LLM's; its server calls them between forward passes. Indices are not checked. How the
numbers are gone through is left to an `Each`: one after the other here, one a thread on a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec

Kernel = Any  # tvm.tirx.PrimFunc
Value = Any  # tvm.tirx.PrimExpr
Each = Callable[[Sequence[Value], Callable[..., None]], None]
"""Runs a body for every index below the counts given, one index a count; nothing depends on the order."""


def serial(counts: Sequence[Value], body: Callable[..., None]) -> None:
    """Nested loops on one thread."""

    def loop(indices: tuple[Value, ...]) -> None:
        if len(indices) == len(counts):
            body(*indices)
            return
        with T.serial(0, counts[len(indices)]) as index:
            loop((*indices, index))

    with vec.root():
        loop(())


def kernels(vocab: int, each: Each = serial) -> dict[str, Kernel]:
    """All of them, by name, for a vocabulary of `vocab` tokens."""
    return {
        "apply_logit_bias_inplace": apply_logit_bias(vocab, each),
        "apply_penalty_inplace": apply_penalty(vocab, each),
        "apply_bitmask_inplace": apply_bitmask(vocab, each),
        **{name: copy_rows(name, each, gather=True) for name in ("gather_hidden_states", "gather_probs")},
        **{name: copy_rows(name, each, gather=False) for name in ("scatter_hidden_states", "scatter_probs")},
    }


def apply_logit_bias(vocab: int, each: Each) -> Kernel:
    """f(logits [b, vocab], row int32 [n], token int32 [n], bias float32 [n]): adds each bias."""

    def body() -> None:
        logits = vec.tensor("logits", (T.int32(), vocab), "float32")
        count = T.int32()
        row, token = _indices("row", count), _indices("token", count)
        bias = vec.tensor("bias", (count,), "float32")

        def add(i: Value) -> None:
            T.buffer_store(logits, logits[row[i], token[i]] + bias[i], [row[i], token[i]])

        each((count,), add)

    return vec.build("apply_logit_bias_inplace", body)


def apply_penalty(vocab: int, each: Each) -> Kernel:
    """f(logits [b, vocab], rows int32 [s], sequence int32 [n], token int32 [n], count int32 [n],
    penalties float32 [s, 3]).

    A token that occurred `count` times in `sequence` loses presence + count·frequency; what remains is
    divided by the repetition penalty, or multiplied where it is negative. The columns of `penalties` are
    presence, frequency, repetition.
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

        each((count,), lower)

    return vec.build("apply_penalty_inplace", body)


def apply_bitmask(vocab: int, each: Each) -> Kernel:
    """f(logits [b, vocab], rows int32 [s], bitmask int32 [b, ceil(vocab/32)]).

    In each of the rows, tokens whose bit is 0 get float32's lowest value.
    """

    def body() -> None:
        batch, count = T.int32(), T.int32()
        logits = vec.tensor("logits", (batch, vocab), "float32")
        rows = _indices("rows", count)
        bitmask = vec.tensor("bitmask", (batch, -(-vocab // 32)), "int32")

        def mask(i: Value, token: Value) -> None:
            row = rows[i]
            word = bitmask[row, tirx.floordiv(token, 32)]
            allowed = (word >> tirx.floormod(token, 32)) & 1
            lowest = tirx.min_value("float32")
            T.buffer_store(logits, tirx.Select(allowed == 1, logits[row, token], lowest), [row, token])

        each((count, vocab), mask)

    return vec.build("apply_bitmask_inplace", body)


def copy_rows(name: str, each: Each, *, gather: bool) -> Kernel:
    """f(source [n, width], index int32 [i], target [m, width]), float32.

    Gathering, row k of the target becomes row index[k] of the source; scattering, row index[k] of the target
    becomes row k of the source.
    """

    def body() -> None:
        width, count, other = T.int32(), T.int32(), T.int32()
        source = vec.tensor("source", (other if gather else count, width), "float32")
        index = _indices("index", count)
        target = vec.tensor("target", (count if gather else other, width), "float32")

        def copy(k: Value, column: Value) -> None:
            there, here = (k, index[k]) if gather else (index[k], k)
            T.buffer_store(target, source[here, column], [there, column])

        each((count, width), copy)

    return vec.build(name, body)


def _indices(name: str, count: Any) -> Any:
    return vec.tensor(name, (count,), "int32")
