"""SmolLM3: Llama's graph, where every fourth layer has no position encoding (NoPE).

MLC-LLM does not know the family; names and fields are Llama's, with `no_rope_layers` and `attention_bias`.
"""

from dataclasses import replace
from typing import Any

from builder.compile.families import llama
from builder.compile.families.decoder import Attention, Decoder, Shape, llama_decoder
from builder.compile.families.fields import Fields, Sizes
from builder.compile.families.rope import read_rope
from builder.compile.families.windows import FULL, SLIDING, read_windows, window_fields

DEFAULTS = {"tie_word_embeddings": True, "rope_theta": 2000000.0}


def model_config(source: Fields, sizes: Sizes) -> dict[str, Any]:
    """As `Family.model_config`."""
    layers = Shape.read(source).layers
    interval = source.integer("no_rope_layer_interval", 4)
    rotated = source.get("no_rope_layers", [int((i + 1) % interval != 0) for i in range(layers)])
    flags = _flags(source, rotated, layers)
    given = {name: value for name, value in source.values.items() if value is not None}
    config = llama.model_config(replace(source, values=DEFAULTS | given | {"attention_bias": False}), sizes)
    return config | {
        "attention_bias": source.flag("attention_bias", False),
        "no_rope_layers": flags,
        **window_fields(source, [FULL if flag else SLIDING for flag in flags]),
    }


def decoder(config: Fields) -> Decoder:
    """As `Family.decoder`."""
    shape = Shape.read(config, tied=True)
    turn, biased = read_rope(config, shape.head_dim), config.flag("attention_bias", False)
    rotated = _flags(config, config.get("no_rope_layers"), shape.layers)
    attention = replace(
        Attention.uniform(shape, turn),
        ropes=tuple(turn if flag else None for flag in rotated),
        windows=read_windows(config, shape.layers),
    )
    return llama_decoder(shape, attention, qkv_bias=biased, output_bias=biased)


def _flags(config: Fields, rotated: Any, layers: int) -> list[int]:
    """`no_rope_layers`: 1 for each layer that rotates, 0 for one that does not, whatever the name says."""
    flags = rotated[:layers] if isinstance(rotated, list) else []
    if len(flags) < layers or any(flag not in (0, 1) for flag in flags):
        raise config.wrong("no_rope_layers", f"is not a list of 0 or 1 for each of {layers} layers")
    return [int(flag) for flag in flags]
