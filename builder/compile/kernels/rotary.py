"""Rotary position embedding (RoFormer, arXiv:2104.09864) of queries and keys, and the split of qkv.

Rotation pairs dimension i with i + half, as Llama and its relatives do; frequencies are computed here once
and become constants of the kernel, angles are products in float32: both as Hugging Face transformers has
them.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.attention import Heads
from builder.compile.kernels.vector import Buffer, Expr, PrimFunc
from builder.errors import UnsupportedError


def frequencies(theta: float, dim: int, scaling: Mapping[str, Any] | None = None) -> tuple[float, ...]:
    """Angles per position of the dim/2 pairs, each exactly a float32.

    `scaling` is the model's rope_scaling: absent, {"rope_type": "default"}, "linear" (factor), or "llama3"
    (factor, low_freq_factor, high_freq_factor, original_max_position_embeddings; Llama 3.1's rule).

    Raises:
        UnsupportedError: another rope_type, naming it.
    """
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    plain = (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if scaling is None or kind == "default":
        return tuple(float(f) for f in plain)
    if kind == "linear":
        return tuple(float(f) for f in plain / np.float32(scaling["factor"]))
    if kind != "llama3":
        raise UnsupportedError(
            f"rope_scaling type {kind!r} is not supported",
            hint="Supported: default, linear, llama3.",
        )
    factor, low, high = (
        scaling["factor"],
        scaling["low_freq_factor"],
        scaling["high_freq_factor"],
    )
    context = scaling["original_max_position_embeddings"]
    turns = context * plain.astype(np.float64) / (2 * math.pi)
    # Fewer turns than `low` over the original context: interpolated; more than `high`: kept; a ramp in
    # between.
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return tuple(float(f) for f in ((1 - kept) * plain / factor + kept * plain).astype(np.float32))


def split_rotary(heads: Heads, rates: Sequence[float]) -> PrimFunc:
    """f(qkv [t, heads + 2 kv_heads, dim], position_map int32 [t], q, k, v, apply_rope int64), data float32.

    q [t, heads, dim], k and v [t, kv_heads, dim]. `rates` are the `frequencies` of the rotated dimensions,
    at most dim/2 and a multiple of 8 of them; further dimensions pass through. apply_rope = 0 only splits.
    """
    half = len(rates)
    if half % 8 or not 0 < half <= heads.dim // 2:
        raise UnsupportedError(
            f"{2 * half} rotary dimensions of {heads.dim}",
            hint="They must be a multiple of 16 up to head_dim.",
        )
    lanes = math.gcd(half, vec.LANES)

    def body() -> None:
        tokens = T.int32()
        qkv = vec.tensor("qkv", (tokens, heads.query + 2 * heads.kv, heads.dim), "float32")
        position_map = vec.tensor("position_map", (tokens,), "int32", elem_offset=T.int32())
        q = vec.tensor("q", (tokens, heads.query, heads.dim), "float32")
        k = vec.tensor("k", (tokens, heads.kv, heads.dim), "float32")
        v = vec.tensor("v", (tokens, heads.kv, heads.dim), "float32")
        apply = T.arg("apply_rope", T.int64())

        def head_loop(out: Buffer, count: int, first: int, token: Expr, turn: Any) -> None:
            with T.serial(0, count) as head:
                for at in range(0, half, lanes):
                    low = T.bind(vec.load(qkv, token, head + first, vec.i32(at), lanes=lanes))
                    high = T.bind(vec.load(qkv, token, head + first, vec.i32(half + at), lanes=lanes))
                    if turn is not None:
                        cos, sin = (vec.load(table, vec.i32(at), lanes=lanes) for table in turn)
                        low, high = (
                            T.bind(low * cos - high * sin),
                            T.bind(high * cos + low * sin),
                        )
                    vec.store(out, low, token, head, vec.i32(at), lanes=lanes)
                    vec.store(out, high, token, head, vec.i32(half + at), lanes=lanes)
                for at in range(2 * half, heads.dim, 8):
                    rest = vec.load(qkv, token, head + first, vec.i32(at), lanes=8)
                    vec.store(out, rest, token, head, vec.i32(at), lanes=8)

        def turn_token(token: Expr) -> None:
            turn = vec.local(lanes=half), vec.local(lanes=half)

            def angles() -> None:
                position = tirx.Cast("float32", position_map[token])
                for at in range(0, half, lanes):
                    rate = tirx.Shuffle(
                        [vec.f32(rates[at + lane]) for lane in range(lanes)],
                        list(range(lanes)),
                    )
                    for table, column in zip(
                        turn,
                        vec.cos_sin(vec.splat(position, lanes) * rate, lanes),
                        strict=True,
                    ):
                        vec.store(table, column, vec.i32(at), lanes=lanes)

            def identity() -> None:
                for at in range(0, half, lanes):
                    for table, column in zip(turn, (1.0, 0.0), strict=True):
                        vec.store(table, vec.splat(column, lanes), vec.i32(at), lanes=lanes)

            vec.when(apply > 0, angles, identity)
            head_loop(q, heads.query, 0, token, turn)
            head_loop(k, heads.kv, heads.query, token, turn)
            head_loop(v, heads.kv, heads.query + heads.kv, token, None)

        with vec.root():
            vec.each_token(tokens, turn_token)

    digest = zlib.crc32(np.array(rates, dtype=np.float32).tobytes())
    return vec.build(f"split_rotary_{heads.name}_r{2 * half}_{digest:08x}", body)
