"""What GGML's weight types hold, and how they become float32.

Layouts: the block structs of ggml-common.h in ggml, https://github.com/ggml-org/ggml (docs/gguf.md numbers
the types). A row is cut into blocks of 32 or 256 weights, each with its own scales; `d` and `m` (or `dmin`)
are float16. All arithmetic is float32, in the order of ggml's reference, so results are equal to the bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.compile.bfloat16 import widen_bfloat16

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockType:
    """A weight type.

    Attributes:
        name: GGML's.
        weights: per block.
        nbytes: per block.
        decode: bytes [n, nbytes] to float32 [n, weights].
    """

    name: str
    weights: int
    nbytes: int
    decode: Callable[[Bytes], Floats]


def _float32(raw: Bytes) -> Floats:
    return raw.view("<f4").astype(np.float32, copy=False)


def _float16(raw: Bytes) -> Floats:
    # Damaged files hold signalling NaNs, which numpy remarks upon; the converter refuses NaN anyway.
    with np.errstate(invalid="ignore"):
        return raw.view("<f2").astype(np.float32)


def _bfloat16(raw: Bytes) -> Floats:
    return widen_bfloat16(raw.view("<u2"))


def _q8_0(raw: Bytes) -> Floats:
    """d, then 32 signed bytes: d * q."""
    return _scaled(raw[:, 2:].view(np.int8).astype(np.float32), _half(raw, 0))


def _q4_0(raw: Bytes) -> Floats:
    """d, then 16 bytes; the low nibbles are the first 16 weights: d * (q - 8)."""
    return _scaled(_nibbles(raw[:, 2:]), _half(raw, 0), below=8)


def _q4_1(raw: Bytes) -> Floats:
    """d, m, nibbles as in Q4_0: d * q + m."""
    return _scaled(_nibbles(raw[:, 4:]), _half(raw, 0), plus=_half(raw, 2))


def _q5_0(raw: Bytes) -> Floats:
    """d, 32 fifth bits, nibbles as in Q4_0: d * (q - 16)."""
    return _scaled(_nibbles(raw[:, 6:], _fifth_bits(raw[:, 2:6])), _half(raw, 0), below=16)


def _q5_1(raw: Bytes) -> Floats:
    """d, m, 32 fifth bits, nibbles as in Q4_0: d * q + m."""
    return _scaled(_nibbles(raw[:, 8:], _fifth_bits(raw[:, 4:8])), _half(raw, 0), plus=_half(raw, 2))


def _q4_k(raw: Bytes) -> Floats:
    """d, dmin, packed scales, 128 bytes; each 32 bytes hold 64 weights, low nibbles first."""
    levels = _nibbles(raw[:, 16:].reshape(-1, 32))
    return _scaled(levels.reshape(-1, 8, 32), *_k_scales(raw)).reshape(-1, 256)


def _q5_k(raw: Bytes) -> Floats:
    """As Q4_K, with 32 bytes of fifth bits between: bit i of byte j is that of weight 32 i + j."""
    bits = np.empty((len(raw), 8, 32), np.uint8)
    for index in range(8):
        bits[:, index] = (raw[:, 16:48] >> index & 1) << 4
    levels = _nibbles(raw[:, 48:].reshape(-1, 32), bits.reshape(-1, 64))
    return _scaled(levels.reshape(-1, 8, 32), *_k_scales(raw)).reshape(-1, 256)


def _q6_k(raw: Bytes) -> Floats:
    """128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales, d: d * scale * (q - 32)."""
    pairs = raw[:, 128:192].reshape(-1, 2, 32)
    upper = np.empty((len(raw), 2, 4, 32), np.uint8)
    for index in range(4):
        upper[:, :, index] = (pairs >> 2 * index & 3) << 4
    levels = _nibbles(raw[:, :128].reshape(-1, 64), upper.reshape(-1, 128))
    scales = _half(raw, 208) * raw[:, 192:208].view(np.int8)
    return _scaled(levels.reshape(-1, 16, 16), scales[:, :, None], below=32).reshape(-1, 256)


def _scaled(levels: Floats, scale: Floats, plus: Floats | None = None, *, below: int = 0) -> Floats:
    """`(levels - below) * scale + plus`, in place: fresh arrays of this size would cost most of the time."""
    if below:
        levels -= np.float32(below)
    levels *= scale
    if plus is not None:
        levels += plus
    return levels


def _half(raw: Bytes, at: int) -> Floats:
    """The float16 at a byte of every block, as a column [n, 1]."""
    return _float16(np.ascontiguousarray(raw[:, at : at + 2]))


def _nibbles(packed: Bytes, upper: Bytes | None = None) -> Floats:
    """[n, m] bytes to [n, 2 m]: all low nibbles, then all high ones; with the bits of `upper` above them."""
    levels = np.empty((len(packed), 2, packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 15, out=levels[:, 0])
    np.right_shift(packed, 4, out=levels[:, 1])
    flat = levels.reshape(len(packed), -1)
    if upper is not None:
        flat |= upper
    return flat.astype(np.float32)


def _fifth_bits(packed: Bytes) -> Bytes:
    """[n, 4] bytes to [n, 32]: 16 where the bit is set, the lowest bit of the first byte first."""
    return np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little") * np.uint8(16)


def _k_scales(raw: Bytes) -> tuple[Floats, Floats]:
    """What a K block multiplies with and adds [n, 8, 1]: float16 factors, 8 pairs of 6 bits in 12 bytes."""
    first, second, third = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | (second >> 6) << 4], axis=1)
    return (
        (_half(raw, 0) * scales.astype(np.float32))[:, :, None],
        (-_half(raw, 2) * minima.astype(np.float32))[:, :, None],
    )


# By GGML's type number.
TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4, _float32),
    1: BlockType("F16", 1, 2, _float16),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    30: BlockType("BF16", 1, 2, _bfloat16),
}
BY_NAME: Mapping[str, BlockType] = {kind.name: kind for kind in TYPES.values()}
# Those that are known but not read, for messages.
OTHER_TYPES: Mapping[int, str] = {
    10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def decode(kind: BlockType, raw: Bytes) -> Floats:
    """Return rows [n, K] of float32 from their bytes [n, K / weights * nbytes]."""
    rows = len(raw)
    with np.errstate(invalid="ignore", over="ignore"):  # infinity times zero in a damaged block
        return kind.decode(np.ascontiguousarray(raw).reshape(-1, kind.nbytes)).reshape(rows, -1)


def q4_0_groups(raw: Bytes) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float16]]:
    """Return the rows [n, K] of Q4_0 bytes as `q_weight` [n, K / 8] and `q_scale` [n, K / 32] of q4f16_1.

    Lossless: `d * (q - 8)` equals `(15 - q - 7) * -d`. Nibble 15, which MLC-LLM itself never writes, is a
    level like the others to whatever reads the format.
    """
    rows = len(raw)
    blocks = np.ascontiguousarray(raw).reshape(-1, 18)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2")
    # GGML: byte j holds weights j and j + 16. MLC: byte j holds weights 2 j and 2 j + 1. Flipping all bits of
    # a nibble q makes it 15 - q.
    pairs = ~np.ascontiguousarray(blocks[:, 2:]).view("<u2")
    packed: npt.NDArray[Any] = np.empty((len(blocks), 16), np.uint8)
    low, high = pairs & 0x0F0F, pairs >> 4 & 0x0F0F
    packed[:, :8] = low | low >> 4
    packed[:, 8:] = high | high >> 4
    return packed.view("<u4").reshape(rows, -1), -scale.reshape(rows, -1)
