"""The seam between a model's graph and the kernels: what a family may ask for, and who computes it.

Activations are float32 rows `[m, k]`. `prepare` turns them into what the following matrix reads, with the
norm or SiLU before it folded in; `linear` multiplies. Kernels for one row and for many differ; which one is
meant follows from the shape: a first dimension that is the constant 1, or a symbol.
"""

from typing import Any, Literal, Protocol

from tvm import relax, tirx

from builder.compile.families.parameters import Matrix, Step, Tensor
from builder.compile.kernels import activation, embedding, exact, packing, w4a8
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.vector import BLOCK

Expr = Any  # tvm.relax.Expr; TVM has no type information
Kernel = Any  # tvm.tirx.PrimFunc
Preparation = Literal["plain", "rms", "silu"]


class Operators(Protocol):
    """Emits calls into the block builder `bb`. `weights` are the entries of one matrix.

    Attributes:
        packers: kernels that the packing steps name.
    """

    packers: dict[str, Kernel]

    def pack(self, rows: int, columns: int, stored: tuple[Tensor, ...]) -> Step:
        """How a matrix gets into memory."""
        ...

    def prepare(self, bb: Any, kind: Preparation, x: Expr, norm: Expr | None = None) -> Expr:
        """What `linear` reads: x itself ("plain"), normalised with the weight `norm` ("rms"), or the product
        of its right half and the SiLU of its left half ("silu").
        """
        ...

    def linear(
        self, bb: Any, matrix: Matrix, weights: list[Expr], x: Expr, rows: Any, residual: Expr | None = None
    ) -> Expr:
        """x · weightsᵀ (+ residual), float32 `[rows, matrix.rows]`; `x` comes from `prepare`."""
        ...

    def embed(self, bb: Any, matrix: Matrix, weights: list[Expr], ids: Expr) -> Expr:
        """The embedding's rows at `ids` int32 `[n]`: float32 `[n, matrix.columns]`."""
        ...

    def normalise(self, bb: Any, x: Expr, norm: Expr) -> Expr:
        """RMS-normalised rows, float32."""
        ...


class FloatOperators:
    """Weights as they are on disk, float activations: exact up to float32's rounding."""

    def __init__(self, isa: Isa, eps: float) -> None:
        self.isa = isa
        self.eps = eps
        self.packers: dict[str, Kernel] = {}

    def pack(self, rows: int, columns: int, stored: tuple[Tensor, ...]) -> Step:
        return Step(tuple(tensor.name for tensor in stored), stored)

    def prepare(self, bb: Any, kind: Preparation, x: Expr, norm: Expr | None = None) -> Expr:
        if kind == "rms":
            return self.normalise(bb, x, norm)
        if kind == "silu":
            rows, width = x.ty.shape
            kernel = activation.silu_mul(int(width) // 2, rows=one(rows))
            return call(bb, kernel, [x], (rows, int(width) // 2))
        return x

    def normalise(self, bb: Any, x: Expr, norm: Expr) -> Expr:
        return normalise(bb, x, norm, self.eps)

    def linear(
        self, bb: Any, matrix: Matrix, weights: list[Expr], x: Expr, rows: Any, residual: Expr | None = None
    ) -> Expr:
        added = [] if residual is None else [residual]
        kernel = exact.linear(
            matrix.rows, matrix.columns, self.isa, weight=form(weights), rows=one(rows), residual=bool(added)
        )
        return call(bb, kernel, [*weights, x, *added], (rows, matrix.rows))

    def embed(self, bb: Any, matrix: Matrix, weights: list[Expr], ids: Expr) -> Expr:
        kernel = embedding.lookup(matrix.rows, matrix.columns, self.isa, weight=form(weights))
        return call(bb, kernel, [*weights, ids], (ids.ty.shape[0], matrix.columns))


class Int8Operators:
    """Packed int4 weights times int8 activations in blocks of 32, each with a scale of its own."""

    def __init__(self, isa: Isa, eps: float) -> None:
        self.isa = isa
        self.eps = eps
        self.packers: dict[str, Kernel] = {}

    def pack(self, rows: int, columns: int, stored: tuple[Tensor, ...]) -> Step:
        weight, scale = stored
        kernel = packing.pack(rows, columns, self.isa, scale=scale.dtype)
        self.packers[symbol(kernel)] = kernel
        return Step(
            (weight.name, scale.name),
            (
                Tensor(weight.name, packing.packed_shape(rows, columns, self.isa), "uint8"),
                Tensor(scale.name, packing.scales_shape(rows, columns, self.isa), scale.dtype),
            ),
            symbol(kernel),
        )

    def prepare(self, bb: Any, kind: Preparation, x: Expr, norm: Expr | None = None) -> Expr:
        rows, width = x.ty.shape
        k = int(width)
        if kind == "rms":
            kernel = activation.rms_norm_quantise(k, self.eps, rows=one(rows))
        elif kind == "silu":
            k //= 2
            kernel = activation.silu_mul_quantise(k, rows=one(rows))
        else:
            kernel = activation.quantise(k, rows=one(rows))
        padded = one(rows) or activation.padded_rows(rows)
        shape = (padded, k // BLOCK, activation.WORDS)
        return call(bb, kernel, [x] if norm is None else [x, norm], shape, "int32")

    def normalise(self, bb: Any, x: Expr, norm: Expr) -> Expr:
        return normalise(bb, x, norm, self.eps)

    def linear(
        self, bb: Any, matrix: Matrix, weights: list[Expr], x: Expr, rows: Any, residual: Expr | None = None
    ) -> Expr:
        added = [] if residual is None else [residual]
        scale = str(weights[1].ty.dtype)
        kernel = w4a8.linear(
            matrix.rows, matrix.columns, self.isa, scale=scale, rows=one(rows), residual=bool(added)
        )
        return call(bb, kernel, [*weights, x, *added], (rows, matrix.rows))

    def embed(self, bb: Any, matrix: Matrix, weights: list[Expr], ids: Expr) -> Expr:
        scale = str(weights[1].ty.dtype)
        kernel = embedding.lookup_packed(matrix.rows, matrix.columns, self.isa, scale=scale)
        return call(bb, kernel, [*weights, ids], (ids.ty.shape[0], matrix.columns))


def normalise(bb: Any, x: Expr, norm: Expr, eps: float) -> Expr:
    """RMS-normalised rows, float32."""
    rows, width = x.ty.shape
    return call(bb, activation.rms_norm(int(width), eps, rows=one(rows)), [x, norm], (rows, width))


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


def call(
    bb: Any, kernel: Kernel, arguments: list[Expr], shape: tuple[Any, ...], dtype: str = "float32"
) -> Expr:
    """Call a kernel into a new tensor; equal kernels enter the module once."""
    function = bb.add_func(kernel, symbol(kernel))
    return bb.emit(relax.call_tir(function, arguments, relax.TensorType(shape, dtype)))
