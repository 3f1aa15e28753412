"""Operators on a GPU: weights are read as they lie on disk, activations have the model's dtype."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import relax

from builder.compile.families.decoder import Attention
from builder.compile.families.parameters import Parameter
from builder.compile.gpu import expressions, kv_cache
from builder.compile.gpu.threads import threads
from builder.compile.kernels import logits
from builder.compile.operators import Expr, Gate, Input, Kernel, Operators, Weights
from builder.compile.packing import Step
from builder.compile.quantise import Quantisation, Tensor
from builder.errors import UnsupportedError


class GpuBackend:
    """TVM's schedules for everything, for TVM's target `target`.

    The target may be a CPU, which then computes what the GPU would.
    """

    def __init__(self, target: Any, attention: Attention, quantisation: Quantisation, vocab: int) -> None:
        """
        Raises:
            UnsupportedError: a weight format or attention without GPU kernels; names it.
        """
        if quantisation.dtype == "bfloat16":
            raise UnsupportedError(
                f"{quantisation.name} computes in bfloat16, which has no GPU kernels here",
                hint="Convert the model to q4f16_1.",
            )
        kv_cache.check(attention)
        self.dtype = quantisation.dtype
        self.target = target
        self.attention = attention
        self.quantisation = quantisation
        self.vocab = vocab

    def pack(self, parameter: Parameter, stored: tuple[Tensor, ...]) -> Step:
        return Step(tuple(tensor.name for tensor in stored), stored)

    def operators(self, bb: Any, weights: Weights, kv: Expr | None = None) -> Operators:
        return GpuOperators(bb, weights, self, kv)

    def kv_cache(self, bb: Any, sizes: Sequence[Any]) -> Expr:
        return kv_cache.create(self.attention, sizes, self.dtype, self.target)

    def kernels(self) -> Mapping[str, Kernel]:
        return logits.kernels(self.vocab, threads) if self.target.kind.name != "llvm" else {}


@dataclass(frozen=True)
class GpuOperators:
    """See `operators.Operators`."""

    bb: Any
    weights: Weights
    backend: GpuBackend
    kv: Expr | None
    # Positions of the function's tokens, once something has asked for them.
    _positions: list[Expr] = field(default_factory=list)

    def embed(self, table: Parameter, ids: Expr, scale: float = 1.0) -> Expr:
        form = self.backend.quantisation.form(table.role)

        def lookup(ids: Any, *stored: Any) -> Any:
            return expressions.lookup(form, table.shape, self.backend.dtype, ids, stored, scale)

        return self.emit(lookup, ids, *self.weights(table))

    def plain(self, x: Expr) -> Input:
        return x

    def normed(self, x: Expr, weight: Parameter, eps: float) -> Input:
        return self.norm(x, weight, eps)

    def gated(self, gate_up: Expr, gate: Gate) -> Input:
        return self.emit(lambda x: expressions.gated(x, gate), gate_up, name="gated")

    def linear(
        self, weight: Parameter, x: Input, *, bias: Parameter | None = None, residual: Expr | None = None
    ) -> Expr:
        form, stored = self.backend.quantisation.form(weight.role), self.weights(weight)
        added = [*(self.weights(bias) if bias else []), *([] if residual is None else [residual])]
        # Logits are float32 whatever the model's dtype; a tied model's output matrix is its embedding.
        dtype = "float32" if weight.role in ("head", "embedding") else self.backend.dtype

        def linear(x: Any, *others: Any) -> Any:
            split = len(stored)
            return expressions.linear(form, weight.shape, dtype, x, others[:split], others[split:])

        return self.emit(linear, x, *stored, *added)

    def norm(self, x: Expr, weight: Parameter, eps: float, *, residual: Expr | None = None) -> Expr:
        (gamma,) = self.weights(weight)
        y = self.bb.emit(relax.op.nn.rms_norm(x, gamma, axes=[-1], epsilon=eps))
        return y if residual is None else self.bb.emit(relax.op.add(y, residual))

    def softcap(self, x: Expr, cap: float) -> Expr:
        return self.emit(lambda x: expressions.softcap(x, cap), x, name="softcap")

    def attend(
        self,
        layer: int,
        qkv: Sequence[Expr],
        *,
        q_norm: Parameter | None = None,
        k_norm: Parameter | None = None,
        eps: float = 0.0,
    ) -> Expr:
        attention, rows = self.backend.attention, qkv[0].ty.shape[0]
        counts = (attention.heads, attention.kv_heads, attention.kv_heads)
        if len(qkv) == 1 and (q_norm or k_norm):
            ends = np.cumsum([count * attention.head_dim for count in counts])[:-1].tolist()
            parts = self.bb.emit(relax.op.split(qkv[0], ends, axis=1))
            qkv = [self.bb.emit(relax.TupleGetItem(parts, index)) for index in range(3)]
        shaped = [
            self.reshape(part, rows, count, attention.head_dim)
            for part, count in zip(qkv, counts if len(qkv) == 3 else (sum(counts),), strict=True)
        ]
        for index, weight in enumerate((q_norm, k_norm)):
            if weight is not None:
                shaped[index] = self.norm(shaped[index], weight, eps)
        fused = self.rotated(layer, shaped, rows)
        out = kv_cache.attend(self.bb, attention, layer, fused, self.kv)
        return self.reshape(out, rows, attention.heads * attention.head_dim)

    def rotated(self, layer: int, parts: list[Expr], rows: Any) -> Expr:
        """Queries, keys and values as the cache takes them: one tensor, rotated."""
        attention, rope = self.backend.attention, self.backend.attention.ropes[layer]
        if rope is None and len(parts) == 1:
            return parts[0]
        where = [] if rope is None else [self.positions(rows), relax.const(np.array(rope.rates, np.float32))]
        gain = 1.0 if rope is None else rope.gain

        def heads(*tensors: Any) -> Any:
            positions, rates = tensors[len(parts) :] or (None, None)
            counts = (attention.heads, attention.kv_heads)
            return expressions.heads(tensors[: len(parts)], counts, positions, rates, gain)

        return self.emit(heads, *parts, *where)

    def positions(self, rows: Any) -> Expr:
        """Positions of the function's tokens."""
        if not self._positions:
            self._positions.append(kv_cache.positions(self.bb, rows, self.kv))
        return self._positions[0]

    def reshape(self, x: Expr, *shape: Any) -> Expr:
        return self.bb.emit(relax.op.reshape(x, shape))

    def emit(self, expression: Any, *arguments: Expr, name: str = "") -> Expr:
        """Emit a tensor expression of the arguments."""
        return self.bb.emit_te(expression, *arguments, primfunc_name_hint=name or expression.__name__)
