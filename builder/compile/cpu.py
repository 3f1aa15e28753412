"""The CPU backends: hand-written kernels for everything that takes time.

Activations are float32 rows. Kernels for one row and for many differ; which one is meant follows from the
shape: a first dimension that is the constant 1, or a symbol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tvm
from tvm import relax, tirx
from tvm.relax.frontend.nn.llm import kv_cache as stock
from tvm.relax.frontend.nn.llm.kv_cache import AttnKind, RopeMode

from builder.compile.families.decoder import Attention
from builder.compile.families.parameters import Parameter
from builder.compile.kernels import (
    activation,
    attention_state,
    embedding,
    exact,
    kv_pages,
    packing,
    paged_attention,
    rotary,
    w4a8,
)
from builder.compile.kernels.attention import Heads
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.vector import BLOCK
from builder.compile.operators import Expr, Gate, Kernel, Operators, Weights
from builder.compile.packing import Step
from builder.compile.quantise import Tensor
from builder.errors import UnsupportedError

Preparation = Literal["plain", "rms", "silu"]


class ExactBackend:
    """Weights as they are on disk, float activations: exact up to float32's rounding."""

    dtype = "float32"

    def __init__(self, isa: Isa, attention: Attention) -> None:
        self.isa = isa
        self.attention = attention

    def pack(self, parameter: Parameter, stored: tuple[Tensor, ...]) -> Step:
        if parameter.role == "vector":
            return as_float32(stored)
        return Step(tuple(tensor.name for tensor in stored), stored)

    def operators(self, bb: Any, weights: Weights, kv: Expr | None = None) -> Operators:
        return ExactOperators(bb, weights, kv, self.isa, self.attention)

    def kv_cache(self, bb: Any, sizes: Sequence[Any]) -> Expr:
        return paged_kv_cache(bb, self.attention, sizes, self.isa)

    def kernels(self) -> Mapping[str, Kernel]:
        return {}


class FastBackend:
    """Packed int4 weights times int8 activations in blocks of 32, each with a scale of its own."""

    dtype = "float32"

    def __init__(self, isa: Isa, attention: Attention) -> None:
        self.isa = isa
        self.attention = attention
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
        return FastOperators(bb, weights, kv, self.isa, self.attention)

    def kv_cache(self, bb: Any, sizes: Sequence[Any]) -> Expr:
        return paged_kv_cache(bb, self.attention, sizes, self.isa)

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
    attention: Attention

    def plain(self, x: Expr) -> Rows:
        return self.prepare("plain", x)

    def normed(self, x: Expr, weight: Parameter, eps: float) -> Rows:
        return self.prepare("rms", x, self.vector(weight), eps)

    def gated(self, gate_up: Expr, gate: Gate) -> Rows:
        if gate != "silu":
            raise UnsupportedError(f"activation {gate!r} has no CPU kernel")
        return self.prepare("silu", gate_up)

    def prepare(self, kind: Preparation, x: Expr, norm: Expr | None = None, eps: float = 0.0) -> Rows:
        """x as `linear` reads it, with what comes before folded in."""
        raise NotImplementedError

    def norm(self, x: Expr, weight: Parameter, eps: float, *, residual: Expr | None = None) -> Expr:
        rows, width = x.ty.shape
        kernel = activation.rms_norm(int(width), eps, rows=one(rows))
        return self.add(self.call(kernel, [x, self.vector(weight)], (rows, width)), residual)

    def add(self, x: Expr, y: Expr | None) -> Expr:
        """x (+ y)."""
        return x if y is None else self.bb.emit(relax.op.add(x, y))

    def softcap(self, x: Expr, cap: float) -> Expr:
        scale = relax.const(cap, "float32")
        return self.bb.emit(relax.op.multiply(relax.op.tanh(relax.op.divide(x, scale)), scale))

    def attend(
        self,
        layer: int,
        qkv: Expr,
        *,
        q_norm: Parameter | None = None,
        k_norm: Parameter | None = None,
        eps: float = 0.0,
    ) -> Expr:
        attention, rows = self.attention, qkv.ty.shape[0]
        heads, head_dim = attention.heads, attention.head_dim
        fused = self.reshape(qkv, rows, heads + 2 * attention.kv_heads, head_dim)
        out = self.bb.emit(
            relax.call_dps_packed(
                "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
                [self.kv, relax.prim_value(layer), relax.prim_value(attention.scale), fused],
                out_ty=relax.TensorType((rows, heads, head_dim), "float32"),
            )
        )
        return self.reshape(out, rows, heads * head_dim)

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
        weights = self.weights(table)
        kernel = embedding.lookup(*table.shape, self.isa, weight=form(weights))
        return scaled(self.bb, self.call(kernel, [*weights, ids], (ids.ty.shape[0], table.shape[1])), scale)

    def prepare(self, kind: Preparation, x: Expr, norm: Expr | None = None, eps: float = 0.0) -> Rows:
        rows, width = x.ty.shape
        if kind == "rms":
            kernel = activation.rms_norm(int(width), eps, rows=one(rows))
            return Rows(self.call(kernel, [x, norm], (rows, width)), rows)
        if kind == "silu":
            kernel = activation.silu_mul(int(width) // 2, rows=one(rows))
            return Rows(self.call(kernel, [x], (rows, int(width) // 2)), rows)
        return Rows(x, rows)

    def linear(
        self, weight: Parameter, x: Rows, *, bias: Parameter | None = None, residual: Expr | None = None
    ) -> Expr:
        weights, added = self.weights(weight), [] if residual is None else [residual]
        kernel = exact.linear(
            *weight.shape, self.isa, weight=form(weights), rows=one(x.count), residual=bool(added)
        )
        y = self.call(kernel, [*weights, x.x, *added], (x.count, weight.shape[0]))
        return self.add(y, None if bias is None else self.vector(bias))


@dataclass(frozen=True)
class FastOperators(_CpuOperators):
    """Activations in int8 blocks."""

    def embed(self, table: Parameter, ids: Expr, scale: float = 1.0) -> Expr:
        weights = self.weights(table)
        kernel = embedding.lookup_packed(*table.shape, self.isa, scale=str(weights[1].ty.dtype))
        return scaled(self.bb, self.call(kernel, [*weights, ids], (ids.ty.shape[0], table.shape[1])), scale)

    def prepare(self, kind: Preparation, x: Expr, norm: Expr | None = None, eps: float = 0.0) -> Rows:
        rows, width = x.ty.shape
        k = int(width)
        if kind == "rms":
            kernel = activation.rms_norm_quantise(k, eps, rows=one(rows))
        elif kind == "silu":
            k //= 2
            kernel = activation.silu_mul_quantise(k, rows=one(rows))
        else:
            kernel = activation.quantise(k, rows=one(rows))
        padded = one(rows) or activation.padded_rows(rows)
        shape = (padded, k // BLOCK, activation.WORDS)
        return Rows(self.call(kernel, [x] if norm is None else [x, norm], shape, "int32"), rows)

    def linear(
        self, weight: Parameter, x: Rows, *, bias: Parameter | None = None, residual: Expr | None = None
    ) -> Expr:
        weights, added = self.weights(weight), [] if residual is None else [residual]
        scale = str(weights[1].ty.dtype)
        kernel = w4a8.linear(
            *weight.shape, self.isa, scale=scale, rows=one(x.count), residual=bool(added)
        )
        y = self.call(kernel, [*weights, x.x, *added], (x.count, weight.shape[0]))
        return self.add(y, None if bias is None else self.vector(bias))


def paged_kv_cache(bb: Any, attention: Attention, sizes: Sequence[Any], isa: Isa) -> Expr:
    """Create TVM's paged KV cache, float32, with CPU kernels.

    Sliding windows and token trees have no kernels; the cache refuses what would need them.
    """
    layers, heads, kv_heads, head_dim = (
        attention.layers,
        attention.heads,
        attention.kv_heads,
        attention.head_dim,
    )
    dtype = "float32"
    shape = Heads(kv_heads, heads, head_dim)
    (rope,) = set(attention.ropes)
    assert rope is not None

    def add(function: Any) -> Expr:
        return bb.add_func(function, symbol(function))

    def tir(function: Any) -> Expr:
        return relax.Tuple([tvm.ir.StringImm("tirx"), add(function)])

    none = relax.Tuple([])
    arguments = [
        relax.ShapeExpr([*sizes, 1024]),  # the last one: window of sliding layers, of which there are none
        relax.ShapeExpr([0, layers]),
        relax.prim_value(heads),
        relax.prim_value(kv_heads),
        relax.prim_value(head_dim),
        relax.prim_value(head_dim),
        relax.ShapeExpr([int(AttnKind.MHA)] * layers),
        relax.prim_value(False),  # disaggregation
        relax.prim_value(int(RopeMode.NORMAL)),
        relax.prim_value(1),
        relax.prim_value(10000.0),  # unused: the kernel has its own rates
        relax.prim_value(0),  # no extension factors
        relax.op.zeros((), dtype),
        add(kv_pages.append(shape)),
        relax.prim_value(0),  # no MLA
        tir(paged_attention.ragged_prefill(shape, isa)),
        tir(paged_attention.paged_prefill(shape, isa)),
        tir(paged_attention.decode(shape, isa)),
        none,  # prefill, sliding
        none,  # decode, sliding
        none,  # tree
        none,  # tree, paged
        none,  # MLA
        relax.Tuple([add(attention_state.merge(shape))]),
        add(rotary.split_rotary(shape, rope.rates)),
        # Moving pages is rare: TVM's own kernels do.
        bb.add_func(stock._copy_single_page_cpu(kv_heads, sizes[3], head_dim, dtype), "copy_page"),
        bb.add_func(stock._kv_cache_debug_get_kv(layers, kv_heads, head_dim, dtype), "debug_get_kv"),
        bb.add_func(stock._compact_kv_copy_cpu(kv_heads, head_dim, dtype), "compact_pages"),
    ]
    return relax.call_pure_packed(
        "vm.builtin.paged_attention_kv_cache_create", *arguments, ty_args=relax.AnyType()
    )


def scaled(bb: Any, x: Expr, scale: float) -> Expr:
    """x times a constant."""
    return x if scale == 1.0 else bb.emit(relax.op.multiply(x, relax.const(scale, "float32")))


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
