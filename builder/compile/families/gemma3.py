"""Gemma 3, its text model: Gemma 2's layers with norms of query and key heads instead of soft caps.

Checkpoints that also see pictures (`model_type` "gemma3") become the text model that they contain.

Layers with a window turn by a base of their own, and without the scaling of the others; the numbers are
transformers'. MLC-LLM turns all layers alike, so its fields here have company: `rope_local_base_freq`,
`layer_types` where they are not five layers with a window to one without, and soft caps where there are any.
"""

from typing import Any

from builder.compile.families.decoder import Attention, Decoder, Layer, Shape
from builder.compile.families.fields import Fields, Sizes
from builder.compile.families.gemma2 import cap, check_options, gemma_decoder, gemma_layer
from builder.compile.families.parameters import matrix, norm
from builder.compile.families.rope import rope, rope_config
from builder.compile.families.windows import SLIDING, layer_types, periodic, windows

# What transformers takes where config.json does not tell, as in the checkpoints that also see pictures.
DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
}
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
PICTURES = ("vision_tower.", "multi_modal_projector.")


def model_config(source: Fields, sizes: Sizes) -> dict[str, Any]:
    """As `Family.model_config`."""
    text = _text(source)
    check_options(text)
    shape = Shape.read(text, tied=True)
    theta, scaling, local = _ropes(text)
    context = sizes.context or text.integer("max_position_embeddings")
    chunk, window = sizes.chunk_of(context), text.integer("sliding_window")
    types = layer_types(text, periodic(shape.layers, text.integer("sliding_window_pattern")))
    return {
        "text_config": {
            "hidden_size": shape.hidden,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.layers,
            "attention_bias": False,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "rms_norm_eps": shape.eps,
            "hidden_activation": "gelu_pytorch_tanh",
            "position_embedding_base": theta,
            "rope_scaling": scaling,
            "context_window_size": context,
            "prefill_chunk_size": chunk,
            "query_pre_attn_scalar": text.number("query_pre_attn_scalar"),
            "sliding_window_size": window,
            "rope_local_base_freq": local,
            **({} if types == periodic(shape.layers, 6) else {"layer_types": types}),
            **{name: text.number(name) for name in CAPS if text.has(name)},
        },
        "vocab_size": shape.vocab,
        "tensor_parallel_shards": 1,
        "max_batch_size": sizes.batch,
        "context_window_size": context,
        "sliding_window_size": window,
        "prefill_chunk_size": chunk,
        "is_text_model": not source.has("text_config"),
    }


def _text(source: Fields) -> Fields:
    """The text model's part of a config.json, with transformers' defaults."""
    text = source.section("text_config") if source.has("text_config") else source
    given = {name: value for name, value in text.values.items() if value is not None}
    return Fields(text.where, {**DEFAULTS, **given})


def _ropes(text: Fields) -> tuple[float, dict[str, Any] | None, float]:
    """Base and scaling of layers that see everything, and the base of those with a window.

    transformers 5 puts both into `rope_parameters`, by the layers' type.
    """
    both = text.section("rope_parameters")
    full = both.section("full_attention") if both.values else text.section("rope_scaling")
    sliding = both.section("sliding_attention")
    sliding.only("rope_type", "default")
    theta, scaling = rope_config(Fields(text.where, {**text.values, "rope_parameters": full.values}))
    return theta, scaling, sliding.number("rope_theta", text.number("rope_local_base_freq"))


def decoder(config: Fields) -> Decoder:
    """As `Family.decoder`."""
    text = config.section("text_config")
    # MLC-LLM keeps here what it has no field for.
    more = text.section("kwargs").values
    known = {name: value for name, value in text.values.items() if name not in ("kwargs", "rope_scaling")}
    vocab, context = config.integer("vocab_size"), config.integer("context_window_size")
    values = Fields(text.where, {**DEFAULTS, **more, **known, "vocab_size": vocab})
    # MLC-LLM writes 0 for none.
    scaling = Fields(f"{text.where}: rope_scaling", text.get("rope_scaling") or {})
    shape = Shape.read(values, tied=True)
    types = layer_types(values, periodic(shape.layers, values.integer("sliding_window_pattern")))
    everywhere = rope(
        values.number("position_embedding_base", DEFAULTS["rope_theta"]),
        shape.head_dim,
        scaling,
        context=context,
    )
    nearby = rope(
        values.number("rope_local_base_freq"), shape.head_dim, Fields(text.where, {}), context=context
    )
    attention = Attention(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        scale=values.number("query_pre_attn_scalar") ** -0.5,
        ropes=tuple(nearby if kind == SLIDING else everywhere for kind in types),
        windows=windows(
            types, values.integer("sliding_window_size", values.integer("sliding_window")), context
        ),
        softcap=cap(values, "attn_logit_softcapping", None),
    )
    alone = config.flag("is_text_model", False)
    source = "" if alone else "language_model."
    return gemma_decoder(
        shape,
        attention,
        tuple(_layer(shape, source, index) for index in range(shape.layers)),
        softcap=cap(values, "final_logit_softcapping", None),
        name="language_model.",
        source=source,
        unused=() if alone else PICTURES,
    )


def _layer(shape: Shape, prefix: str, index: int) -> Layer:
    name, source = f"language_model.model.layers.{index}", f"{prefix}model.layers.{index}"
    rows = {"q": shape.q_rows, "k": shape.kv_rows, "v": shape.kv_rows}
    qkv = tuple(
        matrix(f"{name}.self_attn.{part}_proj", shape.hidden, (f"{source}.self_attn.{part}_proj", rows[part]))
        for part in rows
    )
    q_norm, k_norm = (
        norm(f"{name}.self_attn.{part}_norm", shape.head_dim, f"{source}.self_attn.{part}_norm", offset=1.0)
        for part in ("q", "k")
    )
    return gemma_layer(shape, name, source, qkv, q_norm=q_norm, k_norm=k_norm)
