"""The Llama family: Llama 2 and 3.x with rope scaling, and models of the same graph (SmolLM2, TinyLlama).

RMSNorm, rotary grouped-query attention, SiLU-gated MLP; the output matrix may be the embedding's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from builder.compile.families.blocks import Attention, Weights, attend
from builder.compile.families.parameters import Matrix, Parameters
from builder.compile.operators import Operators
from builder.errors import FormatError, UnsupportedError

Expr = Any  # tvm.relax.Expr; TVM has no type information


LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class LlamaShape:
    """What decides a Llama model's code, read from MLC's `model_config`."""

    hidden: int
    intermediate: int
    vocab: int
    eps: float
    tied: bool
    attention: Attention

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "LlamaShape":
        """Read `model_config`.

        Raises:
            FormatError: a field is missing or impossible; names it.
            UnsupportedError: a rope scaling that Hob does not know.
        """
        hidden = _positive(config, "hidden_size")
        heads = _positive(config, "num_attention_heads")
        kv_heads = _positive(config, "num_key_value_heads") if config.get("num_key_value_heads") else heads
        head_dim = _positive(config, "head_dim") if config.get("head_dim") else hidden // heads
        if heads % kv_heads:
            raise FormatError(
                f"model_config: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
            )
        scaling = dict(config.get("rope_scaling") or {})
        if scaling and scaling.get("rope_type") != "llama3":
            raise UnsupportedError(
                f"model_config.rope_scaling: {scaling.get('rope_type')!r} is not supported",
                hint="Supported: none, llama3.",
            )
        for name in LLAMA3_SCALING if scaling else ():
            if not isinstance(scaling.get(name), int | float) or scaling[name] <= 0:
                raise FormatError(
                    f"model_config.rope_scaling.{name}: {scaling.get(name)!r} is not a positive number"
                )
        return cls(
            hidden=hidden,
            intermediate=_positive(config, "intermediate_size"),
            vocab=_positive(config, "vocab_size"),
            eps=float(config.get("rms_norm_eps", 1e-5)),
            tied=bool(config.get("tie_word_embeddings", False)),
            attention=Attention(
                layers=_positive(config, "num_hidden_layers"),
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                rope_theta=float(
                    config.get("position_embedding_base") or config.get("rope_theta") or 10000.0
                ),
                rope_scaling=scaling,
            ),
        )


@dataclass(frozen=True)
class Layer:
    """Weights of one transformer layer."""

    input_norm: int
    qkv: Matrix
    output: Matrix
    mlp_norm: int
    gate_up: Matrix
    down: Matrix


class Llama:
    """The graph of a Llama model; see `blocks.Family`."""

    def __init__(self, shape: LlamaShape, parameters: Parameters, operators: Operators) -> None:
        self.shape = shape
        self.hidden, self.vocab, self.attention = shape.hidden, shape.vocab, shape.attention
        self.operators = operators
        self.embedding = parameters.matrix("model.embed_tokens", shape.vocab, shape.hidden)
        self.blocks = [self._declare(parameters, f"model.layers.{i}") for i in range(shape.attention.layers)]
        self.norm = parameters.vector("model.norm.weight", shape.hidden)
        self.head = self.embedding if shape.tied else parameters.matrix("lm_head", shape.vocab, shape.hidden)

    def _declare(self, parameters: Parameters, prefix: str) -> Layer:
        shape, attention = self.shape, self.attention
        wide = attention.heads * attention.head_dim
        fused = wide + 2 * attention.kv_heads * attention.head_dim
        return Layer(
            input_norm=parameters.vector(f"{prefix}.input_layernorm.weight", shape.hidden),
            qkv=parameters.matrix(f"{prefix}.self_attn.qkv_proj", fused, shape.hidden),
            output=parameters.matrix(f"{prefix}.self_attn.o_proj", shape.hidden, wide),
            mlp_norm=parameters.vector(f"{prefix}.post_attention_layernorm.weight", shape.hidden),
            gate_up=parameters.matrix(f"{prefix}.mlp.gate_up_proj", 2 * shape.intermediate, shape.hidden),
            down=parameters.matrix(f"{prefix}.mlp.down_proj", shape.hidden, shape.intermediate),
        )

    def embed(self, weights: Weights, ids: Expr) -> Expr:
        return self.operators.embed(weights.bb, self.embedding, weights.matrix(self.embedding), ids)

    def layers(self, weights: Weights, x: Expr, kv: Expr) -> Expr:
        bb, ops, rows = weights.bb, self.operators, x.ty.shape[0]
        for index, layer in enumerate(self.blocks):
            a = ops.prepare(bb, "rms", x, weights.vector(layer.input_norm))
            qkv = ops.linear(bb, layer.qkv, weights.matrix(layer.qkv), a, rows)
            a = ops.prepare(bb, "plain", attend(bb, self.attention, index, qkv, kv))
            x = ops.linear(bb, layer.output, weights.matrix(layer.output), a, rows, residual=x)
            a = ops.prepare(bb, "rms", x, weights.vector(layer.mlp_norm))
            gate_up = ops.linear(bb, layer.gate_up, weights.matrix(layer.gate_up), a, rows)
            a = ops.prepare(bb, "silu", gate_up)
            x = ops.linear(bb, layer.down, weights.matrix(layer.down), a, rows, residual=x)
        return x

    def normalise(self, weights: Weights, x: Expr) -> Expr:
        return self.operators.normalise(weights.bb, x, weights.vector(self.norm))

    def logits(self, weights: Weights, x: Expr, *, normalised: bool) -> Expr:
        bb, ops = weights.bb, self.operators
        a = (
            ops.prepare(bb, "plain", x)
            if normalised
            else ops.prepare(bb, "rms", x, weights.vector(self.norm))
        )
        return ops.linear(bb, self.head, weights.matrix(self.head), a, x.ty.shape[0])


def _positive(config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FormatError(
            f"model_config.{field}: {value!r} is not a positive integer",
            hint="Copy or convert the model again.",
        )
    return value
