"""Two partial results of attention over different keys become the result over all of them."""

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.heads import Heads
from builder.compile.kernels.vector import PrimFunc


def merge(heads: Heads) -> PrimFunc:
    """f(v [t, heads, dim], s [t, heads], v_other, s_other), all float32; v and s receive the result.

    s are log-sum-exps in base 2. The third and fourth argument are not changed.
    """

    def body() -> None:
        tokens = T.int32()
        shape = (tokens, heads.query, heads.dim)
        v = vec.tensor("v", shape, "float32")
        s = vec.tensor("s", shape[:2], "float32")
        v_other = vec.tensor("v_other", shape, "float32")
        s_other = vec.tensor("s_other", shape[:2], "float32")
        with (
            vec.root(),
            T.parallel(0, tokens) as token,
            T.serial(0, heads.query) as head,
        ):
            mine, other = T.bind(s[token, head]), T.bind(s_other[token, head])
            peak = T.bind(tirx.Max(mine, other))
            weight = vec.exp2(vec.splat(mine - peak))
            weight_other = vec.exp2(vec.splat(other - peak))
            sum_ = T.bind(weight + weight_other)
            with T.serial(0, heads.dim // vec.LANES) as part:
                at = part * vec.LANES
                blend = (
                    vec.load(v, token, head, at) * weight + vec.load(v_other, token, head, at) * weight_other
                )
                vec.store(v, blend / sum_, token, head, at)
            T.buffer_store(s, peak + tirx.log2(vec.lane(sum_, 0)), [token, head])

    return vec.build(f"merge_state_{heads.name}", body)
