"""What a model that is not here yet will need: bytes of weights and of memory, and whether they are there."""

import re
from collections.abc import Mapping
from typing import Any

from appliance.errors import InvalidRequestError
from appliance.hardware.memory import Fit, fits, kv_bytes, memory
from appliance.library.space import size
from builder.compile.quantise import QUANTISATIONS

BITS_STORED: Mapping[str, float] = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
}
"""Bits a weight of a checkpoint takes, by the `torch_dtype` or `dtype` of its config.json."""

GGUF_BITS = {
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5_K": 5.7,
    "Q5_1": 6,
    "Q5_0": 5.5,
    "Q4_K": 4.85,
    "Q4_1": 5,
    "Q4_0": 4.5,
    "Q3_K": 3.9,
    "Q2_K": 3.2,
}
"""Bits a weight takes in a GGUF file, by the format in its name."""


def quantised_bits(name: str) -> float:
    """Bits a weight takes in the MLC format of this name: its share of a 32-bit word and of a 16-bit scale.

    Raises:
        InvalidRequestError: there is no such format.
    """
    if name not in QUANTISATIONS:
        raise InvalidRequestError(
            f"quantization {name!r} is not supported",
            param="quantization",
            hint=f"Supported: {', '.join(QUANTISATIONS)}.",
        )
    format_ = QUANTISATIONS[name]
    # q0f32 is bfloat16 on disk, but float32 in memory.
    return 32 if format_.bits is None and format_.dtype == "float32" else format_.bits_per_weight


def converted_bytes(stored: int, bits: float, quantisation: str) -> int:
    """Bytes that `stored` bytes of weights with so many bits each take once converted, rounded up a little.

    Embeddings and norms keep more bits in some formats; a twentieth is for those.
    """
    return int(stored / bits * quantised_bits(quantisation) * 1.05)


def gguf_bits(name: str) -> float:
    """Bits a weight of a GGUF file takes, by its name; 4.5 where that does not tell."""
    upper = name.upper().replace("-", "_")
    found = [bits for label, bits in GGUF_BITS.items() if re.search(rf"(?<![A-Z0-9]){label}", upper)]
    return found[0] if found else 4.5


def stored_bits(config: Mapping[str, Any]) -> float:
    """Bits a weight of a checkpoint takes, by its config.json; 16 where that does not tell."""
    return BITS_STORED.get(str(config.get("torch_dtype") or config.get("dtype")), 16)


def judge(weights: int, config: Mapping[str, Any] | None, context: int) -> Fit:
    """Weigh a model against this machine's memory.

    Args:
        weights: bytes, in the format it will have here.
        config: `mlc-chat-config.json` or `config.json`; without one the cache is guessed from the weights.
        context: tokens that the settings reserve.
    """
    now = memory()
    return fits(weights, _cache(weights, config, context), now.available, now.total)


def sentence(fit: Fit) -> str:
    """The verdict for people."""
    wants = f"it takes {size(fit.needed)} of memory"
    match fit.verdict:
        case "fits":
            return f"It fits: {wants}, {size(fit.available)} are free."
        case "not now":
            return (
                f"It fits only when other programs end: {wants}, {size(fit.available)}"
                f" of {size(fit.total)} are free."
            )
        case "never":
            return f"It does not fit: {wants}, this machine has {size(fit.total)} in all."


def _cache(weights: int, config: Mapping[str, Any] | None, context: int) -> int:
    if config is not None:
        # Checkpoints that see as well as read keep the fields of their language model apart.
        shape = config.get("model_config") or config.get("text_config") or config
        window = config.get("context_window_size") or shape.get("max_position_embeddings") or context
        try:
            return kv_bytes({"model_config": shape}, min(context, int(window)))
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            pass  # a family that names its fields otherwise, or a bad value, which its reader will name
    # 64 KiB a token for each billion weights of 4.5 bits, as Llama-3.2-1B has; others have up to thrice that.
    return int(weights * 8 / 4.5 / 1e9 * 64 * 2**10 * context)
