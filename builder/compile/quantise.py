"""Weight formats by MLC's names, and group quantisation bit for bit as MLC-LLM does it.

q4f16_1 and q4f32_1: groups of 32 along the input dimension K share one scale, `max|w| / 7`; a weight becomes
the nibble `clip(round(w / scale + 7), 0, 14)`, eight to a uint32, the first in the lowest bits. Every
operation rounds to the model dtype (nearest, ties to even), which decides many nibbles in float16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

GROUP = 32
MAX_LEVEL = 7


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A weight format.

    Attributes:
        name: MLC's name, such as "q4f16_1".
        dtype: model dtype: that of norms, unquantised weights and scales; "float16" or "float32".
        bits: bits per weight of linear layers and embedding; None when they are not quantised.
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


def quantise(
    weight: npt.NDArray[np.float32], dtype: str
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.floating[Any]]]:
    """Quantise rows to four bits.

    Args:
        weight: float32 [N, K]. For dtype "float16" it is rounded to float16 first.
        dtype: model dtype, "float16" or "float32".

    Returns:
        q_weight, uint32 [N, 4 * ceil(K / 32)], and q_scale, `dtype` [N, ceil(K / 32)]. Nibbles past K and
        those of an all-zero group are 0, the scale of such a group too. A NaN or infinity in a group
        makes its scale NaN or infinite; the nibbles then mean nothing.
    """
    rows, width = weight.shape
    if padding := -width % GROUP:
        weight = np.pad(weight, ((0, 0), (0, padding)))
    groups = weight.reshape(rows, -1, GROUP)
    # Dividing by zero and overflow are part of the format: scale 0 gives NaN or infinity, which clips.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if dtype == "float16":
            # float32 arithmetic rounded to float16 once per operation equals float16 arithmetic: 24 bits of
            # precision are enough (2 * 11 + 2) for the double rounding of a quotient never to show.
            groups = groups.astype(np.float16).astype(np.float32)
            scale = (_peak(groups) / np.float32(MAX_LEVEL)).astype(np.float16)
            quotient = (groups / scale.astype(np.float32)[..., None]).astype(np.float16)
            nibbles = _nibble_of_float16()[quotient.view(np.uint16)]
        else:
            scale = _peak(groups) / np.float32(MAX_LEVEL)
            nibbles = _nibbles(groups / scale[..., None])
    nibbles = nibbles.reshape(rows, -1)
    if padding:
        nibbles[:, width:] = 0
    # Pairs of nibbles, then bytes in little-endian order, are exactly eight nibbles to a uint32.
    pairs = nibbles.view("<u2")
    return (pairs | pairs >> 4).astype(np.uint8).view("<u4"), scale


def dequantise(
    q_weight: npt.NDArray[np.uint32], q_scale: npt.NDArray[np.floating[Any]], width: int
) -> npt.NDArray[np.float32]:
    """Return the weights [N, width] that four-bit words stand for: `(nibble - 7) * scale`, in float32."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    nibbles = (q_weight[:, :, None] >> shifts & 15).astype(np.float32).reshape(len(q_weight), -1, GROUP)
    values = (nibbles - MAX_LEVEL) * q_scale.astype(np.float32)[..., None]
    return values.reshape(len(q_weight), -1)[:, :width]


def _peak(groups: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Largest magnitude along the last axis."""
    peak: npt.NDArray[np.float32] = np.abs(groups).max(axis=-1)
    return peak


def _nibbles(quotient: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Level of each `w / scale`, in the arithmetic of its dtype; NaN counts as level 0."""
    level = np.rint(quotient + quotient.dtype.type(MAX_LEVEL))
    return np.fmin(np.fmax(level, 0), 2 * MAX_LEVEL).astype(np.uint8)


@cache
def _nibble_of_float16() -> npt.NDArray[np.uint8]:
    """Level by the bits of a float16 quotient: one look-up instead of five passes in slow float16."""
    with np.errstate(invalid="ignore"):
        return _nibbles(np.arange(2**16, dtype=np.uint16).view(np.float16))
