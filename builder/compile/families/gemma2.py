"""Gemma 2: four norms in a layer, soft caps, a window in every other layer, the GELU gate.

Norm weights are stored as what is added to 1; MLC's directories hold the sum. Embeddings are multiplied with
the square root of their width, as float32.
"""

import math
from typing import Any

from builder.compile.families.decoder import Attention, Decoder, Layer, Shape
from builder.compile.families.fields import Fields, Sizes
from builder.compile.families.parameters import Parameter, matrix, norm
from builder.compile.families.rope import read_rope, rope_config
from builder.compile.families.windows import layer_types, periodic, windows

# What transformers takes where config.json does not tell; null means none.
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
WINDOW = 4096
SCALAR = 256


def model_config(source: Fields, sizes: Sizes) -> dict[str, Any]:
    """As `Family.model_config`."""
    check_options(source)
    shape = Shape.read(source, tied=True)
    theta, scaling = rope_config(source)
    context = sizes.context or source.integer("max_position_embeddings", 8192)
    window = source.integer("sliding_window", WINDOW)
    types = layer_types(source, periodic(shape.layers, 2))
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "attention_bias": False,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_hidden_layers": shape.layers,
        "rms_norm_eps": shape.eps,
        "vocab_size": shape.vocab,
        "hidden_activation": "gelu_pytorch_tanh",
        "position_embedding_base": theta,
        "context_window_size": context,
        "prefill_chunk_size": sizes.chunk_of(context),
        "tensor_parallel_shards": 1,
        "max_batch_size": sizes.batch,
        **{name: cap(source, name, default) for name, default in CAPS.items()},
        "query_pre_attn_scalar": source.number("query_pre_attn_scalar", SCALAR),
        "sliding_window": window,
        # MLC-LLM's does not know these fields: it has no windows, and keeps to the first one's context.
        **({} if types == periodic(shape.layers, 2) else {"layer_types": types}),
        **({"rope_scaling": scaling} if scaling else {}),
    }


def decoder(config: Fields) -> Decoder:
    """As `Family.decoder`."""
    shape = Shape.read(config, tied=True)
    turn = read_rope(config, shape.head_dim)
    window = config.integer("sliding_window", WINDOW)
    types = layer_types(config, periodic(shape.layers, 2))
    attention = Attention(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        scale=config.number("query_pre_attn_scalar", SCALAR) ** -0.5,
        ropes=(turn,) * shape.layers,
        windows=windows(types, window, config.integer("context_window_size")),
        softcap=cap(config, "attn_logit_softcapping", CAPS["attn_logit_softcapping"]),
    )

    def layer(prefix: str) -> Layer:
        attn = f"{prefix}.self_attn"
        qkv = matrix(
            f"{attn}.qkv_proj",
            shape.hidden,
            (f"{attn}.q_proj", shape.q_rows),
            (f"{attn}.k_proj", shape.kv_rows),
            (f"{attn}.v_proj", shape.kv_rows),
        )
        return gemma_layer(shape, prefix, prefix, (qkv,))

    return gemma_decoder(
        shape,
        attention,
        tuple(layer(f"model.layers.{index}") for index in range(shape.layers)),
        softcap=cap(config, "final_logit_softcapping", CAPS["final_logit_softcapping"]),
    )


def gemma_decoder(
    shape: Shape,
    attention: Attention,
    layers: tuple[Layer, ...],
    *,
    softcap: float | None,
    name: str = "",
    source: str = "",
    unused: tuple[str, ...] = (),
) -> Decoder:
    """A decoder of Gemma's, whose output matrix is the embedding's.

    Args:
        name, source: what the names of weights begin with before "model", MLC's and the checkpoint's.
        unused: as in `Decoder`.
    """
    embedding = matrix(
        f"{name}model.embed_tokens",
        shape.hidden,
        (f"{source}model.embed_tokens", shape.vocab),
        role="embedding",
    )
    return Decoder(
        hidden=shape.hidden,
        vocab=shape.vocab,
        eps=shape.eps,
        attention=attention,
        embedding=embedding,
        layers=layers,
        norm=norm(f"{name}model.norm", shape.hidden, f"{source}model.norm", offset=1.0),
        head=embedding,
        gate="gelu",
        embedding_scale=math.sqrt(shape.hidden),
        softcap=softcap,
        unused=unused,
    )


def gemma_layer(
    shape: Shape,
    name: str,
    source: str,
    qkv: tuple[Parameter, ...],
    *,
    q_norm: Parameter | None = None,
    k_norm: Parameter | None = None,
) -> Layer:
    """A layer with norms before and after attention and MLP; `name` is MLC's, `source` the checkpoint's."""

    def around(what: str) -> Parameter:
        return norm(f"{name}.{what}_layernorm", shape.hidden, f"{source}.{what}_layernorm", offset=1.0)

    gate_up = [(f"{source}.mlp.{part}_proj", shape.inner) for part in ("gate", "up")]
    return Layer(
        attention_norm=around("input"),
        qkv=qkv,
        output=matrix(f"{name}.self_attn.o_proj", shape.q_rows, (f"{source}.self_attn.o_proj", shape.hidden)),
        mlp_norm=around("pre_feedforward"),
        gate_up=matrix(f"{name}.mlp.gate_up_proj", shape.hidden, *gate_up),
        down=matrix(f"{name}.mlp.down_proj", shape.inner, (f"{source}.mlp.down_proj", shape.hidden)),
        q_norm=q_norm,
        k_norm=k_norm,
        attention_out_norm=around("post_attention"),
        mlp_out_norm=around("post_feedforward"),
    )


def check_options(source: Fields) -> None:
    """Refuse options that neither generation of Gemma's checkpoints has.

    Raises:
        UnsupportedError: names the option.
    """
    source.only("hidden_activation", "gelu_pytorch_tanh")
    source.only("attention_bias", False)
    source.only("use_bidirectional_attention", False)
    source.only("tie_word_embeddings", True)


def cap(config: Fields, name: str, default: float | None) -> float | None:
    """A soft cap; null, unlike a missing field, means none."""
    if name in config.values and config.values[name] is None:
        return None
    return default if not config.has(name) else config.number(name)
