"""The seam between a model's graph and the kernels: what a family may ask for, and who computes it.

`prepare` turns activations into what the following matrices read (float rows, or int8 blocks with scales),
with the norm or SiLU before it folded in; `linear` multiplies. Between them activations are float32 rows
`[m, k]`.
"""

from typing import Any, Literal, Protocol

from tvm import relax, te, tirx

from builder.compile.families.parameters import Matrix, Step, Tensor
from builder.compile.kernels import activation, packing, w4a8
from builder.compile.kernels.isa import Isa

Expr = Any  # tvm.relax.Expr; TVM has no type information
Preparation = Literal["plain", "rms", "silu"]


class Operators(Protocol):
    """Emits calls into the block builder `bb`. `weights` are the packed tensors of one matrix."""

    def pack(self, rows: int, columns: int, stored: tuple[Tensor, ...]) -> Step:
        """How a matrix gets into memory."""
        ...

    def prepare(self, bb: Any, kind: Preparation, x: Expr, norm: Expr | None = None) -> list[Expr]:
        """Activations ready for `linear`: x as it is, RMS-normalised by `norm`, or silu(left half)·right half."""
        ...

    def linear(
        self,
        bb: Any,
        matrix: Matrix,
        weights: list[Expr],
        x: list[Expr],
        rows: Any,
        residual: Expr | None = None,
    ) -> Expr:
        """x · weightsᵀ (+ residual), float32 `[rows, matrix.rows]`; `x` comes from `prepare`."""
        ...

    def embed(self, bb: Any, matrix: Matrix, weights: list[Expr], ids: Expr) -> Expr:
        """Rows of an embedding, float32 `[n, columns]`."""
        ...

    def normalise(self, bb: Any, x: Expr, norm: Expr) -> Expr:
        """RMS-normalised rows, float32."""
        ...


class PlainOperators:
    """Dense float32 weights and unscheduled loops: right everywhere, and slow."""

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.packers: dict[str, Any] = {}

    def pack(self, rows: int, columns: int, stored: tuple[Tensor, ...]) -> Step:
        sources = tuple(tensor.name for tensor in stored)
        dense = (Tensor(sources[0], (rows, columns), "float32"),)
        if len(stored) == 1:
            return Step(sources, dense)
        function = f"dequantise_{rows}_{columns}_{stored[1].dtype}"
        if function not in self.packers:
            self.packers[function] = _dequantise(rows, columns, stored[1].dtype)
        return Step(sources, dense, function)

    def prepare(self, bb: Any, kind: Preparation, x: Expr, norm: Expr | None = None) -> list[Expr]:
        if kind == "rms":
            return [self.normalise(bb, x, norm)]
        if kind == "silu":
            return [bb.emit_te(_silu, x)]
        return [x]

    def normalise(self, bb: Any, x: Expr, norm: Expr) -> Expr:
        return bb.emit_te(_rms, x, norm, self.eps)

    def linear(
        self,
        bb: Any,
        matrix: Matrix,
        weights: list[Expr],
        x: list[Expr],
        rows: Any,
        residual: Expr | None = None,
    ) -> Expr:
        y = bb.emit_te(_matmul, x[0], weights[0])
        return y if residual is None else bb.emit(relax.op.add(y, residual))

    def embed(self, bb: Any, matrix: Matrix, weights: list[Expr], ids: Expr) -> Expr:
        return bb.emit(relax.op.take(weights[0], ids, axis=0))


def _matmul(x: Any, w: Any) -> Any:
    k = te.reduce_axis((0, w.shape[1]), "k")
    return te.compute((x.shape[0], w.shape[0]), lambda i, j: te.sum(x[i, k] * w[j, k], axis=k), "matmul")


def _rms(x: Any, norm: Any, eps: float) -> Any:
    size = x.shape[1]
    k = te.reduce_axis((0, size), "k")
    squares = te.compute((x.shape[0],), lambda i: te.sum(x[i, k] * x[i, k], axis=k), "squares")
    return te.compute(
        x.shape,
        lambda i, j: x[i, j] / te.sqrt(squares[i] / float(int(size)) + tirx.const(eps, "float32")) * norm[j],
        "rms",
    )


def _silu(x: Any) -> Any:
    half = x.shape[1] // 2
    return te.compute(
        (x.shape[0], half), lambda i, j: x[i, j] / (1.0 + te.exp(-x[i, j])) * x[i, j + half], "silu"
    )


def _dequantise(rows: int, columns: int, dtype: str) -> Any:
    groups = -(-columns // 32)
    w = te.placeholder((rows, groups * 4), "uint32", "w")
    s = te.placeholder((rows, groups), dtype, "s")

    def value(i: Any, k: Any) -> Any:
        nibble = tirx.bitwise_and(
            tirx.shift_right(w[i, k // 8], (k % 8 * 4).astype("uint32")), tirx.const(15, "uint32")
        )
        return ((nibble.astype("int32") - 7).astype(dtype) * s[i, k // 32]).astype("float32")

    return te.create_prim_func([w, s, te.compute((rows, columns), value, "dense")])


class Int8Operators:
    """Int4 weights, packed, times int8 activations in blocks of 32 with a scale of their own."""

    def __init__(self, isa: Isa, eps: float) -> None:
        self.isa = isa
        self.eps = eps
        self.packers: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}

    def pack(self, rows: int, columns: int, stored: tuple[Tensor, ...]) -> Step:
        weight, scale = stored
        kernel = packing.pack(rows, columns, self.isa, scale=scale.dtype)
        name = symbol(kernel)
        self.packers[name] = kernel
        return Step(
            (weight.name, scale.name),
            (
                Tensor(weight.name, packing.packed_shape(rows, columns, self.isa), "uint8"),
                Tensor(scale.name, packing.scales_shape(rows, columns, self.isa), scale.dtype),
            ),
            name,
        )

    def prepare(self, bb: Any, kind: Preparation, x: Expr, norm: Expr | None = None) -> list[Expr]:
        count, width = x.ty.shape
        one = static_rows(count)
        k = int(width) // 2 if kind == "silu" else int(width)
        if kind == "rms":
            kernel = activation.rms_norm_quantise(k, self.eps, rows=one)
        elif kind == "silu":
            kernel = activation.silu_mul_quantise(k, rows=one)
        else:
            kernel = activation.quantise(k, rows=one)
        padded = 1 if one else activation.padded_rows(count)
        out = relax.TensorType((padded, k // 32, activation.WORDS), "int32")
        return [call(bb, kernel, [x] if norm is None else [x, norm], out)]

    def normalise(self, bb: Any, x: Expr, norm: Expr) -> Expr:
        count, width = x.ty.shape
        kernel = activation.rms_norm(int(width), self.eps, rows=static_rows(count))
        return call(bb, kernel, [x, norm], x.ty)

    def linear(
        self,
        bb: Any,
        matrix: Matrix,
        weights: list[Expr],
        x: list[Expr],
        rows: Any,
        residual: Expr | None = None,
    ) -> Expr:
        kernel = w4a8.linear(
            matrix.rows,
            matrix.columns,
            self.isa,
            scale=str(weights[1].ty.dtype),
            rows=static_rows(rows),
            residual=residual is not None,
        )
        out = relax.TensorType((rows, matrix.rows), "float32")
        return call(bb, kernel, [*weights, *x, *([] if residual is None else [residual])], out)

    def embed(self, bb: Any, matrix: Matrix, weights: list[Expr], ids: Expr) -> Expr:
        lanes, quads = self.isa.lanes, self.isa.quads

        def lookup(w: Any, s: Any, i: Any) -> Any:
            def value(t: Any, k: Any) -> Any:
                row, c = i[t], k % 32
                g, lane, low = row // lanes, row % lanes, c % 16
                byte = (low // 4 * lanes + lane) * 4 + low % 4 if quads else low * lanes + lane
                nibble = (w[g, k // 32, byte] >> (c // 16 * 4).astype("uint8")) & tirx.const(15, "uint8")
                return (nibble.astype("int32") - 7).astype("float32") * s[g, k // 32, lane].astype("float32")

            return te.compute((i.shape[0], matrix.columns), value, "lookup")

        return bb.emit_te(lookup, *weights, ids)


def symbol(kernel: Any) -> str:
    """The global symbol of a PrimFunc."""
    return str(kernel.attrs["global_symbol"])


def static_rows(count: Any) -> int | None:
    """1 where a dimension is known to be 1, else None."""
    return 1 if isinstance(count, int | tirx.IntImm) and int(count) == 1 else None


def call(bb: Any, kernel: Any, arguments: list[Expr], out: Any) -> Expr:
    """Call a kernel into a new tensor of type `out`; equal kernels are added to the module once."""
    return bb.emit(relax.call_tir(bb.add_func(kernel, symbol(kernel)), arguments, out))
