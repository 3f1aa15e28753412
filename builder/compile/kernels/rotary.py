"""Rotary position embedding (RoFormer, arXiv:2104.09864) of queries and keys, and the split of qkv.

Rotation pairs dimension i with i + half, as Llama and its relatives do. Frequencies are constants of the
kernel, angles are products in float32, as Hugging Face transformers has them.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.heads import Heads
from builder.compile.kernels.vector import Buffer, Expr, PrimFunc
from builder.errors import UnsupportedError


def split_rotary(heads: Heads, rates: Sequence[float], gain: float = 1.0) -> PrimFunc:
    """f(qkv [t, heads + 2 kv_heads, dim], position_map int32 [t], q, k, v, apply_rope int64), data float32.

    q [t, heads, dim], k and v [t, kv_heads, dim]. `rates` are the angles per position of the rotated
    pairs, at most dim/2 and a multiple of 8 of them, or none; further dimensions pass through. `gain`
    multiplies cosine and sine. apply_rope = 0 only splits.
    """
    check(heads, rates)

    def body() -> None:
        tokens = T.int32()
        qkv = vec.tensor("qkv", (tokens, heads.query + 2 * heads.kv, heads.dim), "float32")
        position_map = vec.tensor("position_map", (tokens,), "int32", elem_offset=T.int32())
        q = vec.tensor("q", (tokens, heads.query, heads.dim), "float32")
        k = vec.tensor("k", (tokens, heads.kv, heads.dim), "float32")
        v = vec.tensor("v", (tokens, heads.kv, heads.dim), "float32")
        apply = T.arg("apply_rope", T.int64())

        def copy(out: Buffer, count: int, first: int, token: Expr, turn: Turn | None) -> None:
            with T.serial(0, count) as head:
                move(
                    heads.dim,
                    lambda column, lanes: vec.load(qkv, token, head + first, column, lanes=lanes),
                    lambda value, column, lanes: vec.store(out, value, token, head, column, lanes=lanes),
                    turn,
                )

        def split(token: Expr) -> None:
            turn = None
            if rates:
                turn = Turn.alloc(len(rates))
                vec.when(
                    apply > 0,
                    lambda: turn.angles(rates, gain, position_map[token]),
                    turn.identity,
                )
            copy(q, heads.query, 0, token, turn)
            copy(k, heads.kv, heads.query, token, turn)
            copy(v, heads.kv, heads.query + heads.kv, token, None)

        with vec.root():
            vec.each_token(tokens, split)

    return vec.build(f"split_rotary_{heads.name}{suffix(rates, gain)}", body)


def check(heads: Heads, rates: Sequence[float]) -> None:
    """Refuse rotary dimensions that do not fill vectors.

    Raises:
        UnsupportedError: names them.
    """
    if rates and (len(rates) % 8 or len(rates) > heads.dim // 2):
        raise UnsupportedError(
            f"{2 * len(rates)} rotary dimensions of {heads.dim}",
            hint="They must be a multiple of 16 up to head_dim.",
        )


def suffix(rates: Sequence[float], gain: float) -> str:
    """What tells kernels of different rotations apart by name."""
    digest = zlib.crc32(np.array([*rates, gain], dtype=np.float32).tobytes())
    return f"_r{2 * len(rates)}_{digest:08x}" if rates else ""


@dataclass(frozen=True)
class Turn:
    """Cosine and sine of a token's position for the rotated pairs of dimensions, `half` of them."""

    half: int
    cos: Buffer
    sin: Buffer

    @classmethod
    def alloc(cls, half: int) -> "Turn":
        """Room for both; call before any branch."""
        return cls(half, vec.local(lanes=half), vec.local(lanes=half))

    @property
    def lanes(self) -> int:
        """Lanes of the vectors that are turned."""
        return math.gcd(self.half, vec.LANES)

    def angles(self, rates: Sequence[float], gain: float, position: Expr) -> None:
        """Fill in the angles at an int32 position."""
        lanes = self.lanes
        where = vec.splat(T.bind(tirx.Cast("float32", position)), lanes)
        for at in range(0, self.half, lanes):
            constants = [vec.f32(rates[at + lane]) for lane in range(lanes)]
            rate = tirx.Shuffle(constants, list(range(lanes)))
            for table, column in zip((self.cos, self.sin), vec.cos_sin(where * rate, lanes), strict=True):
                scaled = column if gain == 1 else column * vec.splat(gain, lanes)
                vec.store(table, scaled, vec.i32(at), lanes=lanes)

    def identity(self) -> None:
        """Fill in what turns nothing."""
        for at in range(0, self.half, self.lanes):
            for table, column in ((self.cos, 1.0), (self.sin, 0.0)):
                vec.store(table, vec.splat(column, self.lanes), vec.i32(at), lanes=self.lanes)


def move(
    dim: int,
    load: Callable[[Expr, int], Expr],
    store: Callable[[Expr, Expr, int], None],
    turn: Turn | None,
) -> None:
    """Copy one head, turned: `load(column, lanes)` gives values, `store(value, column, lanes)` takes them."""
    half = turn.half if turn else 0
    if turn:
        for at in range(0, half, turn.lanes):
            low = T.bind(load(vec.i32(at), turn.lanes))
            high = T.bind(load(vec.i32(half + at), turn.lanes))
            cos, sin = (vec.load(table, vec.i32(at), lanes=turn.lanes) for table in (turn.cos, turn.sin))
            turned = T.bind(low * cos - high * sin), T.bind(high * cos + low * sin)
            store(turned[0], vec.i32(at), turn.lanes)
            store(turned[1], vec.i32(half + at), turn.lanes)
    lanes = math.gcd(2 * half, vec.LANES)
    for at in range(2 * half, dim, lanes):
        store(load(vec.i32(at), lanes), vec.i32(at), lanes)
