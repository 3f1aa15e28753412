"""Kernels that MLC's libraries export by plain name: change logits in place and copy rows, on one thread.

Signatures follow MLC-LLM's; its server calls them between forward passes. Indices are not checked.
"""

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec

Kernel = Any  # tvm.tirx.PrimFunc


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
        with vec.root(), T.serial(0, count) as i:
            T.buffer_store(logits, logits[row[i], token[i]] + bias[i], [row[i], token[i]])

    return vec.build("apply_logit_bias_inplace", body)


def apply_penalty(vocab: int) -> Kernel:
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
        with vec.root(), T.serial(0, count) as i:
            of = T.bind(sequence[i])
            index = [rows[of], token[i]]
            lowered = penalties[of, 0] + tirx.Cast("float32", times[i]) * penalties[of, 1]
            logit = T.bind(logits[tuple(index)] - lowered)
            repetition = penalties[of, 2]
            T.buffer_store(logits, tirx.Select(logit < 0.0, logit * repetition, logit / repetition), index)

    return vec.build("apply_penalty_inplace", body)


def apply_bitmask(vocab: int) -> Kernel:
    """f(logits [b, vocab], rows int32 [s], bitmask int32 [b, ceil(vocab/32)]).

    In each of the rows, tokens whose bit is 0 get float32's lowest value.
    """

    def body() -> None:
        batch, count = T.int32(), T.int32()
        logits = vec.tensor("logits", (batch, vocab), "float32")
        rows = _indices("rows", count)
        bitmask = vec.tensor("bitmask", (batch, -(-vocab // 32)), "int32")
        with vec.root(), T.serial(0, count) as i, T.serial(0, vocab) as token:
            row = rows[i]
            word = bitmask[row, tirx.floordiv(token, 32)]
            allowed = (word >> tirx.floormod(token, 32)) & 1
            lowest = tirx.min_value("float32")
            T.buffer_store(logits, tirx.Select(allowed == 1, logits[row, token], lowest), [row, token])

    return vec.build("apply_bitmask_inplace", body)


def copy_rows(name: str, *, gather: bool) -> Kernel:
    """f(source [n, width], index int32 [i], target [m, width]), float32.

    Gathering, row k of the target becomes row index[k] of the source; scattering, row index[k] of the target
    becomes row k of the source.
    """

    def body() -> None:
        width, count, other = T.int32(), T.int32(), T.int32()
        source = vec.tensor("source", (other if gather else count, width), "float32")
        index = _indices("index", count)
        target = vec.tensor("target", (count if gather else other, width), "float32")
        with vec.root(), T.serial(0, count) as k, T.serial(0, width) as column:
            there, here = (k, index[k]) if gather else (index[k], k)
            T.buffer_store(target, source[here, column], [there, column])

    return vec.build(name, body)


def _indices(name: str, count: Any) -> Any:
    return vec.tensor(name, (count,), "int32")
