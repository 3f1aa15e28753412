"""Phi-3, Phi-3.5 and Phi-4-mini: Llama's graph under names of its own, with LongRoPE for long contexts."""

from dataclasses import replace
from typing import Any

from builder.compile.families.decoder import Attention, Decoder, Layer, Shape
from builder.compile.families.fields import Fields, Sizes
from builder.compile.families.parameters import matrix, norm
from builder.compile.families.rope import rope, rope_config

TRAINED = 4096  # what transformers takes for both lengths where config.json does not tell


def model_config(source: Fields, sizes: Sizes) -> dict[str, Any]:
    """As `Family.model_config`."""
    source.only("hidden_act", "silu")
    source.only("attention_bias", False)
    shape = Shape.read(source)
    longest = source.integer("max_position_embeddings", TRAINED)
    original = source.integer("original_max_position_embeddings", TRAINED)
    theta, scaling = rope_config(_renamed(source, original), partial=True)
    parameters = source.section("rope_parameters")
    # Beyond this a library takes LongRoPE's other factors, for short texts too: only where that is wanted.
    context = sizes.context or (min(original, longest) if scaling else longest)
    window = source.integer("sliding_window") if source.has("sliding_window") else None
    return {
        "model_type": "phi3",
        "hidden_size": shape.hidden,
        "vocab_size": shape.vocab,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        "rms_norm_eps": shape.eps,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": longest,
        "position_embedding_base": theta,
        # MLC-LLM wants the older key and the longer length too.
        "rope_scaling": scaling and {"type": "longrope", **scaling, "max_position_embeddings": longest},
        "original_max_position_embeddings": original,
        "context_window_size": context,
        "prefill_chunk_size": sizes.chunk_of(context),
        "head_dim": shape.head_dim,
        "tensor_parallel_shards": 1,
        "max_batch_size": sizes.batch,
        "tie_word_embeddings": shape.tied,
        "partial_rotary_factor": parameters.number(
            "partial_rotary_factor", source.number("partial_rotary_factor", 1.0)
        ),
        # MLC-LLM's does not know this field, and lets every layer see everything.
        **({} if window is None else {"sliding_window": window}),
    }


def _renamed(source: Fields, original: int) -> Fields:
    """The description of LongRoPE under its name: Phi's first checkpoints say "su" or "yarn"."""
    values: dict[str, Any] = {**source.values, "original_max_position_embeddings": original}
    for section in ("rope_scaling", "rope_parameters"):
        numbers = source.section(section).values
        if {numbers.get("type"), numbers.get("rope_type")} & {"su", "yarn"}:
            values[section] = {**numbers, "rope_type": "longrope"}
    return Fields(source.where, values)


def decoder(config: Fields) -> Decoder:
    """As `Family.decoder`.

    Libraries for more tokens of context than the model was first trained for use LongRoPE's factors for long
    texts, all others those for short ones.
    """
    shape = Shape.read(config)
    context = config.integer("context_window_size")
    part = config.number("partial_rotary_factor", 1.0)
    if part > 1:
        raise config.wrong("partial_rotary_factor", "is more than all of a head")
    # MLC-LLM's older directories have both lengths beside the scaling only, and 0 for one that is not told.
    scaling, trained = config.section("rope_scaling"), "original_max_position_embeddings"
    lengths = {
        trained: config.integer(trained) if config.get(trained) else TRAINED,
        "max_position_embeddings": config.integer("max_position_embeddings", context),
    }
    turn = rope(
        config.number("position_embedding_base", 10000.0),
        int(shape.head_dim * part),
        replace(scaling, values={**lengths, **scaling.values}),
        context=context,
    )
    window = config.integer("sliding_window") if config.has("sliding_window") else None
    attention = Attention.uniform(shape, turn, None if window is None or window >= context else window)
    embedding = matrix(
        "transformer.embd", shape.hidden, ("model.embed_tokens", shape.vocab), role="embedding"
    )
    head = matrix("lm_head", shape.hidden, ("lm_head", shape.vocab), role="head")
    return Decoder(
        hidden=shape.hidden,
        vocab=shape.vocab,
        eps=shape.eps,
        attention=attention,
        embedding=embedding,
        layers=tuple(_layer(shape, index) for index in range(shape.layers)),
        norm=norm("transformer.norm", shape.hidden, "model.norm"),
        head=embedding if shape.tied else head,
    )


def _layer(shape: Shape, index: int) -> Layer:
    name, source = f"transformer.h.{index}", f"model.layers.{index}"

    def linear(ours: str, theirs: str, rows: int, columns: int) -> Any:
        return matrix(f"{name}.{ours}", columns, (f"{source}.{theirs}", rows))

    fused = shape.q_rows + 2 * shape.kv_rows
    return Layer(
        attention_norm=norm(f"{name}.ln", shape.hidden, f"{source}.input_layernorm"),
        qkv=(linear("mixer.qkv_proj", "self_attn.qkv_proj", fused, shape.hidden),),
        output=linear("mixer.out_proj", "self_attn.o_proj", shape.hidden, shape.q_rows),
        mlp_norm=norm(f"{name}.post_attention_layernorm", shape.hidden, f"{source}.post_attention_layernorm"),
        gate_up=linear("mlp.gate_up_proj", "mlp.gate_up_proj", 2 * shape.inner, shape.hidden),
        down=linear("mlp.down_proj", "mlp.down_proj", shape.hidden, shape.inner),
    )
