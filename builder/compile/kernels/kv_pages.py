"""Writing new keys and values into the pages of the KV cache."""

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from builder.compile.kernels import vector as vec
from builder.compile.kernels.heads import PAGE, Heads
from builder.compile.kernels.vector import Expr, PrimFunc


def append(heads: Heads) -> PrimFunc:
    """f(pages [p, 2, kv_heads, 16, dim], k [t, kv_heads, dim], v [t, kv_heads, dim], position_map int32 [t]).

    position_map holds page * 16 + offset of every token, or -1 for one that is not stored. Data are float32.
    """

    def body() -> None:
        tokens = T.int32()
        # TVM passes one layer of a larger tensor.
        pages = vec.tensor(
            "pages",
            (T.int32(), 2, heads.kv, PAGE, heads.dim),
            "float32",
            elem_offset=T.int64(),
        )
        keys = vec.tensor("k", (tokens, heads.kv, heads.dim), "float32")
        values = vec.tensor("v", (tokens, heads.kv, heads.dim), "float32")
        position_map = vec.tensor("position_map", (tokens,), "int32", elem_offset=T.int32())

        def store(token: Expr) -> None:
            position = T.bind(position_map[token])

            def copy() -> None:
                page = vec.fixed(tirx.floordiv(position, PAGE))
                offset = vec.fixed(tirx.floormod(position, PAGE))
                with (
                    T.serial(0, heads.kv) as head,
                    T.serial(0, heads.dim // vec.LANES) as part,
                ):
                    at = part * vec.LANES
                    for which, source in enumerate((keys, values)):
                        vec.store(
                            pages,
                            vec.load(source, token, head, at),
                            page,
                            vec.i32(which),
                            head,
                            offset,
                            at,
                        )

            vec.when(position >= 0, copy)

        with vec.root():
            vec.each_token(tokens, store)

    return vec.build(f"kv_append_{heads.name}", body)
