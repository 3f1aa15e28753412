"""Write GGUF files with the `gguf` package, as llama.cpp's conversion does."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.builder.checkpoints import GOLDEN, Tensors

Array = npt.NDArray[np.float32]
TYPES: Any = gguf.GGMLQuantizationType


def paired(weights: Array, heads: int) -> Array:
    """Rows of queries or keys in llama.cpp's order: the halves of each head in turn."""
    shape = weights.shape
    stacked = weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return np.ascontiguousarray(stacked.swapaxes(1, 2).reshape(shape))


def as_stored(family: str, config: Mapping[str, Any], name: str, weights: Array) -> Array:
    """A weight as llama.cpp's conversion changes it."""
    if family in ("llama", "smollm3") and ".q_proj." in name:
        return paired(weights, config["num_attention_heads"])
    if family in ("llama", "smollm3") and ".k_proj." in name:
        return paired(weights, config["num_key_value_heads"])
    if family.startswith("gemma") and name.endswith("norm.weight"):
        return weights + np.float32(1)
    return weights


def rope_divisors(config: Mapping[str, Any]) -> Array:
    """The divisors of Llama 3's rope scaling, from its definition."""
    scaling = config["rope_scaling"]
    size = config["head_dim"]
    found = []
    for pair in range(0, size, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (pair / size)
        turns = scaling["original_max_position_embeddings"] / wavelength
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = min(max((turns - low) / (high - low), 0), 1)
        found.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(found, np.float32)


def write_gguf(
    file: Path,
    family: str,
    config: Mapping[str, Any],
    tensors: Tensors,
    kind: Any = TYPES.F32,
    *,
    tokenizer: Callable[[gguf.GGUFWriter], None] | None = None,
    raw: Mapping[str, tuple[npt.NDArray[np.uint8], Any]] | None = None,
    **options: Any,
) -> Path:
    """Write a model; matrices as `kind`, vectors as F32, `raw` as it is. `options` go to the writer."""
    writer = gguf.GGUFWriter(file, family, **options)
    add_config(writer, config)
    (tokenizer or golden_tokenizer)(writer)
    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    if config.get("rope_scaling"):
        writer.add_tensor("rope_freqs.weight", rope_divisors(config))
    for name, weights in tensors.items():
        stored = as_stored(family, config, name, weights)
        chosen = kind if stored.ndim > 1 else TYPES.F32
        ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert ours, name
        writer.add_tensor(ours, gguf.quants.quantize(stored, chosen), raw_dtype=chosen)
    for ours, (data, chosen) in (raw or {}).items():
        writer.add_tensor(ours, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_config(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """The metadata of a configuration."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if "original_max_position_embeddings" in config:
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
    if "attn_logit_softcapping" in config:
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def golden_tokenizer(writer: gguf.GGUFWriter) -> None:
    """The tokenizer of the golden checkpoints."""
    byte_level_tokenizer(writer, GOLDEN / "hf" / "tokenizer.json", "gpt-2")
    writer.add_bos_token_id(1019)
    writer.add_eos_token_id(1023)
    writer.add_add_bos_token(False)


def byte_level_tokenizer(writer: gguf.GGUFWriter, file: Path, pre: str) -> None:
    """The vocabulary and merges of a tokenizer.json."""
    source = json.loads(file.read_text(encoding="utf-8"))
    texts = {token: text for text, token in source["model"]["vocab"].items()}
    types = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for added in source["added_tokens"]:
        texts[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([texts[token] for token in range(len(texts))])
    writer.add_token_types([types[token] for token in range(len(texts))])
    merges = source["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
