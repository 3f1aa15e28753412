"""What a CPU offers to the int4 x int8 dot product, and the weight layout that follows from it."""

from dataclasses import dataclass
from typing import Any, Literal

Dot = Literal["vpdpbusd", "vpmaddubsw", "sdot", "plain"]


@dataclass(frozen=True)
class Isa:
    """One instruction-set seam of the fast linears.

    Weights are packed in groups of `lanes` rows. A group holds, for each 32 columns, `16 * lanes` bytes; a
    byte's low nibble belongs to a column 0..15 of the block and its high nibble to the column 16 further on.
    With `quads` four neighbouring columns of a row lie together, as the dot-product instructions want them
    (`[column // 4][row][column % 4]`), else all rows of a column do (`[column][row]`).

    Attributes:
        name: stable; part of the cache key of compiled libraries and of the layout's name.
        dot: which dot product the linears emit.
        lanes: rows per packed group, the number of int32 lanes of a vector (of int16 lanes for `plain`).
        quads: see above.
        float_lanes: float32 lanes of a register, which sizes the tiles of the float kernels.
        half: float16 <-> float32 conversion is an instruction; elsewhere kernels do integer arithmetic.
    """

    name: str
    dot: Dot
    lanes: int
    quads: bool
    float_lanes: int
    half: bool

    def byte(self, row: Any, column: int) -> Any:
        """Which byte of a group's block holds `column` (0..15) and `column` + 16 of a row."""
        if self.quads:
            return (column // 4 * self.lanes + row) * 4 + column % 4
        return column * self.lanes + row


AVX512_VNNI = Isa("avx512vnni", "vpdpbusd", 16, quads=True, float_lanes=16, half=True)
AVX2 = Isa("avx2", "vpmaddubsw", 8, quads=True, float_lanes=8, half=True)
NEON_DOT = Isa("neondot", "sdot", 4, quads=True, float_lanes=4, half=True)
GENERIC = Isa("generic", "plain", 8, quads=False, float_lanes=4, half=False)

ISAS = {isa.name: isa for isa in (AVX512_VNNI, AVX2, NEON_DOT, GENERIC)}
