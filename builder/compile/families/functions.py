"""MLC's functions of a chat model: a program that drives MLC's libraries drives these, given packed weights.

`P` is `packed_params`, `h` the hidden size, `V` the vocabulary. Logits and hidden states are float32.

    embed(int32 [n], P) -> [n, h]
    prefill([1, n, h], kv, P), decode([1, 1, h], kv, P) -> ([1, 1, V], kv), logits of the last position
    batch_prefill([1, n, h], logit_positions int32 [b], kv, P) -> ([1, b, V], kv), logits of those positions
    batch_decode([b, 1, h], kv, P) -> ([b, 1, V], kv)
    batch_verify([1, n, h], kv, P) -> ([1, n, V], kv)
    each of the five with _to_last_hidden_states: the normalised states of all positions instead of logits
    get_logits([n, h], P) -> [n, V]
    batch_select_last_hidden_states([n, h], int32 [b], P) -> [b, h]
    alloc_embedding_tensor() -> [prefill_chunk_size, h]
    softmax_with_temperature([b, 1, V], [b]) -> [b, 1, V]
    create_tir_paged_kv_cache(max_batch_size, max_total_seq_len, prefill_chunk_size, page_size,
        support_sliding_window) -> kv, each argument a shape of one dimension
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import relax, te, tirx

from builder.compile.families.blocks import Family, Weights, paged_kv_cache
from builder.compile.families.parameters import Parameters
from builder.compile.kernels.isa import Isa

Expr = Any  # tvm.relax.Expr; TVM has no type information


@dataclass(frozen=True)
class Limits:
    """Rows of the largest prefill, and sequences of the largest batch: what memory is planned for."""

    chunk: int
    batch: int


def emit_functions(bb: Any, family: Family, parameters: Parameters, isa: Isa, limits: Limits) -> None:
    """Add all of them to the block builder."""
    emitter = _Emitter(bb, family, parameters, limits)
    emitter.embed()
    # The layers are functions of their own, so that their code exists once for each way of planning memory.
    many = emitter.layers("layers_prefill", _symbol("seq_len"))
    few = emitter.layers("layers_batch", _symbol("batch_size"))
    single = emitter.layers("layers_one", 1)
    for suffix, hidden in (("", False), ("_to_last_hidden_states", True)):
        emitter.forward("prefill" + suffix, many, "prefill", hidden, rows=None if hidden else "last")
        emitter.forward("decode" + suffix, single, "one", hidden)
        emitter.forward("batch_prefill" + suffix, many, "prefill", hidden, rows=None if hidden else "select")
        emitter.forward("batch_decode" + suffix, few, "batch", hidden)
        emitter.forward("batch_verify" + suffix, many, "prefill", hidden)
    emitter.get_logits()
    emitter.select_hidden_states()
    emitter.alloc_embedding_tensor()
    emitter.softmax()
    emitter.create_cache(isa)


@dataclass(frozen=True)
class _Emitter:
    bb: Any
    family: Family
    parameters: Parameters
    limits: Limits

    def define(
        self, name: str, arguments: list[Expr], body: Callable[[], Expr], *, private: bool = False
    ) -> Expr:
        """Add a function; return its global variable. Symbols' bounds let TVM plan memory once."""
        bounds = {"seq_len": self.limits.chunk, "batch_size": self.limits.batch}
        attributes = {"tir_var_upper_bound": bounds}
        with self.bb.function(name, arguments, attrs=attributes, private=private):
            with self.bb.dataflow():
                result = self.bb.emit_output(body())
            return self.bb.emit_func_output(result)

    def weights(self) -> tuple[Expr, Weights]:
        """A `packed_params` argument."""
        types = [relax.TensorType(entry.shape, entry.dtype) for entry in self.parameters.packed]
        packed = relax.Var("packed_params", relax.TupleType(types))
        return packed, Weights(self.bb, packed)

    def reshape(self, x: Expr, *shape: Any) -> Expr:
        return self.bb.emit(relax.op.reshape(x, shape))

    def embed(self) -> None:
        packed, weights = self.weights()
        ids = _tensor("input_ids", (_symbol("seq_len"),), "int32")
        self.define("embed", [ids, packed], lambda: self.family.embed(weights, ids))

    def layers(self, name: str, rows: Any) -> Expr:
        packed, weights = self.weights()
        x, kv = _tensor("x", (rows, self.family.hidden)), _cache()
        return self.define(name, [x, kv, packed], lambda: self.family.layers(weights, x, kv), private=True)

    def forward(self, name: str, layers: Expr, shape: str, hidden: bool, rows: str | None = None) -> None:
        """A forward pass over inputs of `shape` "prefill" [1, n, h], "batch" [b, 1, h] or "one" [1, 1, h].

        `rows` goes on with the "last" row only, or those that an argument selects.
        """
        family = self.family
        lead: tuple[Any, Any] = {
            "prefill": (1, _symbol("seq_len")),
            "batch": (_symbol("batch_size"), 1),
            "one": (1, 1),
        }[shape]
        x, kv = _tensor("input_embeds", (*lead, family.hidden)), _cache()
        chosen = _symbol("batch_size")
        positions = _tensor("logit_positions", (chosen,), "int32")
        packed, weights = self.weights()

        def body() -> Expr:
            count = lead[1] if shape == "prefill" else lead[0]
            y = self.bb.emit(relax.Call(layers, [self.reshape(x, count, family.hidden), kv, packed]))
            out = lead
            if rows == "last":
                y, out = self.bb.emit_te(_last_row, y), (1, 1)
            elif rows == "select":
                y, out = self.bb.emit_te(_select_rows, y, positions), (1, chosen)
            if hidden:
                y, width = family.normalise(weights, y), family.hidden
            else:
                y, width = family.logits(weights, y, normalised=False), family.vocab
            return relax.Tuple([self.reshape(y, *out, width), kv])

        self.define(name, [x, positions, kv, packed] if rows == "select" else [x, kv, packed], body)

    def get_logits(self) -> None:
        packed, weights = self.weights()
        x = _tensor("hidden_states", (_symbol("seq_len"), self.family.hidden))
        self.define("get_logits", [x, packed], lambda: self.family.logits(weights, x, normalised=True))

    def select_hidden_states(self) -> None:
        packed, _ = self.weights()
        x = _tensor("hidden_states", (_symbol("seq_len"), self.family.hidden))
        positions = _tensor("logit_positions", (_symbol("batch_size"),), "int32")
        name = "batch_select_last_hidden_states"
        self.define(name, [x, positions, packed], lambda: self.bb.call_te(_select_rows, x, positions))

    def alloc_embedding_tensor(self) -> None:
        shape = relax.ShapeExpr([self.limits.chunk, self.family.hidden])
        with self.bb.function("alloc_embedding_tensor", []):
            self.bb.emit_func_output(self.bb.emit(relax.op.builtin.alloc_tensor(shape, "float32", 0)))

    def softmax(self) -> None:
        b = _symbol("batch_size")
        logits, temperature = _tensor("logits", (b, 1, self.family.vocab)), _tensor("temperature", (b,))

        def body() -> Expr:
            scaled = relax.op.divide(logits, self.reshape(temperature, b, 1, 1))
            return relax.op.nn.softmax(scaled, axis=-1)

        self.define("softmax_with_temperature", [logits, temperature], body)

    def create_cache(self, isa: Isa) -> None:
        names = (
            "max_batch_size",
            "max_total_seq_len",
            "prefill_chunk_size",
            "page_size",
            "support_sliding_window",
        )
        sizes = [_symbol(name) for name in names]
        arguments = [relax.Var(f"{size.name}_", relax.ShapeType([size])) for size in sizes]
        attention = self.family.attention
        self.define(
            "create_tir_paged_kv_cache", arguments, lambda: paged_kv_cache(self.bb, attention, sizes, isa)
        )


def _symbol(name: str) -> Any:
    return tirx.Var(name, "int64")


def _tensor(name: str, shape: tuple[Any, ...], dtype: str = "float32") -> Expr:
    return relax.Var(name, relax.TensorType(shape, dtype))


def _cache() -> Expr:
    return relax.Var("paged_kv_cache", relax.AnyType())


def _select_rows(x: Any, positions: Any) -> Any:
    shape = (positions.shape[0], x.shape[1])
    return te.compute(shape, lambda i, j: x[positions[i], j], "select_rows")


def _last_row(x: Any) -> Any:
    return te.compute((1, x.shape[1]), lambda _, j: x[x.shape[0] - 1, j], "last_row")
