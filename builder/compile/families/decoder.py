"""The graph that all families share: a decoder of attention and gated MLP with norms before each.

What families differ in is data: which weights a layer has, and a few numbers. A weight that a family does not
have is None, and what it would do is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from builder.compile.families.fields import Fields
from builder.compile.families.parameters import Parameter, bias, matrix, norm
from builder.compile.families.rope import Rope
from builder.compile.operators import Expr, Gate, Operators

# More than any model has of what is listed one by one: layers, and the dimensions of a head.
MOST = 4096


@dataclass(frozen=True)
class Shape:
    """The dimensions that every family has, and Hugging Face and MLC call by the same names."""

    hidden: int
    inner: int
    vocab: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    tied: bool

    @classmethod
    def read(cls, config: Fields, *, tied: bool = False) -> "Shape":
        """Read a config.json or `model_config`; `tied` is the family's default.

        Raises:
            FormatError: a field is missing or impossible; names it.
        """
        hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        kv_heads = config.integer("num_key_value_heads", heads)
        if heads % kv_heads:
            raise config.wrong("num_key_value_heads", f"does not divide num_attention_heads {heads}")
        return cls(
            hidden=hidden,
            inner=config.integer("intermediate_size"),
            vocab=config.integer("vocab_size"),
            layers=config.integer("num_hidden_layers", most=MOST),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=config.integer("head_dim", hidden // heads, most=MOST),
            eps=config.epsilon("rms_norm_eps", 1e-6),
            tied=config.flag("tie_word_embeddings", tied),
        )

    @property
    def q_rows(self) -> int:
        """Outputs of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        """Outputs of the key projection, and of that of the values."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Attention:
    """What decides a model's attention.

    Attributes:
        scale: what scores are multiplied with, mostly head_dim ** -0.5.
        ropes: rotation of each layer; None where a layer has no position encoding.
        windows: how many of the last positions a query of each layer sees, its own included; None for all.
        softcap: scores become softcap · tanh(score / softcap); None leaves them.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    ropes: tuple[Rope | None, ...]
    windows: tuple[int | None, ...]
    softcap: float | None = None

    @classmethod
    def uniform(cls, shape: Shape, rope: Rope, window: int | None = None) -> "Attention":
        """The same in all layers."""
        return cls(
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            scale=shape.head_dim**-0.5,
            ropes=(rope,) * shape.layers,
            windows=(window,) * shape.layers,
        )

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.ropes)


@dataclass(frozen=True)
class Layer:
    """Weights of one layer.

    Attributes:
        attention_norm, mlp_norm: before attention and MLP.
        qkv: projections of queries, keys and values, or one of all three; gate_up: rows of gate, up.
        q_norm, k_norm: over each head of queries and keys, before rotation.
        attention_out_norm, mlp_out_norm: of what attention and MLP add to the stream.
    """

    attention_norm: Parameter
    qkv: tuple[Parameter, ...]
    output: Parameter
    mlp_norm: Parameter
    gate_up: Parameter
    down: Parameter
    qkv_bias: Parameter | None = None
    output_bias: Parameter | None = None
    q_norm: Parameter | None = None
    k_norm: Parameter | None = None
    attention_out_norm: Parameter | None = None
    mlp_out_norm: Parameter | None = None


@dataclass(frozen=True)
class Decoder:
    """A model: its weights, and the graph over them.

    Attributes:
        eps: of all norms.
        head: the output matrix; a tied model has its `embedding` here.
        gate: activation of the MLP.
        embedding_scale: what embeddings are multiplied with.
        softcap: of the logits, as in `Attention`.
        unused: how names of checkpoint tensors begin that belong to parts besides the text model.
    """

    hidden: int
    vocab: int
    eps: float
    attention: Attention
    embedding: Parameter
    layers: tuple[Layer, ...]
    norm: Parameter
    head: Parameter
    gate: Gate = "silu"
    embedding_scale: float = 1.0
    softcap: float | None = None
    unused: tuple[str, ...] = ()

    @property
    def parameters(self) -> list[Parameter]:
        """Every weight, once."""
        return list(dict.fromkeys(self._parameters()))

    def _parameters(self) -> Iterator[Parameter]:
        yield self.embedding
        for layer in self.layers:
            for field in fields(layer):
                weights = getattr(layer, field.name)
                yield from weights if isinstance(weights, tuple) else () if weights is None else (weights,)
        yield self.norm
        yield self.head

    def embed(self, ops: Operators, ids: Expr) -> Expr:
        """Embeddings of `ids` int32 `[m]`."""
        return ops.embed(self.embedding, ids, self.embedding_scale)

    def forward(self, ops: Operators, x: Expr) -> Expr:
        """All layers, up to but without the last norm."""
        for index, layer in enumerate(self.layers):
            a = ops.normed(x, layer.attention_norm, self.eps)
            qkv = [ops.linear(weight, a, bias=layer.qkv_bias) for weight in layer.qkv]
            y = ops.attend(index, qkv, q_norm=layer.q_norm, k_norm=layer.k_norm, eps=self.eps)
            x = self._add(ops, x, layer.output, ops.plain(y), layer.output_bias, layer.attention_out_norm)
            gate_up = ops.linear(layer.gate_up, ops.normed(x, layer.mlp_norm, self.eps))
            x = self._add(ops, x, layer.down, ops.gated(gate_up, self.gate), None, layer.mlp_out_norm)
        return x

    def _add(
        self,
        ops: Operators,
        x: Expr,
        weight: Parameter,
        y: Expr,
        bias: Parameter | None,
        norm: Parameter | None,
    ) -> Expr:
        """x plus a linear layer of y, normalised where there is a norm for it."""
        if norm is None:
            return ops.linear(weight, y, bias=bias, residual=x)
        return ops.norm(ops.linear(weight, y, bias=bias), norm, self.eps, residual=x)

    def normalise(self, ops: Operators, x: Expr) -> Expr:
        """The last norm."""
        return ops.norm(x, self.norm, self.eps)

    def logits(self, ops: Operators, x: Expr, *, normalised: bool) -> Expr:
        """`[m, vocab]`; `normalised` tells whether `x` went through the last norm."""
        logits = ops.linear(self.head, ops.plain(x) if normalised else ops.normed(x, self.norm, self.eps))
        return logits if self.softcap is None else ops.softcap(logits, self.softcap)


def llama_decoder(
    shape: Shape,
    attention: Attention,
    *,
    qkv: str = "qkv_proj",
    qkv_bias: bool = False,
    output_bias: bool = False,
    head_norms: bool = False,
) -> Decoder:
    """A decoder whose weights are called as Llama's, which most families copied.

    Args:
        qkv: what MLC calls the stacked query, key and value projections.
        qkv_bias, output_bias: whether the attention's projections have biases.
        head_norms: whether queries and keys are normalised.
    """
    embedding = matrix(
        "model.embed_tokens", shape.hidden, ("model.embed_tokens", shape.vocab), role="embedding"
    )
    head = matrix("lm_head", shape.hidden, ("lm_head", shape.vocab), role="head")

    def layer(prefix: str) -> Layer:
        attn, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        projections = [
            (f"{attn}.q_proj", shape.q_rows),
            (f"{attn}.k_proj", shape.kv_rows),
            (f"{attn}.v_proj", shape.kv_rows),
        ]
        return Layer(
            attention_norm=norm(f"{prefix}.input_layernorm", shape.hidden),
            qkv=(matrix(f"{attn}.{qkv}", shape.hidden, *projections),),
            qkv_bias=bias(f"{attn}.{qkv}", *projections) if qkv_bias else None,
            output=matrix(f"{attn}.o_proj", shape.q_rows, (f"{attn}.o_proj", shape.hidden)),
            output_bias=bias(f"{attn}.o_proj", (f"{attn}.o_proj", shape.hidden)) if output_bias else None,
            q_norm=norm(f"{attn}.q_norm", shape.head_dim) if head_norms else None,
            k_norm=norm(f"{attn}.k_norm", shape.head_dim) if head_norms else None,
            mlp_norm=norm(f"{prefix}.post_attention_layernorm", shape.hidden),
            gate_up=matrix(
                f"{mlp}.gate_up_proj",
                shape.hidden,
                (f"{mlp}.gate_proj", shape.inner),
                (f"{mlp}.up_proj", shape.inner),
            ),
            down=matrix(f"{mlp}.down_proj", shape.inner, (f"{mlp}.down_proj", shape.hidden)),
        )

    return Decoder(
        hidden=shape.hidden,
        vocab=shape.vocab,
        eps=shape.eps,
        attention=attention,
        embedding=embedding,
        layers=tuple(layer(f"model.layers.{index}") for index in range(shape.layers)),
        norm=norm("model.norm", shape.hidden),
        head=embedding if shape.tied else head,
    )
