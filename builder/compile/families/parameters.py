"""What a model's weights are: where the checkpoint has them, and what MLC's directory calls them."""

from dataclasses import dataclass

from builder.compile.quantise import Role


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor of the model, before quantisation.

    Attributes:
        name: as MLC's directory calls it, with the ending ".weight" or ".bias".
        sources: checkpoint tensors whose rows it holds, in order, each with its shape.
        role: what it is used for; weight formats treat an embedding table, a linear layer and the output
            matrix differently, and leave vectors (norms, biases) alone.
        offset: what is added to every value of the checkpoint.
    """

    name: str
    sources: tuple[tuple[str, tuple[int, ...]], ...]
    role: Role
    offset: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole: the sources stacked."""
        first = self.sources[0][1]
        return (sum(shape[0] for _, shape in self.sources), *first[1:])


def matrix(name: str, columns: int, *sources: tuple[str, int], role: Role = "linear") -> Parameter:
    """The weight of the linear layer `name`: checkpoint layers, each with its rows, on top of each other."""
    return Parameter(
        f"{name}.weight", tuple((f"{source}.weight", (rows, columns)) for source, rows in sources), role
    )


def bias(name: str, *sources: tuple[str, int]) -> Parameter:
    """The bias of the linear layer `name`, of which the checkpoint has parts."""
    return Parameter(f"{name}.bias", tuple((f"{source}.bias", (rows,)) for source, rows in sources), "vector")


def norm(name: str, size: int, source: str = "", *, offset: float = 0.0) -> Parameter:
    """The weight of the norm `name`, under the same name in the checkpoint unless `source` gives another."""
    return Parameter(f"{name}.weight", ((f"{source or name}.weight", (size,)),), "vector", offset)
