"""Tiny random checkpoints of every family that GGUF files are read of, as Hugging Face has them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.builder.checkpoints import GOLDEN, Tensors, write_safetensors

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 1024,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
GEMMA: dict[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIGS: Mapping[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "head_dim": 32, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "qwen2": {"model_type": "qwen2", "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "rope_theta": 1e6},
    "phi3": {"model_type": "phi3", "original_max_position_embeddings": 512},
    "gemma2": {
        **GEMMA,
        "model_type": "gemma2",
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {
        **GEMMA,
        "model_type": "gemma3_text",
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    },
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
}


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    """config.json of a family."""
    return COMMON | CONFIGS[family] | changes


def tensors_of(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """Random weights under Hugging Face's names; all are multiples of 1/8, which every float type holds."""
    kind = config["model_type"]
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (vocab, hidden), "model.norm": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (vocab, hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        shapes |= {f"{attention}.o_proj": (hidden, q), f"{mlp}.down_proj": (hidden, inner)}
        if kind == "phi3":
            shapes |= {
                f"{attention}.qkv_proj": (q + 2 * kv, hidden),
                f"{mlp}.gate_up_proj": (2 * inner, hidden),
            }
        else:
            shapes |= {f"{attention}.{name}": (rows, hidden) for name, rows in projections(q, kv)}
            shapes |= {f"{mlp}.{name}": (inner, hidden) for name in ("gate_proj", "up_proj")}
        if kind in ("qwen3", "gemma3_text"):
            shapes |= {f"{attention}.{name}": (head,) for name in ("q_norm", "k_norm")}
        norms = ["input_layernorm", "post_attention_layernorm"]
        if kind.startswith("gemma"):
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{layer}.{name}": (hidden,) for name in norms}
    named = {f"{name}.weight": shape for name, shape in shapes.items()}
    if kind == "qwen2":
        for index in range(config["num_hidden_layers"]):
            named |= {
                f"model.layers.{index}.self_attn.{name}.bias": (rows,) for name, rows in projections(q, kv)
            }
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, shape in sorted(named.items()):
        tensors[name] = (random.integers(-15, 16, shape) / 8).astype(np.float32)
    return tensors


def projections(q: int, kv: int) -> list[tuple[str, int]]:
    """Separate query, key and value layers with their rows."""
    return [("q_proj", q), ("k_proj", kv), ("v_proj", kv)]


def write_tokens(directory: Path) -> None:
    """The tokenizer of the golden checkpoints, 1024 byte-level tokens."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(GOLDEN / "hf" / name, directory / name)


def write_model(directory: Path, config: Mapping[str, Any], tensors: Tensors, dtype: str = "F32") -> Path:
    """The checkpoint as safetensors."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_tokens(directory)
    write_safetensors(directory / "model.safetensors", tensors, dtype)
    return directory
