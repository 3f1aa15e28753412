"""The seam between a model's graph and the kernels: what a family may ask for, and who computes it.

A backend is a way to compute: it packs weights, makes the KV cache, and gives operators that emit calls into
one function under construction. Families speak only in operators, and treat what goes in and comes out as
opaque: rows `[m, k]` of activations in the backend's dtype, or what `linear` reads, maybe in another form.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from builder.compile.families.parameters import Parameter
from builder.compile.packing import Step
from builder.compile.quantise import Tensor

Expr = Any  # tvm.relax.Expr; TVM has no type information
Kernel = Any  # tvm.tirx.PrimFunc
Input = Any  # what a backend's `linear` reads
Gate = Literal["silu", "gelu"]


class Operators(Protocol):
    """Operators of one function. Each emits what it computes and returns it."""

    def embed(self, table: Parameter, ids: Expr, scale: float = 1.0) -> Expr:
        """The rows of an embedding table at `ids` int32 `[m]`, times `scale`."""
        ...

    def plain(self, x: Expr) -> Input:
        """Rows as `linear` reads them."""
        ...

    def normed(self, x: Expr, weight: Parameter, eps: float) -> Input:
        """RMS-normalised rows as `linear` reads them: one step, so that a backend can fold the norm into what
        it does to the input of a matrix.
        """
        ...

    def gated(self, gate_up: Expr, gate: Gate) -> Input:
        """gate(left half) times right half of each row, as `linear` reads it; "gelu" is its tanh form."""
        ...

    def linear(
        self, weight: Parameter, x: Input, *, bias: Parameter | None = None, residual: Expr | None = None
    ) -> Expr:
        """x · weightᵀ (+ bias) (+ residual)."""
        ...

    def norm(self, x: Expr, weight: Parameter, eps: float, *, residual: Expr | None = None) -> Expr:
        """RMS-normalised rows (+ residual)."""
        ...

    def softcap(self, x: Expr, cap: float) -> Expr:
        """cap · tanh(x / cap)."""
        ...

    def attend(
        self,
        layer: int,
        qkv: Sequence[Expr],
        *,
        q_norm: Parameter | None = None,
        k_norm: Parameter | None = None,
        eps: float = 0.0,
    ) -> Expr:
        """Append keys and values to the cache and attend to what each query sees of its sequence.

        `qkv` is queries `[m, heads·head_dim]`, keys and values `[m, kv_heads·head_dim]`, or all in one with
        the rows of the three on top of each other. Returns `[m, heads·head_dim]`.

        Rotation, window, scale and soft cap are those of the layer in the model's `Attention`. Every head of
        the queries and keys is RMS-normalised before, where weights `[head_dim]` for that are given.
        """
        ...


class Backend(Protocol):
    """A way to compute a model.

    Attributes:
        dtype: of activations and hidden states, "float32" or "float16". Logits are float32.
    """

    dtype: str

    def pack(self, parameter: Parameter, stored: tuple[Tensor, ...]) -> Step:
        """How a parameter gets into memory from its tensors on disk."""
        ...

    def operators(self, bb: Any, weights: "Weights", kv: Expr | None = None) -> Operators:
        """Operators that emit into the function that the block builder `bb` is at.

        Args:
            kv: the paged KV cache, where the function has one.
        """
        ...

    def kv_cache(self, bb: Any, sizes: Sequence[Any]) -> Expr:
        """Create the paged KV cache for the five sizes of `create_tir_paged_kv_cache`."""
        ...

    def kernels(self) -> Mapping[str, Kernel]:
        """What the library exports by plain name besides, such as the kernels that packing steps name."""
        ...


class Weights(Protocol):
    """The `packed_params` argument of a function."""

    def __call__(self, parameter: Parameter) -> list[Expr]:
        """The tensors of a parameter, as the backend packed it."""
        ...
