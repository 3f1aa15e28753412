"""What queries and keys go through on their way to the KV cache, where the cache does not do it.

A norm of each head (Qwen 3, Gemma 3), and a rotation that not all layers share: the cache has one for all.
"""

from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.heads import Heads
from builder.compile.kernels.rotary import Turn, check, move, suffix
from builder.compile.kernels.vector import Buffer, Expr, PrimFunc


def finish(
    heads: Heads,
    *,
    eps: float | None = None,
    rates: Sequence[float] = (),
    gain: float = 1.0,
    fused: bool = True,
) -> PrimFunc:
    """f(qkv, [q_gamma [dim], k_gamma [dim],] [positions int32 [t],] out [t, heads + 2 kv_heads, dim]).

    qkv is one matrix [t, heads + 2 kv_heads, dim], or with fused=False the three arguments q [t, heads, dim],
    k and v [t, kv_heads, dim]; out is the first form. Data are float32.

    Args:
        eps: that of the RMS norm over each query and key head; None for no norm and no gammas.
        rates, gain: rotation by `positions` as in `rotary.split_rotary`; without rates there is neither.
    """
    check(heads, rates)

    def body() -> None:
        tokens = T.int32()
        parts = {"q": heads.query, "k": heads.kv, "v": heads.kv}
        if fused:
            qkv = vec.tensor("qkv", (tokens, sum(parts.values()), heads.dim), "float32")
            sources = dict.fromkeys(parts, qkv)
        else:
            sources = {name: vec.tensor(name, (tokens, n, heads.dim), "float32") for name, n in parts.items()}
        gammas: dict[str, Buffer] = {}
        if eps is not None:
            gammas = {name: vec.tensor(f"{name}_gamma", (heads.dim,), "float32") for name in ("q", "k")}
        positions = vec.tensor("positions", (tokens,), "int32", elem_offset=T.int32()) if rates else None
        out = vec.tensor("out", (tokens, sum(parts.values()), heads.dim), "float32")

        def convert(name: str, start: int, turn: Turn | None, token: Expr, head: Expr) -> None:
            source, row = sources[name], head + start if fused else head
            inverse = None
            if eps is not None and name != "v":
                inverse = _inverse_norm(source, token, row, heads.dim, eps)

            def load(column: Expr, lanes: int) -> Expr:
                value = vec.load(source, token, row, column, lanes=lanes)
                if inverse is None:
                    return value
                return value * vec.splat(inverse, lanes) * vec.load(gammas[name], column, lanes=lanes)

            def store(value: Expr, column: Expr, lanes: int) -> None:
                vec.store(out, value, token, head + start, column, lanes=lanes)

            move(heads.dim, load, store, turn if name != "v" else None)

        def each(token: Expr) -> None:
            turn = None
            if positions is not None:
                turn = Turn.alloc(len(rates))
                turn.angles(rates, gain, positions[token])
            start = 0
            for name, count in parts.items():
                with T.serial(0, count) as head:
                    convert(name, start, turn, token, head)
                start += count

        with vec.root():
            vec.each_token(tokens, each)

    name = f"qkv_{heads.name}" + ("" if fused else "_apart")
    name += "" if eps is None else f"_eps{vec.digits(eps)}"
    return vec.build(name + suffix(rates, gain), body)


def _inverse_norm(source: Buffer, token: Expr, head: Expr, dim: int, eps: float) -> Expr:
    """1 / sqrt(mean square + eps) of a head."""
    sum_ = vec.local()
    vec.assign(sum_, vec.zero())
    for at in range(0, dim, vec.LANES):
        part = T.bind(vec.load(source, token, head, vec.i32(at)))
        vec.assign(sum_, vec.fma(part, part, vec.value(sum_)))
    mean = vec.total(vec.value(sum_)) * vec.f32(1.0 / dim)
    return T.bind(vec.f32(1.0) / tirx.sqrt(mean + vec.f32(eps)))
