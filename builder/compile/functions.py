"""MLC's functions of a chat model: a program that drives MLC's libraries drives these, given packed weights.

`P` is `packed_params`, `h` the hidden size, `V` the vocabulary. Logits are float32, hidden states in the
backend's dtype.

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

from builder.compile.families.decoder import Decoder
from builder.compile.families.parameters import Parameter
from builder.compile.operators import Backend, Expr, Operators
from builder.compile.packing import Packing


@dataclass(frozen=True)
class Limits:
    """Rows of the largest prefill, and sequences of the largest batch: what memory is planned for."""

    chunk: int
    batch: int


def emit_functions(bb: Any, model: Decoder, packing: Packing, backend: Backend, limits: Limits) -> None:
    """Add all of them to the block builder."""
    emitter = _Emitter(bb, model, packing, backend, limits)
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
    emitter.create_cache()


@dataclass(frozen=True)
class _Weights:
    """The `packed_params` argument of one function, taken apart on use."""

    bb: Any
    packed: Expr
    packing: Packing

    def __call__(self, parameter: Parameter) -> list[Expr]:
        entries = self.packing.entries(parameter)
        return [self.bb.emit(relax.TupleGetItem(self.packed, index)) for index in entries]


@dataclass(frozen=True)
class _Emitter:
    bb: Any
    model: Decoder
    packing: Packing
    backend: Backend
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

    def weights(self) -> Expr:
        """A `packed_params` argument."""
        types = [relax.TensorType(entry.shape, entry.dtype) for entry in self.packing.packed]
        return relax.Var("packed_params", relax.TupleType(types))

    def operators(self, packed: Expr, kv: Expr | None = None) -> Operators:
        """Operators of the function whose arguments these are."""
        return self.backend.operators(self.bb, _Weights(self.bb, packed, self.packing), kv)

    def rows(self, name: str, *shape: Any) -> Expr:
        """An argument of activations."""
        return _tensor(name, shape, self.backend.dtype)

    def reshape(self, x: Expr, *shape: Any) -> Expr:
        return self.bb.emit(relax.op.reshape(x, shape))

    def embed(self) -> None:
        packed, ids = self.weights(), _tensor("input_ids", (_symbol("seq_len"),), "int32")
        self.define("embed", [ids, packed], lambda: self.model.embed(self.operators(packed), ids))

    def layers(self, name: str, rows: Any) -> Expr:
        packed, kv = self.weights(), _cache()
        x = self.rows("x", rows, self.model.hidden)
        return self.define(
            name,
            [x, kv, packed],
            lambda: self.model.forward(self.operators(packed, kv), x),
            private=True,
        )

    def forward(self, name: str, layers: Expr, shape: str, hidden: bool, rows: str | None = None) -> None:
        """A forward pass over inputs of `shape` "prefill" [1, n, h], "batch" [b, 1, h] or "one" [1, 1, h].

        `rows` goes on with the "last" row only, or those that an argument selects.
        """
        model = self.model
        lead: tuple[Any, Any] = {
            "prefill": (1, _symbol("seq_len")),
            "batch": (_symbol("batch_size"), 1),
            "one": (1, 1),
        }[shape]
        x, kv = self.rows("input_embeds", *lead, model.hidden), _cache()
        chosen = _symbol("batch_size")
        positions = _tensor("logit_positions", (chosen,), "int32")
        packed = self.weights()

        def body() -> Expr:
            ops = self.operators(packed)
            count = lead[1] if shape == "prefill" else lead[0]
            y = self.bb.emit(relax.Call(layers, [self.reshape(x, count, model.hidden), kv, packed]))
            out = lead
            if rows == "last":
                y, out = self.bb.emit_te(_last_row, y), (1, 1)
            elif rows == "select":
                y, out = self.bb.emit_te(_select_rows, y, positions), (1, chosen)
            if hidden:
                y, width = model.normalise(ops, y), model.hidden
            else:
                y, width = model.logits(ops, y, normalised=False), model.vocab
            return relax.Tuple([self.reshape(y, *out, width), kv])

        self.define(name, [x, positions, kv, packed] if rows == "select" else [x, kv, packed], body)

    def get_logits(self) -> None:
        packed, x = self.weights(), self.rows("hidden_states", _symbol("seq_len"), self.model.hidden)
        self.define(
            "get_logits",
            [x, packed],
            lambda: self.model.logits(self.operators(packed), x, normalised=True),
        )

    def select_hidden_states(self) -> None:
        packed, x = self.weights(), self.rows("hidden_states", _symbol("seq_len"), self.model.hidden)
        positions = _tensor("logit_positions", (_symbol("batch_size"),), "int32")
        name = "batch_select_last_hidden_states"
        self.define(name, [x, positions, packed], lambda: self.bb.call_te(_select_rows, x, positions))

    def alloc_embedding_tensor(self) -> None:
        shape = relax.ShapeExpr([self.limits.chunk, self.model.hidden])
        with self.bb.function("alloc_embedding_tensor", []):
            tensor = relax.op.builtin.alloc_tensor(shape, self.backend.dtype, 0)
            self.bb.emit_func_output(self.bb.emit(tensor))

    def softmax(self) -> None:
        b = _symbol("batch_size")
        logits, temperature = _tensor("logits", (b, 1, self.model.vocab)), _tensor("temperature", (b,))

        def body() -> Expr:
            scaled = relax.op.divide(logits, self.reshape(temperature, b, 1, 1))
            return relax.op.nn.softmax(scaled, axis=-1)

        self.define("softmax_with_temperature", [logits, temperature], body)

    def create_cache(self) -> None:
        names = (
            "max_batch_size",
            "max_total_seq_len",
            "prefill_chunk_size",
            "page_size",
            "support_sliding_window",
        )
        sizes = [_symbol(name) for name in names]
        arguments = [relax.Var(f"{size.name}_", relax.ShapeType([size])) for size in sizes]
        self.define("create_tir_paged_kv_cache", arguments, lambda: self.backend.kv_cache(self.bb, sizes))


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
