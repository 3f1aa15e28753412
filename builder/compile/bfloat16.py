"""bfloat16 as numpy lacks it: bit patterns in uint16, or the values in float32, which holds each exactly."""

import numpy as np
import numpy.typing as npt


def widen_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return the float32 values of bfloat16 bit patterns; exact."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def narrow_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return float32 values rounded to bfloat16 (nearest, ties to even) as bit patterns. No NaN, please."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    return (rounded >> 16).astype(np.uint16)


def round_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return float32 values rounded to bfloat16, still as float32; NaN stays NaN, overflow is infinite."""
    rounded = widen_bfloat16(narrow_bfloat16(values))
    # The carry of rounding turns some NaN into other numbers.
    return np.where(np.isnan(values), values, rounded)
