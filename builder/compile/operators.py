"""The seam between a model's graph and the kernels: what a family may ask for, and who computes it.

`prepare` turns activations into what the following matrices read (float rows, or int8 blocks with scales),
with the norm or SiLU before it folded in; `linear` multiplies. Between them activations are float32 rows
`[m, k]`.
"""

from typing import Any, Literal, Protocol

from tvm import relax, te, tirx

from builder.compile.families.parameters import Matrix, Step, Tensor

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
        self, bb: Any, matrix: Matrix, weights: list[Expr], x: list[Expr], residual: Expr | None = None
    ) -> Expr:
        """x · weightsᵀ (+ residual), float32 `[m, rows]`."""
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
        self, bb: Any, matrix: Matrix, weights: list[Expr], x: list[Expr], residual: Expr | None = None
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
