"""Frequencies of the rotary position embedding (RoFormer, arXiv:2104.09864) and of its long-context scalings.

The numbers are those of Hugging Face transformers (`modeling_rope_utils.py`), in float32 where it computes in
float32. Scalings that depend on the length of the text there are decided once here, by the context a library
is compiled for: keys that are in the cache cannot change their rotation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.errors import FormatError, UnsupportedError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rope:
    """How queries and keys turn with their position.

    Attributes:
        rates: angle per position of each pair of dimensions (i, i + len(rates)), every one exactly a float32.
            Dimensions from 2 * len(rates) on do not turn.
        gain: what cosine and sine are multiplied with.
    """

    rates: tuple[float, ...]
    gain: float = 1.0


def frequencies(
    theta: float,
    dim: int,
    scaling: Mapping[str, Any] | None = None,
    *,
    context: int = 0,
) -> Rope:
    """The rotation of `dim` dimensions with base `theta`.

    `scaling` is the model's rope_scaling: empty, or an object whose `rope_type` (in older files `type`) is

    - "default": no scaling;
    - "linear" (factor);
    - "llama3", Llama 3.1's rule (factor, low_freq_factor, high_freq_factor,
      original_max_position_embeddings);
    - "yarn" (arXiv:2309.00071; factor, original_max_position_embeddings; optional attention_factor, mscale,
      mscale_all_dim, beta_fast, beta_slow, truncate);
    - "longrope" or "su" (arXiv:2402.13753; short_factor, long_factor, original_max_position_embeddings, and
      factor or max_position_embeddings; optional attention_factor). The long factors are taken if `context`,
      the tokens that the library is compiled for, exceeds original_max_position_embeddings, else the short
      ones; transformers changes over in the middle of a text.

    Raises:
        UnsupportedError: another type, naming it.
        FormatError: a field is missing or impossible, naming it.
    """
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers = np.power(np.float32(theta), exponents).astype(np.float32)
    scaling = scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    rule = _RULES.get(kind)
    if rule is None:
        raise UnsupportedError(
            f"rope_scaling type {kind!r} is not supported", hint=f"Supported: {', '.join(_RULES)}."
        )
    rates, gain = rule(powers, theta, scaling, context)
    return Rope(tuple(float(rate) for rate in rates.astype(np.float32)), gain)


def _default(
    powers: Floats, _theta: float, _scaling: Mapping[str, Any], _context: int
) -> tuple[Floats, float]:
    return np.float32(1.0) / powers, 1.0


def _linear(powers: Floats, _theta: float, scaling: Mapping[str, Any], _context: int) -> tuple[Floats, float]:
    return np.float32(1.0) / powers / np.float32(_positive(scaling, "factor")), 1.0


def _llama3(powers: Floats, _theta: float, scaling: Mapping[str, Any], _context: int) -> tuple[Floats, float]:
    factor, low, high = (
        _positive(scaling, name) for name in ("factor", "low_freq_factor", "high_freq_factor")
    )
    if high <= low:
        raise FormatError(f"rope_scaling.high_freq_factor: {high} is not above low_freq_factor {low}")
    plain = np.float32(1.0) / powers
    turns = _positive(scaling, "original_max_position_embeddings") * plain.astype(np.float64) / (2 * math.pi)
    # Fewer turns than `low` over the original context: interpolated; more than `high`: kept; a ramp in
    # between.
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - kept) * plain / factor + kept * plain).astype(np.float32), 1.0


def _yarn(powers: Floats, theta: float, scaling: Mapping[str, Any], _context: int) -> tuple[Floats, float]:
    dim = 2 * len(powers)
    original = _positive(scaling, "original_max_position_embeddings")
    factor = _positive(scaling, "factor")

    def dimension(turns: float) -> float:
        """Which pair of dimensions makes so many turns over the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(_positive(scaling, "beta_fast", 32.0))
    high = dimension(_positive(scaling, "beta_slow", 1.0))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # as transformers avoids the division by zero
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    kept = np.float32(1.0) - ramp
    rates = np.float32(1.0) / (np.float32(factor) * powers) * (1 - kept) + np.float32(1.0) / powers * kept

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        gain = _positive(scaling, "attention_factor")
    elif scaling.get("mscale") and scaling.get("mscale_all_dim"):
        gain = magnitude(_positive(scaling, "mscale")) / magnitude(_positive(scaling, "mscale_all_dim"))
    else:
        gain = magnitude(1.0)
    return rates, gain


def _longrope(
    powers: Floats, _theta: float, scaling: Mapping[str, Any], context: int
) -> tuple[Floats, float]:
    original = _positive(scaling, "original_max_position_embeddings")
    factors = {name: _factors(scaling, name, len(powers)) for name in ("short_factor", "long_factor")}
    chosen = factors["long_factor" if context > original else "short_factor"]
    if scaling.get("attention_factor") is not None:
        gain = _positive(scaling, "attention_factor")
    else:
        stretch = (
            _positive(scaling, "factor")
            if scaling.get("factor") is not None
            else _positive(scaling, "max_position_embeddings") / original
        )
        gain = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return np.float32(1.0) / (np.array(chosen, np.float32) * powers), gain


_RULES = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
}


def _positive(scaling: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value = scaling.get(field)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise FormatError(
            f"rope_scaling.{field}: {value!r} is not a positive number",
            hint="Copy or convert the model again.",
        )
    return float(value)


def _factors(scaling: Mapping[str, Any], field: str, count: int) -> Sequence[float]:
    values = scaling.get(field)
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
        raise FormatError(
            f"rope_scaling.{field}: {found}, {count} numbers are needed, one for every two rotary dimensions",
            hint="Copy or convert the model again.",
        )
    return [_positive({field: value}, field) for value in values]
