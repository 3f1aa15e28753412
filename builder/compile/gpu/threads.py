"""How a GPU goes through numbers that do not depend on each other: a thread for each."""

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec

Value = Any  # tvm.tirx.PrimExpr; TVM has no type information
THREADS = 256


def threads(counts: Sequence[Value], body: Callable[..., None]) -> None:
    """Run `body` for all indices below `counts`, each in a thread of its own; see `kernels.logits.Each`."""
    total = counts[0]
    for count in counts[1:]:
        total = total * count
    with (
        vec.root(),
        T.thread_binding(0, tirx.floordiv(total + (THREADS - 1), THREADS), thread="blockIdx.x") as block,
        T.thread_binding(0, THREADS, thread="threadIdx.x") as thread,
    ):
        number = block * THREADS + thread

        def run() -> None:
            rest, indices = number, []
            for count in reversed(counts[1:]):
                indices.append(tirx.floormod(rest, count))
                rest = tirx.floordiv(rest, count)
            body(rest, *reversed(indices))

        vec.when(number < total, run)
