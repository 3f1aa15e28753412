"""Which weights a model has on disk, and how a CPU library wants them in memory.

On disk a linear layer is MLC's (`q_weight` and `q_scale`, or `weight`); a library may compute from packed
forms of them. The table of packing steps travels in the library's metadata and names the library's own
kernels, so the loader needs no knowledge of layouts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from builder.compile.quantise import QUANTISATIONS

GROUP = 32  # weights per scale in every 4-bit format read here


@dataclass(frozen=True)
class Tensor:
    """Name, shape and dtype of a tensor, on disk or in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class Step:
    """How some entries of `packed_params` are made.

    Attributes:
        sources: tensors of the directory, by name.
        outputs: the entries, in order.
        function: kernel of the library, called with the sources and then the outputs; None where each output
            is its source, converted to the output's dtype.
    """

    sources: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    function: str | None = None


@dataclass(frozen=True)
class Matrix:
    """A weight of `rows` outputs and `columns` inputs; `entries` are its indices in `packed_params`."""

    name: str
    rows: int
    columns: int
    entries: tuple[int, ...]


Pack = Callable[[int, int, tuple[Tensor, ...]], Step]


@dataclass
class Parameters:
    """The two tables of a model, filled layer by layer.

    Attributes:
        quantization: MLC's name of the weight format.
        pack: given rows, columns and the tensors on disk, how a matrix gets into memory.
        stored: tensors of the directory.
        steps: how `packed_params` is made, in its order.
    """

    quantization: str
    pack: Pack
    stored: list[Tensor] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def packed(self) -> list[Tensor]:
        """The entries of `packed_params`."""
        return [output for step in self.steps for output in step.outputs]

    def matrix(self, name: str, rows: int, columns: int) -> Matrix:
        """Declare a linear layer or embedding."""
        dtype = QUANTISATIONS[self.quantization].dtype
        if QUANTISATIONS[self.quantization].bits is None:
            stored: tuple[Tensor, ...] = (Tensor(f"{name}.weight", (rows, columns), dtype),)
        else:
            groups = -(-columns // GROUP)
            stored = (
                Tensor(f"{name}.q_weight", (rows, groups * GROUP // 8), "uint32"),
                Tensor(f"{name}.q_scale", (rows, groups), dtype),
            )
        self.stored += stored
        return Matrix(name, rows, columns, self._add(self.pack(rows, columns, stored)))

    def vector(self, name: str, size: int) -> int:
        """Declare a norm weight, float32 in memory; returns its index in `packed_params`."""
        self.stored.append(Tensor(name, (size,), QUANTISATIONS[self.quantization].dtype))
        return self._add(Step((name,), (Tensor(name, (size,), "float32"),)))[0]

    def _add(self, step: Step) -> tuple[int, ...]:
        first = sum(len(other.outputs) for other in self.steps)
        self.steps.append(step)
        return tuple(range(first, first + len(step.outputs)))

    def metadata(self) -> dict[str, Any]:
        """`params` as MLC lists them, and `packing`: the steps, which this project adds."""
        return {
            "params": [
                {**tensor.describe(), "preprocs": [], "pipeline_stages": [0]} for tensor in self.stored
            ],
            "packing": [
                {
                    "function": step.function,
                    "sources": list(step.sources),
                    "outputs": [output.describe() for output in step.outputs],
                }
                for step in self.steps
            ],
        }
