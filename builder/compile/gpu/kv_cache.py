"""Attention on a GPU: TVM's own paged KV cache with TVM's own kernels.

The graph rotates queries and keys before the cache gets them: TVM's kernels know fewer position encodings.
"""

from collections.abc import Sequence
from typing import Any

from tvm import relax
from tvm.relax.frontend.nn.llm.kv_cache import RopeMode, TIRPagedKVCache

from builder.compile.families.decoder import Attention
from builder.compile.operators import Expr
from builder.errors import UnsupportedError

# TVM's kernels cut heads into tiles of so many dimensions.
HEAD_DIM = 16


def check(attention: Attention) -> None:
    """Refuse attention that TVM's kernels do not compute, or, as with windows, compute wrongly.

    Raises:
        UnsupportedError: names what they lack.
    """
    lacks = {
        f"attention with a soft cap of {attention.softcap}": attention.softcap is not None,
        "attention with sliding windows": any(window is not None for window in attention.windows),
        f"heads of {attention.head_dim} dimensions": attention.head_dim % HEAD_DIM != 0,
    }
    for feature, lacking in lacks.items():
        if lacking:
            raise UnsupportedError(
                f"{feature} has no GPU kernels", hint="Compile the model for the processor: --target cpu."
            )


def attend(bb: Any, attention: Attention, layer: int, fused: Expr, kv: Expr) -> Expr:
    """Append keys and values of `fused` `[m, heads + 2·kv_heads, head_dim]` to the cache and attend.

    Returns `[m, heads, head_dim]`.
    """
    shape = (fused.ty.shape[0], attention.heads, attention.head_dim)
    return bb.emit(
        relax.call_dps_packed(
            "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
            [kv, relax.prim_value(layer), relax.prim_value(attention.scale), fused],
            out_ty=relax.TensorType(shape, fused.ty.dtype),
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


def create(attention: Attention, sizes: Sequence[Any], dtype: str, target: Any) -> Expr:
    """Create the cache for the five sizes of `create_tir_paged_kv_cache`; pages hold `dtype`."""
    cache = TIRPagedKVCache(
        "mha",
        *sizes,
        layer_partition=relax.ShapeExpr([0, attention.layers]),
        num_hidden_layers=attention.layers,
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.kv_heads,
        qk_head_dim=attention.head_dim,
        v_head_dim=attention.head_dim,
        mla_original_qk_head_dim=0,
        mla_original_v_head_dim=0,
        rope_mode=RopeMode.NONE,
        rope_scale=1,
        rope_theta=10000,
        rope_scaling={},
        rope_ext_factors=relax.prim_value(0),
        rotary_dim=attention.head_dim,
        enable_disaggregation=False,
        dtype=dtype,
        target=target,
    )
    return cache._expr
