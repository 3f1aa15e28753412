"""Hugging Face's config.json, from the metadata of a GGUF file.

Keys: docs/gguf.md of ggml, https://github.com/ggml-org/ggml. Where llama.cpp fixes a number in its code
instead of storing it, so does this module.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.compile.import_.checkpoint import Tensor
from builder.compile.import_.gguf.architectures import Architecture
from builder.compile.import_.gguf.header import Header
from builder.errors import FormatError, UnsupportedError

Array = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# Hugging Face's field and its default where GGUF has none; "" for no field at all.
INTEGERS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
    "attention.key_length": "head_dim",
}
OPTIONAL = {"attention.head_count_kv", "attention.key_length"}


class _Keys:
    """The keys of one architecture."""

    def __init__(self, header: Header) -> None:
        self.header = header

    def integer(self, key: str, default: int | None = None) -> int | None:
        """A count."""
        value = self._get(key)
        if value is None:
            return default
        if type(value) is not int or value < 0:
            raise FormatError(f"{self.header.file}: {self._name(key)}: {_short(value)} is not a count")
        return value

    def number(self, key: str, default: float) -> float:
        """A number: the shortest one that has this float32, since that is what was written."""
        value = self._get(key)
        if value is None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value):
            raise FormatError(f"{self.header.file}: {self._name(key)}: {_short(value)} is not a number")
        return _shortest(value)

    def text(self, key: str) -> str | None:
        """A string."""
        value = self._get(key)
        if value is not None and not isinstance(value, str):
            raise FormatError(f"{self.header.file}: {self._name(key)}: {_short(value)} is not a string")
        return value

    def _name(self, key: str) -> str:
        return f"{self.header.architecture}.{key}"

    def _get(self, key: str) -> Any:
        return self.header.metadata.get(self._name(key))


def config_json(
    header: Header, architecture: Architecture, tensors: Mapping[str, Tensor], tables: Mapping[str, Array]
) -> dict[str, Any]:
    """Return config.json as transformers 4 writes it.

    Args:
        tensors: all weights, by Hugging Face's names.
        tables: the small tensors that belong to the configuration, by GGML's names.

    Raises:
        FormatError: a key is missing or impossible; names it.
        UnsupportedError: an option that no field of config.json describes.
    """
    keys = _Keys(header)
    config: dict[str, Any] = {"model_type": architecture.model_type, "hidden_act": architecture.activation}
    for key, field in INTEGERS.items():
        value = keys.integer(key)
        if value is None and key not in OPTIONAL:
            raise FormatError(f"{header.file}: {header.architecture}.{key} is missing")
        if value is not None:
            config[field] = value
    config["rms_norm_eps"] = keys.number("attention.layer_norm_rms_epsilon", 1e-5)
    config["rope_theta"] = keys.number("rope.freq_base", 10000.0)
    if (embedding := tensors.get("model.embed_tokens.weight")) is None:
        raise FormatError(f"{header.file}: tensor token_embd.weight is missing")
    config["vocab_size"] = embedding.shape[0]
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    config["attention_bias"] = any(name.endswith("o_proj.bias") for name in tensors)
    if not config["hidden_size"] or not config["num_attention_heads"]:
        raise FormatError(f"{header.file}: a model without width or heads")
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    config |= _rope(header, keys, config, width, tables)
    config |= OWN[architecture.model_type](keys, config, width)
    return config | _token_ids(header)


def _rope(
    header: Header, keys: _Keys, config: Mapping[str, Any], width: int, tables: Mapping[str, Array]
) -> dict[str, Any]:
    """The rotary fields: how much of a head turns, and how the angles are scaled."""
    fields: dict[str, Any] = {}
    turned = keys.integer("rope.dimension_count", width)
    if turned != width:
        fields["partial_rotary_factor"] = (turned or 0) / max(width, 1)
    original = keys.integer("rope.scaling.original_context_length")
    if original:
        fields["original_max_position_embeddings"] = original
    kind = keys.text("rope.scaling.type") or "none"
    if "rope_freqs.weight" in tables:
        fields["rope_scaling"] = llama3_scaling(
            header, tables["rope_freqs.weight"], config["rope_theta"], original or 8192
        )
    elif "rope_factors_long.weight" in tables:
        fields["rope_scaling"] = {
            "type": "longrope",
            "long_factor": [_shortest(value) for value in tables["rope_factors_long.weight"]],
            "short_factor": [_shortest(value) for value in tables.get("rope_factors_short.weight", ())],
        }
    elif kind != "none":
        factor = keys.number("rope.scaling.factor", 0.0)
        fields["rope_scaling"] = {"rope_type": kind, "factor": factor}
        if original:
            fields["rope_scaling"]["original_max_position_embeddings"] = original
        for key, field in (
            ("yarn_beta_fast", "beta_fast"),
            ("yarn_beta_slow", "beta_slow"),
        ):
            if (value := keys.number(f"rope.scaling.{key}", 0.0)) and kind == "yarn":
                fields["rope_scaling"][field] = value
    return fields


@np.errstate(all="ignore")  # what comes of impossible divisors fits nothing
def llama3_scaling(header: Header, divisors: Array, theta: float, original: int) -> dict[str, Any]:
    """Llama 3's rope scaling, from the divisor of each frequency that it gives.

    The divisor is 1 for wavelengths below original / high, `factor` above original / low, and between them
    1 / d is linear in the reciprocal of the wavelength. Only the ratios of high and low to `original` can be
    told from it. Nearly all checkpoints have 1 and 4, which are tried first.

    Raises:
        UnsupportedError: no such scaling gives these divisors.
    """
    factor = float(divisors.max(initial=0.0))
    low, high, fits = 1.0, 4.0, False
    if math.isfinite(factor) and factor > 1 and divisors.min() > 0 and theta > 0:
        # How often each frequency turns in the original context, and where between the two its divisor is.
        turns = original / (2 * math.pi) * theta ** -(np.arange(len(divisors)) / len(divisors))
        smooth = (1 / divisors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
        between = (smooth > 1e-3) & (smooth < 1 - 1e-3)
        fits = _is_ramp(turns, smooth, low, high)
        if not fits and between.sum() >= 2:
            x, y = turns[between], smooth[between]
            slope = ((x - x.mean()) * y).sum() / ((x - x.mean()) ** 2).sum()  # least squares
            start = x.mean() - y.mean() / slope
            low, high = float(f"{start:.4g}"), float(f"{start + 1 / slope:.4g}")
            fits = _is_ramp(turns, smooth, low, high)
    if not fits:
        raise UnsupportedError(
            f"{header.file}: rope_freqs.weight is no scaling of Llama 3's kind",
            hint="Convert the original checkpoint.",
        )
    return {
        "rope_type": "llama3",
        "factor": _shortest(factor),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _is_ramp(x: Doubles, y: Doubles, low: float, high: float) -> bool:
    """Whether y is 0 up to x = low, 1 from x = high, and linear between, as far as float32 can tell."""
    return low < high and bool(np.allclose(np.clip((x - low) / (high - low), 0, 1), y, atol=1e-4))


def _phi3(keys: _Keys, config: Mapping[str, Any], width: int) -> dict[str, Any]:
    return {"sliding_window": keys.integer("attention.sliding_window") or None}


def _qwen(keys: _Keys, config: Mapping[str, Any], width: int) -> dict[str, Any]:
    return {"use_sliding_window": False}


def _gemma2(keys: _Keys, config: Mapping[str, Any], width: int) -> dict[str, Any]:
    # The 27B model alone, with its 46 layers, scales queries by width and not by head size.
    wide = config["num_hidden_layers"] == 46
    return {
        "hidden_activation": config["hidden_act"],
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
        "sliding_window": keys.integer("attention.sliding_window", 4096),
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"] if wide else width,
    }


def _gemma3(keys: _Keys, config: Mapping[str, Any], width: int) -> dict[str, Any]:
    # The 27B model again, here with 62 layers.
    wide = config["num_hidden_layers"] == 62
    pattern = keys.integer("attention.sliding_window_pattern", 6) or 6
    layers = min(config["num_hidden_layers"], 1000)  # compared with the tensors later
    return {
        "hidden_activation": config["hidden_act"],
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10000.0),
        "sliding_window": keys.integer("attention.sliding_window", 512),
        "layer_types": [
            "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(layers)
        ],
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"] if wide else width,
    }


def _smollm3(keys: _Keys, config: Mapping[str, Any], width: int) -> dict[str, Any]:
    layers = min(config["num_hidden_layers"], 1000)  # compared with the tensors later
    return {
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(layers)],
        "use_sliding_window": False,
    }


# What a family has beyond the common fields.
OWN = {
    "llama": lambda keys, config, width: {},
    "qwen2": _qwen,
    "qwen3": _qwen,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "smollm3": _smollm3,
}


def _token_ids(header: Header) -> dict[str, Any]:
    """Ids of the tokens that begin a text, end an answer, and fill up."""
    fields: dict[str, Any] = {}
    for name, keys in (
        ("bos_token_id", ("bos_token_id",)),
        ("eos_token_id", ("eos_token_id", "eot_token_id", "eom_token_id")),
        ("pad_token_id", ("padding_token_id",)),
    ):
        found = [header.metadata.get(f"tokenizer.ggml.{key}") for key in keys]
        ids = list(dict.fromkeys(token for token in found if type(token) is int and token < 2**31))
        if ids:
            fields[name] = ids if len(ids) > 1 else ids[0]
    return fields


def _shortest(value: float) -> float:
    """The number with the fewest digits whose float32 is the same: 1e-05 for 9.999999747378752e-06."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def _short(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
