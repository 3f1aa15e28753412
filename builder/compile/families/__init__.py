"""Model families by Hugging Face's `model_type`: one module each, imported when it is needed.

A family's module holds everything of that family and nothing of the others:
`model_config` (its config.json to MLC's configuration) and `decoder` (its weights and graph).
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from builder.errors import UnsupportedError

if TYPE_CHECKING:
    from builder.compile.families.decoder import Decoder
    from builder.compile.families.fields import Fields, Sizes

# model_type -> module in this folder. Reading the names imports nothing, so that the service may.
MODULES: Mapping[str, str] = {
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "llama": "llama",
    "mistral": "mistral",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
}
FAMILIES = tuple(MODULES)

DENSE = f"Convert a dense text model of these families: {', '.join(FAMILIES)}."
# Fields of config.json that tell of something no family here has: what, and what to do about it.
FOREIGN: Mapping[str, tuple[str, str]] = {
    "quantization_config": (
        "the checkpoint is already quantised",
        "Convert the original, unquantised checkpoint.",
    ),
    "num_experts": ("mixtures of experts are not supported", DENSE),
    "num_local_experts": ("mixtures of experts are not supported", DENSE),
    "vision_config": ("models that see pictures are not supported", DENSE),
    "audio_config": ("models that hear are not supported", DENSE),
}
# Those that a family has after all, by model_type: it takes the text model out of such a checkpoint.
KNOWN: Mapping[str, tuple[str, ...]] = {"gemma3": ("vision_config",)}


class Family(Protocol):
    """What the module of a family offers."""

    def model_config(self, source: "Fields", sizes: "Sizes") -> dict[str, Any]:
        """MLC's `model_config` for the config.json in `source`, keys in MLC-LLM's order.

        Raises:
            UnsupportedError: an option that the compiled model would silently get wrong; names it.
            FormatError: a field is missing or impossible.
        """
        ...

    def decoder(self, config: "Fields") -> "Decoder":
        """Weights and graph of the model whose `model_config` is in `config`, ours or MLC-LLM's.

        Raises:
            FormatError, UnsupportedError: as `model_config`.
        """
        ...


def model_config(source: "Fields", sizes: "Sizes") -> dict[str, Any]:
    """MLC's `model_config` for the config.json in `source`.

    Raises:
        UnsupportedError, FormatError: as `Family.model_config`; or it is of a kind that no family here has.
    """
    chosen = family(source.get("model_type"), source.where)
    for field, (what, hint) in FOREIGN.items():
        if source.has(field) and field not in KNOWN.get(source.get("model_type"), ()):
            raise UnsupportedError(f"{source.where}: {field}: {what}", hint=hint)
    return chosen.model_config(source, sizes)


def family(model_type: object, where: str) -> Family:
    """The family of a `model_type` that was read from `where`.

    Raises:
        UnsupportedError: there is none; the hint lists those there are.
    """
    if not isinstance(model_type, str) or model_type not in MODULES:
        raise UnsupportedError(
            f"{where}: model_type {model_type!r} is not supported", hint=f"Supported: {', '.join(FAMILIES)}."
        )
    module: Any = import_module(f"{__name__}.{MODULES[model_type]}")
    return module  # type: ignore[no-any-return] # a module cannot say which protocol it implements
