"""What the graphs of all families share: weights and attention over the paged KV cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import tvm
from tvm import relax
from tvm.relax.frontend.nn.llm import kv_cache as stock
from tvm.relax.frontend.nn.llm.kv_cache import AttnKind, RopeMode

from builder.compile.families.parameters import Matrix
from builder.compile.kernels import attention_state, kv_pages, paged_attention, rotary
from builder.compile.kernels.attention import Heads
from builder.compile.kernels.isa import Isa
from builder.compile.operators import symbol

Expr = Any  # tvm.relax.Expr; TVM has no type information


@dataclass(frozen=True)
class Attention:
    """Shapes and position encoding of a model's attention.

    `rope_scaling` is MLC's object ({"rope_type": "llama3", …}); empty for none.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    rope_scaling: Mapping[str, Any]


@dataclass(frozen=True)
class Weights:
    """The `packed_params` argument of one function, taken apart on use."""

    bb: Any
    packed: Expr

    def vector(self, index: int) -> Expr:
        """A norm weight or bias."""
        return self.bb.emit(relax.TupleGetItem(self.packed, index))

    def matrix(self, matrix: Matrix) -> list[Expr]:
        """The packed tensors of a matrix."""
        return [self.vector(index) for index in matrix.entries]


class Family(Protocol):
    """A model's graph. Activations are float32 rows `[m, hidden]`; `kv` is the paged KV cache."""

    hidden: int
    vocab: int
    attention: Attention

    def embed(self, weights: Weights, ids: Expr) -> Expr:
        """Embeddings of `ids` int32 `[n]`."""
        ...

    def layers(self, weights: Weights, x: Expr, kv: Expr) -> Expr:
        """All transformer layers, up to but without the last norm."""
        ...

    def normalise(self, weights: Weights, x: Expr) -> Expr:
        """The last norm."""
        ...

    def logits(self, weights: Weights, x: Expr, *, normalised: bool) -> Expr:
        """float32 `[m, vocab]`; `normalised` tells whether `x` went through the last norm."""
        ...


def attend(bb: Any, attention: Attention, layer: int, qkv: Expr, kv: Expr) -> Expr:
    """Append keys and values of `qkv` `[m, (heads + 2·kv_heads)·head_dim]` to the cache and attend to all of
    each sequence. Returns `[m, heads·head_dim]`.
    """
    rows = qkv.ty.shape[0]
    heads, head_dim = attention.heads, attention.head_dim
    fused = bb.emit(relax.op.reshape(qkv, (rows, heads + 2 * attention.kv_heads, head_dim)))
    out = bb.emit(
        relax.call_dps_packed(
            "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
            [kv, relax.prim_value(layer), relax.prim_value(head_dim**-0.5), fused],
            out_ty=relax.TensorType((rows, heads, head_dim), "float32"),
        )
    )
    return bb.emit(relax.op.reshape(out, (rows, heads * head_dim)))


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
    rates = rotary.frequencies(attention.rope_theta, head_dim, attention.rope_scaling)

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
        relax.prim_value(attention.rope_theta),
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
        add(rotary.split_rotary(shape, rates)),
        # Moving pages is rare: TVM's own kernels do.
        bb.add_func(stock._copy_single_page_cpu(kv_heads, sizes[3], head_dim, dtype), "copy_page"),
        bb.add_func(stock._kv_cache_debug_get_kv(layers, kv_heads, head_dim, dtype), "debug_get_kv"),
        bb.add_func(stock._compact_kv_copy_cpu(kv_heads, head_dim, dtype), "compact_pages"),
    ]
    return relax.call_pure_packed(
        "vm.builtin.paged_attention_kv_cache_create", *arguments, ty_args=relax.AnyType()
    )
