"""Mistral: Llama's graph, where every layer may see a window of the last tokens only.

The window is that of transformers: exact, at any length. MLC-LLM's own library lets its cache forget what
left the window and keeps the first tokens instead (`attention_sink_size`); the field is written for it.
"""

from dataclasses import replace
from typing import Any

from builder.compile.families.decoder import Attention, Decoder, Shape, llama_decoder
from builder.compile.families.fields import Fields, Sizes
from builder.compile.families.rope import read_rope, rope_config

WINDOW = 4096  # what transformers takes where config.json does not tell; null means none


def model_config(source: Fields, sizes: Sizes) -> dict[str, Any]:
    """As `Family.model_config`."""
    source.only("hidden_act", "silu")
    shape = Shape.read(source)
    theta, scaling = rope_config(source)
    context = sizes.context or source.integer("max_position_embeddings")
    window = -1
    if source.values.get("sliding_window", WINDOW) is not None:
        window = source.integer("sliding_window", WINDOW)
    if window >= context:
        window = -1  # it never cuts anything off
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "rms_norm_eps": shape.eps,
        "vocab_size": shape.vocab,
        "position_embedding_base": theta,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "context_window_size": context,
        "sliding_window_size": window,
        "prefill_chunk_size": sizes.chunk_of(context),
        "attention_sink_size": 4,
        "tensor_parallel_shards": 1,
        "max_batch_size": sizes.batch,
        # MLC-LLM's does not know these fields.
        **({"rope_scaling": scaling} if scaling else {}),
        **({"tie_word_embeddings": True} if shape.tied else {}),
    }


def decoder(config: Fields) -> Decoder:
    """As `Family.decoder`."""
    shape = Shape.read(config)
    window = config.get("sliding_window_size", -1)
    if window == -1:
        return llama_decoder(shape, Attention.uniform(shape, read_rope(config, shape.head_dim)))
    # MLC-LLM's library has no end of the context where it has a window.
    window = config.integer("sliding_window_size")
    if config.get("context_window_size") == -1:
        config = replace(config, values={**config.values, "context_window_size": window})
    return llama_decoder(shape, Attention.uniform(shape, read_rope(config, shape.head_dim), window))
