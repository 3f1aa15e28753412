"""Rotary position embedding (RoFormer, arXiv:2104.09864) and its scalings, as transformers has them.

A description is MLC's `rope_scaling`: {"rope_type": …} with the numbers of that type, all of them, so that it
means the same wherever it is read. None is plain rope.

    linear    positions divided by `factor`
    dynamic   plain up to the context the model was trained for, and not offered beyond it
    llama3    slow dimensions divided by `factor`, fast ones kept, a ramp between (Llama 3.1)
    yarn      the same idea with another ramp, and a factor on cosine and sine (arXiv:2309.00071)
    longrope  a divisor for each dimension, one set for short and one for long contexts (arXiv:2402.13753)
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.compile.families.fields import Fields
from builder.errors import FormatError, UnsupportedError

LONGEST = 2048  # what transformers takes where config.json does not tell
TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")

Scaling = dict[str, Any]
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rope:
    """Rotation of a layer's queries and keys: dimension i turns with dimension i + len(rates).

    Attributes:
        rates: angle per position of each pair, exactly a float32. Dimensions past the pairs stay.
        gain: what cosine and sine are multiplied with.
    """

    rates: tuple[float, ...]
    gain: float = 1.0


def rope_config(
    source: Fields, *, theta: float = 10000.0, partial: bool = False
) -> tuple[float, Scaling | None]:
    """Base and scaling that a config.json describes, in the words of either generation of transformers.

    transformers 4 writes `rope_theta` and `rope_scaling`; transformers 5 puts both into `rope_parameters`.

    Args:
        theta: the family's default base.
        partial: whether the family rotates a part of each head where config.json says so.

    Raises:
        UnsupportedError: an unknown type, or a partial rotation of a family that has none; names it.
        FormatError: a number of the type is missing or impossible.
    """
    scaling = source.section("rope_parameters" if source.has("rope_parameters") else "rope_scaling")
    if not partial:
        for place in (source, scaling):
            place.only("partial_rotary_factor", 1)
    base = scaling.number("rope_theta", source.number("rope_theta", theta))
    longest = source.integer("max_position_embeddings", LONGEST)
    return base, describe(scaling, longest, source.get("original_max_position_embeddings"))


def describe(scaling: Fields, longest: int, original: Any = None) -> Scaling | None:
    """A scaling with every number that its type needs; None for plain rope.

    Args:
        scaling: what the file says.
        longest: the model's `max_position_embeddings`, unless `scaling` has its own.
        original: its `original_max_position_embeddings` from outside the object, which goes first.

    Raises:
        UnsupportedError, FormatError: as `rope_config`.
    """
    if original is not None:
        scaling = Fields(scaling.where, {**scaling.values, "original_max_position_embeddings": original})
    kind = rope_type(scaling)
    longest = scaling.integer("max_position_embeddings", longest)
    trained = scaling.integer("original_max_position_embeddings", longest)
    if trained == 1:
        raise scaling.wrong("original_max_position_embeddings", "is no context")
    match kind:
        case "default":
            return None
        case "linear":
            numbers: Scaling = {"factor": scaling.number("factor")}
        case "dynamic":
            numbers = {"factor": scaling.number("factor"), "original_max_position_embeddings": trained}
        case "llama3":
            names = ("factor", "low_freq_factor", "high_freq_factor")
            numbers = {name: scaling.number(name) for name in names}
            if numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
                raise scaling.wrong("low_freq_factor", "is not below high_freq_factor")
            numbers["original_max_position_embeddings"] = scaling.integer("original_max_position_embeddings")
        case "yarn":
            factor = scaling.number("factor", longest / trained)
            numbers = {
                "factor": factor,
                "original_max_position_embeddings": trained,
                "attention_factor": scaling.number("attention_factor", _yarn_gain(scaling, factor)),
                "beta_fast": scaling.number("beta_fast", 32),
                "beta_slow": scaling.number("beta_slow", 1),
                "truncate": scaling.flag("truncate", True),
            }
        case _:
            factor = scaling.number("factor", longest / trained)
            numbers = {
                "factor": factor,
                "original_max_position_embeddings": trained,
                "attention_factor": scaling.number("attention_factor", _longrope_gain(factor, trained)),
                "short_factor": scaling.get("short_factor"),
                "long_factor": scaling.get("long_factor"),
            }
    return {"rope_type": kind, **numbers}


def rope_type(scaling: Fields) -> str:
    """The type that a scaling names.

    Raises:
        UnsupportedError: an unknown one.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # its name in early Phi-3 checkpoints
    if kind not in TYPES:
        raise UnsupportedError(
            f"{scaling.where}: rope type {kind!r} is not supported", hint=f"Supported: {', '.join(TYPES)}."
        )
    return str(kind)


def read_rope(config: Fields, dim: int, base: str = "position_embedding_base") -> Rope:
    """The rotation that MLC's `model_config` describes, which calls the base by the name `base`.

    Raises:
        UnsupportedError, FormatError: as `rope`.
    """
    theta, context = config.number(base, 10000.0), config.integer("context_window_size")
    return rope(theta, dim, config.section("rope_scaling"), context=context)


def rope(theta: float, dim: int, scaling: Fields, *, context: int) -> Rope:
    """The rotation of the first `dim` dimensions of every head.

    longrope's two sets are not mixed: a model whose `context` goes beyond what it was trained for uses the
    long set from the first token on, as its keys stay in the cache while a chat grows.

    Args:
        scaling: MLC's `rope_scaling`, ours or MLC-LLM's; empty for plain rope.
        context: tokens of context.

    Raises:
        UnsupportedError, FormatError: as `rope_config`; or `context` is beyond what a dynamic rope offers.
    """
    if dim < 2 or dim % 2:
        raise FormatError(f"{scaling.where}: rotary dimensions {dim} are not a positive even number")
    if theta <= 1:
        raise FormatError(f"{scaling.where}: a rotary base of {theta} turns no dimension slower than another")
    numbers = describe(scaling, context) or {"rope_type": "default"}
    base = np.power(np.float32(theta), np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    plain = (np.float32(1.0) / base).astype(np.float32)
    match numbers["rope_type"]:
        case "linear":
            return _rope(plain / np.float32(numbers["factor"]))
        case "dynamic" if context > (reach := numbers["original_max_position_embeddings"]):
            raise UnsupportedError(
                f"{scaling.where}: rope type 'dynamic' reaches {reach} tokens, not {context}",
                hint="Convert the model with a smaller context window.",
            )
        case "llama3":
            return _rope(_llama3(plain, numbers))
        case "yarn":
            return _rope(_yarn(plain, theta, numbers), numbers["attention_factor"])
        case "longrope":
            long = context > numbers["original_max_position_embeddings"]
            divisors = scaling.numbers("long_factor" if long else "short_factor", dim // 2)
            rates = np.float32(1.0) / (np.array(divisors, np.float32) * base)
            return _rope(rates, numbers["attention_factor"])
    return _rope(plain)


def _rope(rates: npt.NDArray[Any], gain: float = 1.0) -> Rope:
    return Rope(tuple(float(rate) for rate in rates.astype(np.float32)), float(gain))


def _llama3(plain: Array, numbers: Scaling) -> Array:
    turns = numbers["original_max_position_embeddings"] * plain.astype(np.float64) / (2 * math.pi)
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    # Fewer turns than `low` over the original context: interpolated; more than `high`: kept.
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    rates: Array = ((1 - kept) * plain / numbers["factor"] + kept * plain).astype(np.float32)
    return rates


def _yarn(plain: Array, theta: float, numbers: Scaling) -> Array:
    dim, trained = 2 * len(plain), numbers["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        """Which dimension turns so often over the original context."""
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(numbers["beta_fast"]), dimension(numbers["beta_slow"])
    if numbers["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    stretched = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0.0, 1.0)
    rates: Array = (plain / numbers["factor"] * stretched + plain * (1 - stretched)).astype(np.float32)
    return rates


def _yarn_gain(scaling: Fields, factor: float) -> float:
    def growth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return growth(scaling.number("mscale")) / growth(scaling.number("mscale_all_dim"))
    return growth(1.0)


def _longrope_gain(factor: float, trained: int) -> float:
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
