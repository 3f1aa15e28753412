"""Group quantisation of weights, bit for bit as MLC-LLM does it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A weight format, by MLC's name.

    Attributes:
        name: "q4f16_1", …
        dtype: model dtype, of everything that is not quantised and of the scales: "float16" or "float32".
        bits: bits per quantised weight; None when nothing is quantised.
    """

    name: str
    dtype: str
    bits: int | None


QUANTISATIONS: Mapping[str, Quantisation] = {
    q.name: q
    for q in (
        Quantisation("q4f16_1", "float16", 4),
        Quantisation("q4f32_1", "float32", 4),
        Quantisation("q0f16", "float16", None),
        Quantisation("q0f32", "float32", None),
    )
}
