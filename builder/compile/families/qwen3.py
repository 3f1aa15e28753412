"""Qwen3: Llama's graph with a norm over each head of queries and keys, and a head size of its own."""

from dataclasses import replace
from typing import Any

from builder.compile.families.decoder import Attention, Decoder, Shape, llama_decoder
from builder.compile.families.fields import Fields, Sizes
from builder.compile.families.qwen2 import qwen_types
from builder.compile.families.rope import read_rope, rope_config
from builder.compile.families.windows import read_windows, window_fields


def model_config(source: Fields, sizes: Sizes) -> dict[str, Any]:
    """As `Family.model_config`."""
    source.only("hidden_act", "silu")
    shape = Shape.read(source)
    theta, scaling = rope_config(source)
    context = sizes.context or source.integer("max_position_embeddings")
    return {
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "attention_bias": source.flag("attention_bias", False),
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.eps,
        "rope_theta": theta,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "context_window_size": context,
        "prefill_chunk_size": sizes.chunk_of(context, 2048),
        "tensor_parallel_shards": 1,
        "head_dim": shape.head_dim,
        "dtype": "float32",
        "max_batch_size": sizes.batch,
        "weight_block_size": None,
        # MLC-LLM's does not know these fields: it has plain rope and no windows.
        **({"rope_scaling": scaling} if scaling else {}),
        **window_fields(source, qwen_types(source, shape.layers)),
    }


def decoder(config: Fields) -> Decoder:
    """As `Family.decoder`."""
    shape = Shape.read(config)
    attention = replace(
        Attention.uniform(shape, read_rope(config, shape.head_dim, "rope_theta")),
        windows=read_windows(config, shape.layers),
    )
    biased = config.flag("attention_bias", False)
    return llama_decoder(
        shape,
        attention,
        qkv="c_attn",
        qkv_bias=biased,
        output_bias=biased,
        head_norms=True,
    )
