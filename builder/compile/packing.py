"""How a library wants a model's weights in memory.

On disk a linear layer is MLC's (`q_weight` and `q_scale`, or `weight`); a library may compute from packed
forms of them. The table of packing steps travels in the library's metadata and names the library's own
kernels, so the loader needs no knowledge of layouts.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from builder.compile.families.parameters import Parameter
from builder.compile.quantise import Quantisation, Tensor


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


Pack = Callable[[Parameter, tuple[Tensor, ...]], Step]


class Packing:
    """The two tables of a model: what lies on disk, and how it gets into `packed_params`.

    Attributes:
        stored: tensors of the directory.
        steps: how `packed_params` is made, in its order.
    """

    def __init__(self, parameters: Iterable[Parameter], quantisation: Quantisation, pack: Pack) -> None:
        """`pack` tells, for a parameter and its tensors on disk, how it gets into memory."""
        self.stored: list[Tensor] = []
        self.steps: list[Step] = []
        self._entries: dict[str, tuple[int, ...]] = {}
        first = 0
        for parameter in parameters:
            stored = quantisation.form(parameter.role).tensors(parameter.name, parameter.shape)
            step = pack(parameter, stored)
            self.stored += stored
            self.steps.append(step)
            self._entries[parameter.name] = tuple(range(first, first + len(step.outputs)))
            first += len(step.outputs)

    @property
    def packed(self) -> list[Tensor]:
        """The entries of `packed_params`."""
        return [output for step in self.steps for output in step.outputs]

    def entries(self, parameter: Parameter) -> tuple[int, ...]:
        """Indices of a parameter's tensors in `packed_params`."""
        return self._entries[parameter.name]

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
