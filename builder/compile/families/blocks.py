"""What the graphs of all families share: weights, attention over the paged KV cache, MLC's functions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import tvm
from tvm import relax, te, tirx
from tvm.relax.frontend.nn.llm import kv_cache as stock
from tvm.relax.frontend.nn.llm.kv_cache import AttnKind, RopeMode

from builder.compile.families.parameters import Matrix, Parameters
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


def emit_functions(bb: Any, family: Family, parameters: Parameters, isa: Isa) -> None:
    """Add MLC's functions of a chat model to `bb`."""
    _Functions(bb, family, parameters, isa).emit()


class _Functions:
    """Names and signatures are MLC's: a program that drives its libraries drives these, given packed weights."""

    def __init__(self, bb: Any, family: Family, parameters: Parameters, isa: Isa) -> None:
        self.bb = bb
        self.family = family
        self.isa = isa
        self.packed_type = relax.TupleType(
            [relax.TensorType(entry.shape, entry.dtype) for entry in parameters.packed]
        )

    def emit(self) -> None:
        n, b = tirx.Var("seq_len", "int64"), tirx.Var("batch_size", "int64")
        rows = self.layers("_layers", n)
        row = self.layers("_layers_one", 1)
        self.embed()
        self.forward("prefill", rows, (1, n), last=True)
        self.forward("decode", row, (1, 1))
        self.forward("batch_prefill", rows, (1, n), select=True)
        self.forward("batch_decode", rows, (n, 1))
        self.forward("batch_verify", rows, (1, n))
        self.forward("prefill_to_last_hidden_states", rows, (1, n), hidden=True)
        self.forward("decode_to_last_hidden_states", row, (1, 1), hidden=True)
        self.forward("batch_prefill_to_last_hidden_states", rows, (1, n), hidden=True)
        self.forward("batch_decode_to_last_hidden_states", rows, (n, 1), hidden=True)
        self.forward("batch_verify_to_last_hidden_states", rows, (1, n), hidden=True)
        self.get_logits(n)
        self.select_hidden_states(n, b)
        self.softmax(b)
        self.create_cache()

    def weights(self) -> tuple[Expr, Weights]:
        packed = relax.Var("packed_params", self.packed_type)
        return packed, Weights(self.bb, packed)

    def rows(self, x: Expr, count: Any) -> Expr:
        return self.bb.emit(relax.op.reshape(x, (count, self.family.hidden)))

    def layers(self, name: str, rows: Any) -> Expr:
        bb = self.bb
        x = relax.Var("x", relax.TensorType((rows, self.family.hidden), "float32"))
        kv = relax.Var("paged_kv_cache", relax.AnyType())
        packed, weights = self.weights()
        with bb.function(name, [x, kv, packed], private=True):
            with bb.dataflow():
                y = bb.emit_output(self.family.layers(weights, x, kv))
            function = bb.emit_func_output(y)
        return function

    def embed(self) -> None:
        bb = self.bb
        n = tirx.Var("seq_len", "int64")
        ids = relax.Var("input_ids", relax.TensorType((n,), "int32"))
        packed, weights = self.weights()
        with bb.function("embed", [ids, packed]):
            with bb.dataflow():
                y = bb.emit_output(self.family.embed(weights, ids))
            bb.emit_func_output(y)

    def forward(
        self,
        name: str,
        layers: Expr,
        shape: tuple[Any, Any],
        *,
        last: bool = False,
        select: bool = False,
        hidden: bool = False,
    ) -> None:
        """`last`: logits of the last row only; `select`: of rows `logit_positions`; `hidden`: no logits."""
        bb, family = self.bb, self.family
        # Every function has symbols of its own.
        symbols = {d: tirx.Var(d.name, "int64") for d in shape if isinstance(d, tirx.Var)}
        lead = tuple(symbols.get(d, d) for d in shape)
        count = next(iter(symbols.values()), 1)
        b = tirx.Var("batch_size", "int64")
        x = relax.Var("input_embeds", relax.TensorType((*lead, family.hidden), "float32"))
        positions = relax.Var("logit_positions", relax.TensorType((b,), "int32"))
        kv = relax.Var("paged_kv_cache", relax.AnyType())
        packed, weights = self.weights()
        arguments = [x, positions, kv, packed] if select else [x, kv, packed]
        with bb.function(name, arguments):
            with bb.dataflow():
                y = bb.emit(relax.Call(layers, [self.rows(x, count), kv, packed]))
                if last:
                    y, lead = bb.emit_te(_last_row, y), (1, 1)
                if select:
                    y, lead = bb.emit(relax.op.take(y, positions, axis=0)), (1, b)
                if hidden:
                    y, width = family.normalise(weights, y), family.hidden
                else:
                    y, width = family.logits(weights, y, normalised=False), family.vocab
                y = bb.emit(relax.op.reshape(y, (*lead, width)))
                result = bb.emit_output(relax.Tuple([y, kv]))
            bb.emit_func_output(result)

    def get_logits(self, n: Any) -> None:
        bb = self.bb
        n = tirx.Var("seq_len", "int64")
        x = relax.Var("hidden_states", relax.TensorType((n, self.family.hidden), "float32"))
        packed, weights = self.weights()
        with bb.function("get_logits", [x, packed]):
            with bb.dataflow():
                y = bb.emit_output(self.family.logits(weights, x, normalised=True))
            bb.emit_func_output(y)

    def select_hidden_states(self, n: Any, b: Any) -> None:
        bb = self.bb
        n, b = tirx.Var("seq_len", "int64"), tirx.Var("batch_size", "int64")
        x = relax.Var("hidden_states", relax.TensorType((n, self.family.hidden), "float32"))
        positions = relax.Var("logit_positions", relax.TensorType((b,), "int32"))
        packed, _ = self.weights()
        with bb.function("batch_select_last_hidden_states", [x, positions, packed]):
            with bb.dataflow():
                y = bb.emit_output(relax.op.take(x, positions, axis=0))
            bb.emit_func_output(y)

    def softmax(self, b: Any) -> None:
        bb = self.bb
        b = tirx.Var("batch_size", "int64")
        logits = relax.Var("logits", relax.TensorType((b, 1, self.family.vocab), "float32"))
        temperature = relax.Var("temperature", relax.TensorType((b,), "float32"))
        with bb.function("softmax_with_temperature", [logits, temperature]):
            with bb.dataflow():
                t = bb.emit(relax.op.reshape(temperature, (b, 1, 1)))
                y = bb.emit_output(relax.op.nn.softmax(relax.op.divide(logits, t), axis=-1))
            bb.emit_func_output(y)

    def create_cache(self) -> None:
        bb = self.bb
        names = (
            "max_batch_size",
            "max_total_seq_len",
            "prefill_chunk_size",
            "page_size",
            "support_sliding_window",
        )
        sizes = [tirx.Var(name, "int64") for name in names]
        arguments = [relax.Var(f"{size.name}_", relax.ShapeType([size])) for size in sizes]
        with bb.function("create_tir_paged_kv_cache", arguments):
            with bb.dataflow():
                result = bb.emit_output(paged_kv_cache(bb, self.family.attention, sizes, self.isa))
            bb.emit_func_output(result)


def _last_row(x: Any) -> Any:
    return te.compute((1, x.shape[1]), lambda _, j: x[x.shape[0] - 1, j], "last_row")


def emit_metadata(bb: Any, metadata: Mapping[str, Any]) -> None:
    """Add `_metadata() -> str`, a JSON object."""
    with bb.function("_metadata", []):
        bb.emit_func_output(tvm.ir.StringImm(json.dumps(metadata)))
