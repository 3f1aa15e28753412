"""Qwen2 and Qwen2.5: Llama's graph with biases on the query, key and value projections."""

from typing import Any

from builder.compile.families.decoder import Attention, Decoder, Shape, llama_decoder
from builder.compile.families.fields import Fields, Sizes
from builder.compile.families.rope import read_rope, rope_config


def model_config(source: Fields, sizes: Sizes) -> dict[str, Any]:
    """As `Family.model_config`."""
    source.only("hidden_act", "silu")
    source.only("use_sliding_window", False)
    shape = Shape.read(source)
    theta, scaling = rope_config(source)
    context = sizes.context or source.integer("max_position_embeddings")
    return {
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.eps,
        "rope_theta": theta,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "context_window_size": context,
        "prefill_chunk_size": sizes.chunk_of(context),
        "tensor_parallel_shards": 1,
        "head_dim": shape.head_dim,
        "dtype": "float32",
        "max_batch_size": sizes.batch,
        # MLC-LLM's does not know this field, and has plain rope.
        **({"rope_scaling": scaling} if scaling else {}),
    }


def decoder(config: Fields) -> Decoder:
    """As `Family.decoder`."""
    shape = Shape.read(config)
    attention = Attention.uniform(shape, read_rope(config, shape.head_dim, "rope_theta"))
    return llama_decoder(shape, attention, qkv="c_attn", qkv_bias=True)
