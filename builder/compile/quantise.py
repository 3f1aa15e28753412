"""Weight formats by MLC's names, and group quantisation bit for bit as MLC-LLM does it.

A name reads q<bits><model dtype>_<variant>. Quantised matrices are groups along the input dimension K that
share one scale, `max|w| / top`; a weight becomes the level `clip(round(w / scale + top), 0, 2 * top)`, and
levels fill uint32 words from the lowest bits on:

    4 bits  groups of 32, top 7, eight to a word
    3 bits  groups of 40, top 3, ten to a word (the two highest bits stay 0)

Variant 1 stores a matrix as rows of N outputs ("NK"); variant 0 stores linear layers, not the embedding,
transposed ("KN"); variant 2 is variant 1 with embedding and output matrix unquantised.

Rounding decides many levels. In float16 every operation rounds to float16 (nearest, ties to even). In
bfloat16 weights and scales are bfloat16 and the operations between them float32: that is how MLC-LLM's own
quantiser computes where a processor has no bfloat16 arithmetic. float32 is float32 throughout.

Source of the rules: MLC-LLM's `quantization/group_quantization.py`, and what it writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from builder.compile.bfloat16 import round_bfloat16

Layout = Literal["NK", "KN"]
Role = Literal["embedding", "linear", "head", "vector"]
"""What a parameter is: the token table, a linear layer, the output matrix, or a norm's weight or a bias."""

GROUPS: Mapping[int, int] = {4: 32, 3: 40}
"""Weights that share a scale, by bits per weight."""


@dataclass(frozen=True)
class Tensor:
    """Name, shape and dtype of a tensor, on disk or in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True, slots=True)
class Form:
    """How one parameter is stored.

    Attributes:
        dtype: of plain values, or of the scales: "float16", "bfloat16" or "float32".
        bits: per weight of a quantised matrix; None for plain values.
        layout: "NK" or "KN", of quantised matrices.
    """

    dtype: str
    bits: int | None
    layout: Layout = "NK"

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The stored tensors of the parameter `name` ("….weight"): words and scales, or the plain one."""
        if self.bits is None:
            return (Tensor(name, shape, self.dtype),)
        rows, columns = shape
        groups = -(-columns // GROUPS[self.bits])
        words = groups * GROUPS[self.bits] // (32 // self.bits)
        stem, turned = name.removesuffix("weight"), self.layout == "KN"
        return (
            Tensor(f"{stem}q_weight", (words, rows) if turned else (rows, words), "uint32"),
            Tensor(f"{stem}q_scale", (groups, rows) if turned else (rows, groups), self.dtype),
        )

    def values(self, stored: Sequence[npt.NDArray[Any]], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """The parameter of `shape`, in float32, that its stored tensors (bfloat16 as float32) stand for.

        What a model computes with may be rounded once more: float16 models round each weight to float16.
        """
        if self.bits is None:
            return stored[0].astype(np.float32, copy=False)
        words, scale = (tensor.T for tensor in stored) if self.layout == "KN" else stored
        return dequantise(np.ascontiguousarray(words), scale, shape[1], self.bits)


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A weight format.

    Attributes:
        name: MLC's name, such as "q4f16_1".
        dtype: model dtype: that of norms, biases, unquantised weights and scales.
        bits: bits per weight of quantised matrices; None when there are none.
        layout: of quantised linear layers; the embedding is always "NK".
        ends: embedding and output matrix are quantised too.
    """

    name: str
    dtype: str
    bits: int | None
    layout: Layout = "NK"
    ends: bool = True

    @property
    def group(self) -> int | None:
        """Weights that share a scale."""
        return None if self.bits is None else GROUPS[self.bits]

    @property
    def bits_per_weight(self) -> float:
        """What a weight of a large matrix takes on disk, with its share of a scale: 4.5, 3.6 or 16.

        `ends` counts as quantised. float32 is stored as bfloat16.
        """
        return 16.0 if self.bits is None else 32 / (32 // self.bits) + 16 / GROUPS[self.bits]

    def form(self, role: Role) -> Form:
        """How a parameter is stored."""
        if role == "vector" or (role != "linear" and not self.ends):
            return Form(self.dtype, None)
        return Form(self.dtype, self.bits, "NK" if role == "embedding" else self.layout)


QUANTISATIONS: Mapping[str, Quantisation] = {
    q.name: q
    for q in (
        Quantisation("q4f16_1", "float16", 4),
        Quantisation("q4f32_1", "float32", 4),
        Quantisation("q4bf16_1", "bfloat16", 4),
        Quantisation("q4f16_0", "float16", 4, "KN"),
        Quantisation("q4f16_2", "float16", 4, ends=False),
        Quantisation("q3f16_1", "float16", 3),
        Quantisation("q3f16_0", "float16", 3, "KN"),
        Quantisation("q0f16", "float16", None),
        Quantisation("q0bf16", "bfloat16", None),
        Quantisation("q0f32", "float32", None),
    )
}


def quantise(
    weight: npt.NDArray[np.float32], dtype: str, bits: int = 4
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.floating[Any]]]:
    """Quantise rows.

    Args:
        weight: float32 [N, K], rounded to the model dtype first.
        dtype: model dtype, "float16", "bfloat16" or "float32".
        bits: 4 or 3.

    Returns:
        words, uint32 [N, groups * words per group], and scales [N, groups]: float16 for "float16", else
        float32 (which holds the bfloat16 ones exactly). Levels past K and those of an all-zero group are 0,
        the scale of such a group too. A NaN or infinity in a group makes its scale NaN or infinite; the
        levels then mean nothing.
    """
    rows, width = weight.shape
    group, top = GROUPS[bits], _top(bits)
    if padding := -width % group:
        weight = np.pad(weight, ((0, 0), (0, padding)))
    groups = weight.reshape(rows, -1, group)
    scale: npt.NDArray[np.floating[Any]]
    # Dividing by zero and overflow are part of the format: scale 0 gives NaN or infinity, which clips.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if dtype == "float16":
            # float32 arithmetic rounded to float16 once per operation equals float16 arithmetic: 24 bits of
            # precision are enough (2 * 11 + 2) for the double rounding of a quotient never to show.
            groups = groups.astype(np.float16).astype(np.float32)
            scale = (_peak(groups) / np.float32(top)).astype(np.float16)
            quotient = (groups / scale.astype(np.float32)[..., None]).astype(np.float16)
            levels = _level_of_float16(top)[quotient.view(np.uint16)]
        else:
            kept = round_bfloat16 if dtype == "bfloat16" else np.asarray
            groups = kept(groups)
            scale = kept(_peak(groups) / np.float32(top))
            levels = _levels(groups / scale[..., None], top)
    levels = levels.reshape(rows, -1)
    if padding:
        levels[:, width:] = 0
    return (_words_of_four if bits == 4 else _words_of_three)(levels), scale


def dequantise(
    words: npt.NDArray[np.uint32], scale: npt.NDArray[np.floating[Any]], width: int, bits: int = 4
) -> npt.NDArray[np.float32]:
    """Return the weights [N, width] that "NK" words stand for: `(level - top) * scale`, in float32."""
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    levels = (words[:, :, None] >> shifts & np.uint32(2**bits - 1)).astype(np.float32)
    values = (levels.reshape(len(words), -1, GROUPS[bits]) - _top(bits)) * scale.astype(np.float32)[..., None]
    return values.reshape(len(words), -1)[:, :width]


def rounded(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.floating[Any]]:
    """Values as `dtype` holds them: float16, or float32 (rounded, for "bfloat16"). Overflow is infinite."""
    if dtype == "bfloat16":
        return round_bfloat16(values)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _top(bits: int) -> int:
    """The largest multiple of the scale that a level stands for."""
    return (1 << bits - 1) - 1


def _words_of_four(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Pairs of levels, then bytes in little-endian order, are exactly eight levels to a uint32."""
    pairs = levels.view(np.dtype("<u2"))
    words: npt.NDArray[np.uint32] = (pairs | pairs >> 4).astype(np.uint8).view("<u4")
    return words


def _words_of_three(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Ten levels to a uint32."""
    pairs = levels.view(np.dtype("<u2"))
    fives = ((pairs | pairs >> 5) & 63).astype(np.uint32).reshape(len(levels), -1, 5)
    words: npt.NDArray[np.uint32] = fives[..., 0].copy()
    for index in range(1, 5):
        words |= fives[..., index] << np.uint32(6 * index)
    return words


def _peak(groups: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Largest magnitude along the last axis."""
    peak: npt.NDArray[np.float32] = np.abs(groups).max(axis=-1)
    return peak


def _levels(quotient: npt.NDArray[np.floating[Any]], top: int) -> npt.NDArray[np.uint8]:
    """Level of each `w / scale`, in the arithmetic of its dtype; NaN counts as level 0."""
    level = np.rint(quotient + quotient.dtype.type(top))
    return np.fmin(np.fmax(level, 0), 2 * top).astype(np.uint8)


@cache
def _level_of_float16(top: int) -> npt.NDArray[np.uint8]:
    """Level by the bits of a float16 quotient: one look-up instead of five passes in slow float16."""
    with np.errstate(invalid="ignore"):
        return _levels(np.arange(2**16, dtype=np.uint16).view(np.float16), top)
