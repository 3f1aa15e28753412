"""Attention over TVM's paged KV cache with CPU kernels: creating the cache, and a layer's way through it.

The cache rotates queries and keys itself where all layers rotate alike; elsewhere the graph does before the
cache gets them. Windows and soft caps are the kernels' business: the cache keeps every position, so that
chats can be forked, cut and continued as those of any other model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax.frontend.nn.llm import kv_cache as stock
from tvm.relax.frontend.nn.llm.kv_cache import AttnKind, RopeMode

from builder.compile.families.decoder import Attention
from builder.compile.families.rope import Rope
from builder.compile.kernels import attention_state, kv_pages, paged_attention, qkv, rotary
from builder.compile.kernels.heads import Heads, Scoring
from builder.compile.kernels.isa import Isa
from builder.compile.operators import Expr, Kernel
from builder.errors import UnsupportedError

DTYPE = "float32"


@dataclass(frozen=True)
class Plan:
    """How a model's attention maps to the cache and its kernels.

    Attributes:
        shared: the rotation that the cache does in all layers; None where the graph rotates, or nobody.
        scoring: window and soft cap, which the kernels know.
    """

    attention: Attention
    heads: Heads
    shared: Rope | None
    scoring: Scoring

    @classmethod
    def of(cls, attention: Attention) -> "Plan":
        """The plan for a model.

        Raises:
            UnsupportedError: layers with windows of different sizes, or a rotation without vectors.
        """
        heads = Heads(attention.kv_heads, attention.heads, attention.head_dim)
        windows = {window for window in attention.windows if window is not None}
        if len(windows) > 1:
            raise UnsupportedError(f"layers with windows of {sorted(windows)} tokens are not supported")
        ropes = set(attention.ropes)
        for rope in ropes - {None}:
            rotary.check(heads, rope.rates if rope else ())
        return cls(
            attention,
            heads,
            shared=ropes.pop() if len(ropes) == 1 else None,
            scoring=Scoring(window=windows.pop() if windows else None, cap=attention.softcap),
        )

    def rotation(self, layer: int) -> Rope | None:
        """What the graph itself has to rotate before the cache gets it."""
        return None if self.shared else self.attention.ropes[layer]

    def scale(self, layer: int) -> float:
        """What the kernels are told: negative where the layer has the window."""
        return self.attention.scale * (1 if self.attention.windows[layer] is None else -1)


def attend(bb: Any, plan: Plan, layer: int, fused: Expr, kv: Expr) -> Expr:
    """Append keys and values of `fused` `[m, heads + 2·kv_heads, head_dim]` to the cache and attend.

    Returns `[m, heads, head_dim]`.
    """
    shape = (fused.ty.shape[0], plan.heads.query, plan.heads.dim)
    return bb.emit(
        relax.call_dps_packed(
            "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
            [kv, relax.prim_value(layer), relax.prim_value(plan.scale(layer)), fused],
            out_ty=relax.TensorType(shape, DTYPE),
        )
    )


def positions(bb: Any, rows: Any, kv: Expr) -> Expr:
    """Positions of the tokens of this forward pass in their sequences, int32 `[rows]`."""
    return bb.emit(
        relax.call_pure_packed(
            "vm.builtin.attention_kv_cache_get_query_positions",
            kv,
            ty_args=relax.TensorType((rows,), "int32"),
        )
    )


def finish(plan: Plan, layer: int, *, eps: float | None, fused: bool) -> Kernel | None:
    """The kernel between projections and cache (`qkv.finish`); None where there is nothing to do."""
    rope = plan.rotation(layer)
    if fused and eps is None and rope is None:
        return None
    rates, gain = (rope.rates, rope.gain) if rope else ((), 1.0)
    return qkv.finish(plan.heads, eps=eps, rates=rates, gain=gain, fused=fused)


def create(bb: Any, plan: Plan, sizes: Sequence[Any], isa: Isa) -> Expr:
    """Create the cache, float32. Token trees have no kernels; the cache refuses what would need them."""
    heads, layers, rope = plan.heads, plan.attention.layers, plan.shared

    def add(function: Kernel) -> Expr:
        return bb.add_func(function, str(function.attrs["global_symbol"]))

    def tir(function: Kernel) -> Expr:
        return relax.Tuple([tvm.ir.StringImm("tirx"), add(function)])

    none = relax.Tuple([])
    split = rotary.split_rotary(heads, rope.rates, rope.gain) if rope else rotary.split_rotary(heads, ())
    arguments = [
        relax.ShapeExpr([*sizes, 1024]),  # the last one: window of the cache's own sliding layers, unused
        relax.ShapeExpr([0, layers]),
        relax.prim_value(heads.query),
        relax.prim_value(heads.kv),
        relax.prim_value(heads.dim),
        relax.prim_value(heads.dim),
        relax.ShapeExpr([int(AttnKind.MHA)] * layers),
        relax.prim_value(False),  # disaggregation
        relax.prim_value(int(RopeMode.NORMAL if rope else RopeMode.NONE)),
        relax.prim_value(1),
        relax.prim_value(10000.0),  # base, which the kernels do not read: their rates are constants
        relax.prim_value(0),  # no extension factors
        relax.op.zeros((), DTYPE),
        add(kv_pages.append(heads)),
        relax.prim_value(0),  # no MLA
        tir(paged_attention.ragged_prefill(heads, isa, plan.scoring)),
        tir(paged_attention.paged_prefill(heads, isa, plan.scoring)),
        tir(paged_attention.decode(heads, isa, plan.scoring)),
        none,  # prefill, sliding
        none,  # decode, sliding
        none,  # tree
        none,  # tree, paged
        none,  # MLA
        relax.Tuple([add(attention_state.merge(heads))]),
        add(split),
        # Moving pages is rare: TVM's own kernels do.
        bb.add_func(stock._copy_single_page_cpu(heads.kv, sizes[3], heads.dim, DTYPE), "copy_page"),
        bb.add_func(stock._kv_cache_debug_get_kv(layers, heads.kv, heads.dim, DTYPE), "debug_get_kv"),
        bb.add_func(stock._compact_kv_copy_cpu(heads.kv, heads.dim, DTYPE), "compact_pages"),
    ]
    return relax.call_pure_packed(
        "vm.builtin.paged_attention_kv_cache_create", *arguments, ty_args=relax.AnyType()
    )
