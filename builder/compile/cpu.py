"""The CPU backends: hand-written kernels for everything that takes time.

Activations are float32 rows. Kernels for one row and for many differ; which one is meant follows from the
shape: a first dimension that is the constant 1, or a symbol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import relax, tirx

from builder.compile import kv_cache
from builder.compile.families.decoder import Attention
from builder.compile.families.parameters import Parameter
from builder.compile.kernels import activation, embedding, exact, packing, w4a8
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.vector import BLOCK
from builder.compile.operators import Expr, Gate, Kernel, Operators, Weights
from builder.compile.packing import Step
from builder.compile.quantise import Tensor


class ExactBackend:
    """Weights as they are on disk, float activations: exact up to float32's rounding."""

    dtype = "float32"

    def __init__(self, isa: Isa, attention: Attention) -> None:
        self.isa = isa
        self.plan = kv_cache.Plan.of(attention)

    def pack(self, parameter: Parameter, stored: tuple[Tensor, ...]) -> Step:
        if parameter.role == "vector":
            return as_float32(stored)
        return Step(tuple(tensor.name for tensor in stored), stored)

    def operators(self, bb: Any, weights: Weights, kv: Expr | None = None) -> Operators:
        return ExactOperators(bb, weights, kv, self.isa, self.plan)

    def kv_cache(self, bb: Any, sizes: Sequence[Any]) -> Expr:
        return kv_cache.create(bb, self.plan, sizes, self.isa)

    def kernels(self) -> Mapping[str, Kernel]:
        return {}


class FastBackend:
    """Packed int4 weights times int8 activations in blocks of 32, each with a scale of its own."""

    dtype = "float32"

    def __init__(self, isa: Isa, attention: Attention) -> None:
        self.isa = isa
        self.plan = kv_cache.Plan.of(attention)
        self._packers: dict[str, Kernel] = {}

    def pack(self, parameter: Parameter, stored: tuple[Tensor, ...]) -> Step:
        if parameter.role == "vector":
            return as_float32(stored)
        rows, columns = parameter.shape
        weight, scale = stored
        kernel = packing.pack(rows, columns, self.isa, scale=scale.dtype)
        self._packers[symbol(kernel)] = kernel
        return Step(
            (weight.name, scale.name),
            (
                Tensor(weight.name, packing.packed_shape(rows, columns, self.isa), "uint8"),
                Tensor(scale.name, packing.scales_shape(rows, columns, self.isa), scale.dtype),
            ),
            symbol(kernel),
        )

    def operators(self, bb: Any, weights: Weights, kv: Expr | None = None) -> Operators:
        return FastOperators(bb, weights, kv, self.isa, self.plan)

    def kv_cache(self, bb: Any, sizes: Sequence[Any]) -> Expr:
        return kv_cache.create(bb, self.plan, sizes, self.isa)

    def kernels(self) -> Mapping[str, Kernel]:
        return self._packers


def as_float32(stored: tuple[Tensor, ...]) -> Step:
    """Vectors are float32 in memory."""
    names = tuple(tensor.name for tensor in stored)
    return Step(names, tuple(Tensor(tensor.name, tensor.shape, "float32") for tensor in stored))


@dataclass(frozen=True)
class Rows:
    """What `linear` reads, and how many rows it stands for: the tensor may be padded."""

    x: Expr
    count: Any


@dataclass(frozen=True)
class _CpuOperators:
    """What both backends compute in the same way; see `operators.Operators`."""

    bb: Any
    weights: Weights
    kv: Expr | None
    isa: Isa
    plan: kv_cache.Plan
    # Positions of the function's tokens, once something has asked for them.
    _positions: list[Expr] = field(default_factory=list)

    def norm(self, x: Expr, weight: Parameter, eps: float, *, residual: Expr | None = None) -> Expr:
        rows, width = x.ty.shape
        kernel = activation.rms_norm(int(width), eps, rows=one(rows), residual=residual is not None)
        return self.call(kernel, [x, self.vector(weight), *given(residual)], (rows, width))

    def softcap(self, x: Expr, cap: float) -> Expr:
        rows, width = x.ty.shape
        return self.call(activation.soft_cap(int(width), cap, rows=one(rows)), [x], (rows, width))

    def attend(
        self,
        layer: int,
        qkv: Sequence[Expr],
        *,
        q_norm: Parameter | None = None,
        k_norm: Parameter | None = None,
        eps: float = 0.0,
    ) -> Expr:
        heads, rows = self.plan.heads, qkv[0].ty.shape[0]
        every = heads.query + 2 * heads.kv
        counts = (every,) if len(qkv) == 1 else (heads.query, heads.kv, heads.kv)
        parts = [self.reshape(part, rows, count, heads.dim) for part, count in zip(qkv, counts, strict=True)]
        norms = [self.vector(weight) for weight in (q_norm, k_norm) if weight is not None]
        kernel = kv_cache.finish(self.plan, layer, eps=eps if norms else None, fused=len(parts) == 1)
        fused = parts[0]
        if kernel is not None:
            where = [] if self.plan.rotation(layer) is None else [self.positions(rows)]
            fused = self.call(kernel, [*parts, *norms, *where], (rows, every, heads.dim))
        out = kv_cache.attend(self.bb, self.plan, layer, fused, self.kv)
        return self.reshape(out, rows, heads.query * heads.dim)

    def positions(self, rows: Any) -> Expr:
        """Positions of the function's tokens."""
        if not self._positions:
            self._positions.append(kv_cache.positions(self.bb, rows, self.kv))
        return self._positions[0]

    def vector(self, weight: Parameter) -> Expr:
        """A norm weight or bias."""
        (vector,) = self.weights(weight)
        return vector

    def reshape(self, x: Expr, *shape: Any) -> Expr:
        return self.bb.emit(relax.op.reshape(x, shape))

    def call(
        self, kernel: Kernel, arguments: list[Expr], shape: tuple[Any, ...], dtype: str = "float32"
    ) -> Expr:
        """Call a kernel into a new tensor; equal kernels enter the module once."""
        function = self.bb.add_func(kernel, symbol(kernel))
        return self.bb.emit(relax.call_tir(function, arguments, relax.TensorType(shape, dtype)))


@dataclass(frozen=True)
class ExactOperators(_CpuOperators):
    """Float activations."""

    def embed(self, table: Parameter, ids: Expr, scale: float = 1.0) -> Expr:
        (vocab, width), weights = table.shape, self.weights(table)
        kernel = embedding.lookup(vocab, width, self.isa, weight=form(weights), multiplier=scale)
        return self.call(kernel, [*weights, ids], (ids.ty.shape[0], width))

    def plain(self, x: Expr) -> Rows:
        return Rows(x, x.ty.shape[0])

    def normed(self, x: Expr, weight: Parameter, eps: float) -> Rows:
        return self.plain(self.norm(x, weight, eps))

    def gated(self, gate_up: Expr, gate: Gate) -> Rows:
        rows, width = gate_up.ty.shape
        kernel = activation.gated(int(width) // 2, gate, rows=one(rows))
        return self.plain(self.call(kernel, [gate_up], (rows, int(width) // 2)))

    def linear(
        self, weight: Parameter, x: Rows, *, bias: Parameter | None = None, residual: Expr | None = None
    ) -> Expr:
        (n, k), weights = weight.shape, self.weights(weight)
        kernel = exact.linear(
            n,
            k,
            self.isa,
            weight=form(weights),
            rows=one(x.count),
            bias=bias is not None,
            residual=residual is not None,
        )
        constant = given(bias and self.vector(bias))
        return self.call(kernel, [*weights, x.x, *constant, *given(residual)], (x.count, n))


@dataclass(frozen=True)
class FastOperators(_CpuOperators):
    """Activations in int8 blocks."""

    def embed(self, table: Parameter, ids: Expr, scale: float = 1.0) -> Expr:
        (vocab, width), weights = table.shape, self.weights(table)
        dtype = str(weights[1].ty.dtype)
        kernel = embedding.lookup_packed(vocab, width, self.isa, scale=dtype, multiplier=scale)
        return self.call(kernel, [*weights, ids], (ids.ty.shape[0], width))

    def plain(self, x: Expr) -> Rows:
        rows, width = x.ty.shape
        return self.blocks(activation.quantise(int(width), rows=one(rows)), [x], rows, int(width))

    def normed(self, x: Expr, weight: Parameter, eps: float) -> Rows:
        rows, width = x.ty.shape
        kernel = activation.rms_norm_quantise(int(width), eps, rows=one(rows))
        return self.blocks(kernel, [x, self.vector(weight)], rows, int(width))

    def gated(self, gate_up: Expr, gate: Gate) -> Rows:
        rows, width = gate_up.ty.shape
        kernel = activation.gated_quantise(int(width) // 2, gate, rows=one(rows))
        return self.blocks(kernel, [gate_up], rows, int(width) // 2)

    def blocks(self, kernel: Kernel, arguments: list[Expr], rows: Any, width: int) -> Rows:
        """Call a kernel that makes blocks of `width` columns."""
        padded = one(rows) or activation.padded_rows(rows)
        return Rows(self.call(kernel, arguments, (padded, width // BLOCK, activation.WORDS), "int32"), rows)

    def linear(
        self, weight: Parameter, x: Rows, *, bias: Parameter | None = None, residual: Expr | None = None
    ) -> Expr:
        (n, k), weights = weight.shape, self.weights(weight)
        kernel = w4a8.linear(
            n,
            k,
            self.isa,
            scale=str(weights[1].ty.dtype),
            rows=one(x.count),
            bias=bias is not None,
            residual=residual is not None,
        )
        constant = given(bias and self.vector(bias))
        return self.call(kernel, [*weights, x.x, *constant, *given(residual)], (x.count, n))


def given(argument: Expr | None) -> list[Expr]:
    """An optional argument of a kernel."""
    return [] if argument is None else [argument]


def form(weights: list[Expr]) -> str:
    """How the exact kernels call the form that a matrix has on disk."""
    dtype = str(weights[-1].ty.dtype)
    return dtype if len(weights) == 1 else {"float16": "q4f16", "float32": "q4f32"}[dtype]


def one(rows: Any) -> int | None:
    """1 where a dimension is known to be 1, else None."""
    return 1 if isinstance(rows, int | tirx.IntImm) and int(rows) == 1 else None


def symbol(kernel: Kernel) -> str:
    """The name of a kernel in the library."""
    return str(kernel.attrs["global_symbol"])
