"""The CPU backend: hand-written kernels for everything that takes time.

Activations are float32 rows. Kernels for one row and for many differ; which one is meant follows from the
shape: a first dimension that is the constant 1, or a symbol.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import relax, tirx

from builder.compile import kv_cache
from builder.compile.families.decoder import Attention
from builder.compile.families.parameters import Parameter
from builder.compile.kernels import activation
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.vector import BLOCK
from builder.compile.matrices import BLOCKS, ROWS, Matrix, Reads, hold
from builder.compile.operators import Expr, Gate, Kernel, Operators, Weights
from builder.compile.packing import Step
from builder.compile.quantise import Quantisation, Tensor


class CpuBackend:
    """Float activations, or int8 ones in blocks of 32 where `fast` and a matrix has four bits.

    Without `fast` results are exact up to float32's rounding.
    """

    dtype = "float32"

    def __init__(self, isa: Isa, attention: Attention, quantisation: Quantisation, *, fast: bool) -> None:
        self.isa = isa
        self.plan = kv_cache.Plan.of(attention)
        self.quantisation = quantisation
        self.fast = fast
        self._matrices: dict[str, Matrix] = {}

    def pack(self, parameter: Parameter, stored: tuple[Tensor, ...]) -> Step:
        if parameter.role == "vector":
            return as_float32(stored)
        form = self.quantisation.form(parameter.role)
        matrix = hold(parameter, stored, form, self.isa, fast=self.fast)
        self._matrices[parameter.name] = matrix
        return matrix.step

    def operators(self, bb: Any, weights: Weights, kv: Expr | None = None) -> Operators:
        return CpuOperators(bb, weights, self._matrices, kv, self.plan)

    def kv_cache(self, bb: Any, sizes: Sequence[Any]) -> Expr:
        return kv_cache.create(bb, self.plan, sizes, self.isa)

    def kernels(self) -> Mapping[str, Kernel]:
        packers = (matrix.packer for matrix in self._matrices.values() if matrix.packer is not None)
        return {symbol(packer): packer for packer in packers}


def as_float32(stored: tuple[Tensor, ...]) -> Step:
    """Vectors are float32 in memory."""
    names = tuple(tensor.name for tensor in stored)
    return Step(names, tuple(Tensor(tensor.name, tensor.shape, "float32") for tensor in stored))


class Rows:
    """What `linear` reads: `count` rows in the form that its matrix wants, made when the first one asks."""

    def __init__(self, count: Any, makers: Mapping[Reads, Callable[[], Expr]]) -> None:
        self.count = count
        self._makers = makers
        self._made: dict[Reads, Expr] = {}

    def read(self, form: Reads) -> Expr:
        """The rows as float32, or as int8 blocks."""
        if form not in self._made:
            self._made[form] = self._makers[form]()
        return self._made[form]


@dataclass(frozen=True)
class CpuOperators:
    """See `operators.Operators`."""

    bb: Any
    weights: Weights
    matrices: Mapping[str, Matrix]
    kv: Expr | None
    plan: kv_cache.Plan
    # Positions of the function's tokens, once something has asked for them.
    _positions: list[Expr] = field(default_factory=list)

    def embed(self, table: Parameter, ids: Expr, scale: float = 1.0) -> Expr:
        kernel = self.matrices[table.name].lookup(scale)
        return self.call(kernel, [*self.weights(table), ids], (ids.ty.shape[0], table.shape[1]))

    def plain(self, x: Expr) -> Rows:
        rows, width = x.ty.shape
        return self.rows(lambda: x, activation.quantise(int(width), rows=one(rows)), [x], int(width))

    def normed(self, x: Expr, weight: Parameter, eps: float) -> Rows:
        rows, width = x.ty.shape
        kernel = activation.rms_norm_quantise(int(width), eps, rows=one(rows))
        return self.rows(lambda: self.norm(x, weight, eps), kernel, [x, self.vector(weight)], int(width))

    def gated(self, gate_up: Expr, gate: Gate) -> Rows:
        rows, width = gate_up.ty.shape[0], int(gate_up.ty.shape[1]) // 2
        kernel = activation.gated(width, gate, rows=one(rows))
        quantising = activation.gated_quantise(width, gate, rows=one(rows))
        return self.rows(lambda: self.call(kernel, [gate_up], (rows, width)), quantising, [gate_up], width)

    def rows(self, plain: Callable[[], Expr], quantising: Kernel, arguments: list[Expr], width: int) -> Rows:
        """What gives `plain`, or the call of a kernel that makes blocks of the same columns."""
        count = arguments[0].ty.shape[0]
        padded = one(count) or activation.padded_rows(count)
        shape = (padded, width // BLOCK, activation.WORDS)
        return Rows(count, {ROWS: plain, BLOCKS: lambda: self.call(quantising, arguments, shape, "int32")})

    def linear(
        self, weight: Parameter, x: Rows, *, bias: Parameter | None = None, residual: Expr | None = None
    ) -> Expr:
        matrix = self.matrices[weight.name]
        kernel = matrix.linear(rows=one(x.count), bias=bias is not None, residual=residual is not None)
        added = [*given(bias and self.vector(bias)), *given(residual)]
        return self.call(
            kernel, [*self.weights(weight), x.read(matrix.reads), *added], (x.count, matrix.rows)
        )

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


def given(argument: Expr | None) -> list[Expr]:
    """An optional argument of a kernel."""
    return [] if argument is None else [argument]


def one(rows: Any) -> int | None:
    """1 where a dimension is known to be 1, else None."""
    return 1 if isinstance(rows, int | tirx.IntImm) and int(rows) == 1 else None


def symbol(kernel: Kernel) -> str:
    """The name of a kernel in the library."""
    return str(kernel.attrs["global_symbol"])
