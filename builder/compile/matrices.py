"""How a CPU library holds a matrix, by the form it has on disk, and which kernels then read it.

on disk                   fast                      exact
4 bits, "NK" and "KN"     packed, int8 activations  as it lies; "KN" transposed
3 bits                    as exact                  bit planes
float16, bfloat16         as exact                  as it lies, bfloat16 as its bits
float32                   as exact                  as it lies, widened from the bfloat16 in the file
"""

from dataclasses import dataclass
from typing import Any, Literal

from builder.compile.families.parameters import Parameter
from builder.compile.kernels import embedding, exact, packing, w4a8
from builder.compile.kernels.isa import Isa
from builder.compile.kernels.weights import NIBBLES, THREE_BIT_GROUP, in_memory
from builder.compile.packing import Step
from builder.compile.quantise import Form, Tensor

Kernel = Any  # tvm.tirx.PrimFunc
Reads = Literal["blocks", "rows"]
BLOCKS: Reads = "blocks"
ROWS: Reads = "rows"

FOUR_BITS = {scale: weight for weight, scale in NIBBLES.items()}


@dataclass(frozen=True)
class Matrix:
    """A matrix in memory: [outputs, inputs] of a linear layer, or [tokens, width] of an embedding.

    Attributes:
        step: how its tensors are made of the stored ones.
        packer: the kernel that does, if it takes one.
        reads: what `linear` multiplies with: int8 "blocks" or float32 "rows".
        weight: dtype of the scales of what has "blocks", else one of `weights.WEIGHTS`.
    """

    rows: int
    columns: int
    isa: Isa
    step: Step
    packer: Kernel | None
    reads: Reads
    weight: str

    def linear(self, *, rows: int | None, bias: bool = False, residual: bool = False) -> Kernel:
        """`w4a8.linear` or `exact.linear`, without its arguments for the matrix."""
        if self.reads == BLOCKS:
            return w4a8.linear(
                self.rows, self.columns, self.isa, scale=self.weight, rows=rows, bias=bias, residual=residual
            )
        return exact.linear(
            self.rows, self.columns, self.isa, weight=self.weight, rows=rows, bias=bias, residual=residual
        )

    def lookup(self, multiplier: float = 1.0) -> Kernel:
        """`embedding.lookup_packed` or `embedding.lookup`."""
        if self.reads == BLOCKS:
            return embedding.lookup_packed(
                self.rows, self.columns, self.isa, scale=self.weight, multiplier=multiplier
            )
        return embedding.lookup(self.rows, self.columns, self.isa, weight=self.weight, multiplier=multiplier)


def hold(parameter: Parameter, stored: tuple[Tensor, ...], form: Form, isa: Isa, *, fast: bool) -> Matrix:
    """How to hold a matrix, whose tensors on disk are `stored`.

    Raises:
        UnsupportedError: its width is no multiple of 32.
    """
    n, k = parameter.shape
    shapes = [tensor.shape for tensor in stored]
    dtypes = [in_memory(tensor.dtype) for tensor in stored]
    weight, packer, reads = form.dtype, None, ROWS
    if form.bits == 4 and fast:
        packer, reads = packing.pack(n, k, isa, scale=form.dtype, layout=form.layout), BLOCKS
        shapes, dtypes[0] = [packing.packed_shape(n, k, isa), packing.scales_shape(n, k, isa)], "uint8"
    elif form.bits == 4:
        weight = FOUR_BITS[form.dtype]
        if form.layout == "KN":
            packer, shapes = packing.transpose(n, k, scale=form.dtype), [shape[::-1] for shape in shapes]
    elif form.bits == 3:
        weight, packer = "q3f16", packing.planes(n, k, layout=form.layout)
        shapes = [packing.planes_shape(n, k), (n, -(-k // THREE_BIT_GROUP))]
    outputs = tuple(map(Tensor, (tensor.name for tensor in stored), shapes, dtypes))
    function = None if packer is None else str(packer.attrs["global_symbol"])
    step = Step(tuple(tensor.name for tensor in stored), outputs, function)
    return Matrix(n, k, isa, step, packer, reads, weight)
