"""Tiny random models of every family, the same bytes every time.

Each exists to show what its family does differently: windows are smaller than the prompts, soft caps bend the
scores, some layers do not rotate. Weights are exact in bfloat16, the form of q0f32 on disk.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers.pre_tokenizers import ByteLevel

from builder.compile.bfloat16 import round_bfloat16
from builder.compile.families import family, model_config
from builder.compile.families.fields import Fields, Sizes
from builder.compile.families.parameters import Parameter
from tests.builder.checkpoints import write_safetensors

Array = npt.NDArray[np.float32]

GOLDEN = Path(__file__).parents[2] / "golden" / "families"

ROWS = 5
"""Positions at the end of each text whose logits are recorded."""

VOCAB = 320
CONTEXT = 256

BASE: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 319,
    "pad_token_id": 0,
}

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 8.0,
    "beta_slow": 2.0,
}

PHI3 = BASE | {
    "model_type": "phi3",
    "hidden_size": 128,
    "num_key_value_heads": 4,
    "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 64,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 2.5, 3.0],
        "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0],
    },
}
GEMMA = BASE | {
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 8,
    "tie_word_embeddings": True,
}

# Every model by name: its config.json.
MODELS: dict[str, dict[str, Any]] = {
    "llama": BASE
    | {"model_type": "llama", "head_dim": 32, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "mistral": BASE | {"model_type": "mistral", "head_dim": 32, "sliding_window": 8},
    "qwen2": BASE
    | {"model_type": "qwen2", "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_scaling": YARN},
    "qwen3": BASE
    | {
        "model_type": "qwen3",
        "head_dim": 32,
        "rope_theta": 1000000.0,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "smollm3": BASE
    | {
        "model_type": "smollm3",
        "num_hidden_layers": 4,
        "rope_theta": 5000000.0,
        "tie_word_embeddings": True,
        "no_rope_layers": [1, 0, 1, 0],
    },
    # Short factors and a window; long factors.
    "phi3": PHI3 | {"sliding_window": 8},
    "phi3-long": PHI3 | {"original_max_position_embeddings": 8},
    "gemma2": GEMMA
    | {
        "model_type": "gemma2",
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 2.0,
    },
    "gemma3": GEMMA
    | {
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "query_pre_attn_scalar": 20,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 1000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
}
# Tokens of context of the models that are not converted with their own default.
CONTEXTS = {"phi3-long": CONTEXT}


def write_tiny(name: str, directory: Path) -> Path:
    """Write the checkpoint of a model as Hugging Face does."""
    write_checkpoint_files(directory, MODELS[name])
    write_safetensors(directory / "model.safetensors", tensors(name))
    return directory


def write_checkpoint_files(directory: Path, config: dict[str, Any]) -> None:
    """Write all files of a checkpoint but its weights."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))


def tensors(name: str) -> dict[str, Array]:
    """All tensors of a checkpoint, by Hugging Face's names."""
    source = Fields(name, MODELS[name])
    config = model_config(source, Sizes(None, None, 4))
    decoder = family(MODELS[name]["model_type"], name).decoder(Fields(name, config))
    return {
        tensor: values(f"{name} {tensor}", shape, parameter)
        for parameter in decoder.parameters
        for tensor, shape in parameter.sources
    }


def values(seed: str, shape: tuple[int, ...], parameter: Parameter) -> Array:
    """Random weights, large enough that attention has preferences; every tensor has a seed of its own.

    RandomState's streams are frozen by numpy's compatibility policy, those of Generator are not.
    """
    random = np.random.RandomState(zlib.crc32(seed.encode())).standard_normal(shape).astype(np.float32)
    if parameter.name.endswith(".bias"):
        weights = 0.5 * random
    elif parameter.role == "vector":
        weights = 1 - parameter.offset + 0.2 * random
    elif parameter.role == "embedding":
        weights = 0.2 * random
    else:
        weights = random * np.float32(1.6 / shape[1] ** 0.5)
    # Exact also after the converter added the offset.
    offset = np.float32(parameter.offset)
    return round_bfloat16(weights.astype(np.float32) + offset) - offset


def prompts() -> tuple[list[int], list[int]]:
    """Two texts of random tokens: a long one and a short one."""
    random = np.random.RandomState(7)
    return [int(i) for i in random.randint(0, VOCAB, 41)], [int(i) for i in random.randint(0, VOCAB, 13)]


def tokenizer() -> dict[str, Any]:
    """tokenizer.json of a tokenizer of bytes, with special tokens at the end."""
    alphabet = {text: index for index, text in enumerate(sorted(ByteLevel.alphabet()))}
    special = {"id": VOCAB - 1, "content": "<|end|>", "special": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [special | plain],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {"type": "BPE", "vocab": alphabet, "merges": []},
    }
