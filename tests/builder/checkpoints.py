"""Small random Llama checkpoints, written as Hugging Face does."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.compile.bfloat16 import narrow_bfloat16

GOLDEN = Path(__file__).parents[1] / "golden" / "llama3rope"

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 1024,
}

Tensors = dict[str, npt.NDArray[np.float32]]


def llama_tensors(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """Random weights under Hugging Face's names."""
    random = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    size = hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": (q, hidden),
            f"{layer}.self_attn.k_proj.weight": (kv, hidden),
            f"{layer}.self_attn.v_proj.weight": (kv, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, q),
            f"{layer}.mlp.gate_proj.weight": (inner, hidden),
            f"{layer}.mlp.up_proj.weight": (inner, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, inner),
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
        }
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_safetensors(file: Path, tensors: Mapping[str, npt.NDArray[np.float32]], dtype: str = "F32") -> None:
    """Write one file as F32, F16 or BF16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        if dtype == "BF16":
            raw = narrow_bfloat16(values).astype("<u2").tobytes()
        else:
            raw = values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def write_checkpoint(
    directory: Path,
    tensors: Tensors | None = None,
    dtype: str = "F32",
    files: int = 1,
    **changes: Any,
) -> Path:
    """Write a checkpoint of `CONFIG` with changes (None removes a key), in one file or several."""
    directory.mkdir(exist_ok=True)
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(GOLDEN / "hf" / name, directory / name)
    if tensors is None:
        tensors = llama_tensors(CONFIG | changes)
    if files == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype)
        return directory
    weight_map: dict[str, str] = {}
    for i in range(files):
        name = f"model-{i + 1:05}-of-{files:05}.safetensors"
        part = dict(list(tensors.items())[i::files])
        write_safetensors(directory / name, part, dtype)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": {name: weight_map[name] for name in tensors}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory
