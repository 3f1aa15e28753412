"""Llama 2 and 3.x, and every model whose `model_type` is "llama" (SmolLM2, TinyLlama).

RMSNorm, rotary grouped-query attention, SiLU-gated MLP; the output matrix may be the embedding's.
"""

from typing import Any

from builder.compile.families.decoder import Attention, Decoder, Shape, llama_decoder
from builder.compile.families.fields import Fields, Sizes
from builder.compile.families.rope import read_rope, rope_config


def model_config(source: Fields, sizes: Sizes) -> dict[str, Any]:
    """As `Family.model_config`."""
    source.only("hidden_act", "silu")
    for option in ("attention_bias", "mlp_bias", "rope_interleaved"):
        source.only(option, False)
    shape = Shape.read(source)
    theta, scaling = rope_config(source)
    context = sizes.context or source.integer("max_position_embeddings")
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "rms_norm_eps": shape.eps,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "position_embedding_base": theta,
        "rope_scaling": scaling,
        "context_window_size": context,
        "prefill_chunk_size": sizes.chunk_of(context),
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "max_batch_size": sizes.batch,
        "disaggregation": False,
    }


def decoder(config: Fields) -> Decoder:
    """As `Family.decoder`."""
    shape = Shape.read(config)
    return llama_decoder(shape, Attention.uniform(shape, read_rope(config, shape.head_dim)))
