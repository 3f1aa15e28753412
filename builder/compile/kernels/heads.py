"""What the attention kernels are made for: the heads of a model, and what it does with scores."""

from dataclasses import dataclass

from builder.compile.kernels import vector as vec
from builder.errors import UnsupportedError

PAGE = 16
"""Positions in a page of the KV cache, and keys that the kernels take at a time."""


@dataclass(frozen=True)
class Heads:
    """Key/value heads, query heads (a multiple of them), and the dimension of each (a multiple of 16)."""

    kv: int
    query: int
    dim: int

    def __post_init__(self) -> None:
        if self.dim % vec.LANES or self.dim <= 0:
            raise UnsupportedError(
                f"head_dim {self.dim} is not a multiple of {vec.LANES}",
                hint="Only models whose head_dim is a multiple of 16 can be compiled.",
            )
        if self.kv <= 0 or self.query % self.kv:
            raise UnsupportedError(
                f"{self.query} attention heads do not divide into {self.kv} key/value heads",
                hint="Check num_attention_heads and num_key_value_heads in mlc-chat-config.json.",
            )

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.query // self.kv

    @property
    def name(self) -> str:
        """Part of a kernel's name."""
        return f"h{self.query}_kv{self.kv}_d{self.dim}"


@dataclass(frozen=True)
class Scoring:
    """What a model does with the scores before the softmax.

    Attributes:
        window: how many positions back a layer may look, its own counted; None if no layer is bounded. A
            layer says that it is by a negative scale (`Task.scale`): the cache hands one set of kernels
            nothing else that differs between layers.
        cap: scores s become cap * tanh(s / cap); None leaves them.
    """

    window: int | None = None
    cap: float | None = None

    @property
    def name(self) -> str:
        """Part of a kernel's name."""
        window = "" if self.window is None else f"_w{self.window}"
        return window + ("" if self.cap is None else f"_c{vec.digits(self.cap)}")
