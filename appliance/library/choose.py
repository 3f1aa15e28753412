"""Which files of a repository or folder make up a model. Pure: decides on names and sizes alone."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from appliance.errors import InvalidRequestError, LibraryError
from builder.compile.mlc import CONFIG, TENSOR_CACHES, TOKENIZER

# What tokenisers, chat templates and licences are called. None is large.
SIDE_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|chat_template|preprocessor_config)\.json|merges\.txt|vocab\.txt|tokenizer\.model|chat_template\.jinja"
    r"|LICEN[CS]E(\.\w+)?|NOTICE(\.\w+)?|USE_POLICY(\.\w+)?",
    re.IGNORECASE,
)
MAX_SIDE = 64 * 2**20

# Which GGUF file is taken when a repository has several: Q4_0 is carried over without loss, the others are
# quantised anew, best first among those that lose little by it.
GGUF_ORDER = ("Q4_0", "Q8_0", "F16", "BF16", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_1", "F32")

# A large file may be divided into parts, which count as one.
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)

Form = Literal["mlc", "safetensors", "torch", "gguf", "onnx"]


@dataclass(frozen=True)
class Choice:
    """The files to take, and in which form the model is. `weights` are those of `files` that hold weights."""

    form: Form
    files: tuple[str, ...]
    weights: tuple[str, ...]


def choose(names: Mapping[str, int], where: str, wanted: str = "") -> Choice:
    """Decide on a repository's file names (with "/" for folders) and sizes.

    Safetensors are preferred to everything but a finished MLC directory; PyTorch files come last but ONNX.
    `wanted` picks among GGUF files: "Q4_0", or a file's name.

    Raises:
        LibraryError: there is no model, or only one that cannot be used; says why.
        InvalidRequestError: `wanted` is not there, or fits several.
    """
    top = sorted(name for name in names if "/" not in name)
    side = [name for name in top if SIDE_FILES.fullmatch(name) and names[name] <= MAX_SIDE]
    if wanted:
        return _gguf(sorted(names), where, wanted)
    if CONFIG in top:
        caches = [name for name in (*TENSOR_CACHES, "tensor-cache-b16.json") if name in top]
        shards = [name for name in top if re.fullmatch(r"params_shard_\d+\.bin", name)]
        if not caches or not shards or TOKENIZER not in top:
            raise LibraryError(f"{where} has {CONFIG}, but not all files of an MLC directory")
        return Choice("mlc", tuple(sorted({CONFIG, *caches, *side, *shards})), tuple(shards))
    if weights := _one_or_sharded(top, "model", "safetensors") or _ending(top, ".safetensors", "adapter"):
        return Choice("safetensors", (*side, *_index(top, "safetensors"), *weights), weights)
    if any(name.lower().endswith(".gguf") for name in names):
        return _gguf(sorted(names), where, "")
    if weights := _one_or_sharded(top, "pytorch_model", "bin"):
        return Choice("torch", (*side, *_index(top, "bin"), *weights), weights)
    for folder in ("", "onnx/"):
        if f"{folder}model.onnx" in names:
            weights = (
                f"{folder}model.onnx",
                *(n for n in sorted(names) if n.startswith(f"{folder}model.onnx_")),
            )
            return Choice("onnx", (*side, *weights), weights)
    if "adapter_config.json" in top:
        raise LibraryError(
            f"{where} is an adapter, not a model", hint="Merge it into its base model, then add the result."
        )
    raise LibraryError(
        f"{where} has no weights that Hob reads",
        hint="It needs safetensors, a GGUF file, pytorch_model.bin, model.onnx or an MLC directory.",
    )


def _one_or_sharded(names: Sequence[str], stem: str, ending: str) -> tuple[str, ...]:
    """`stem.ending`, else `stem-00001-of-00005.ending` and its like."""
    if f"{stem}.{ending}" in names:
        return (f"{stem}.{ending}",)
    return tuple(name for name in names if re.fullmatch(rf"{stem}-\d+-of-\d+\.{ending}", name))


def _ending(names: Sequence[str], ending: str, but: str) -> tuple[str, ...]:
    """The one file with this ending; several without an index say nothing about which belong together."""
    found = [name for name in names if name.endswith(ending) and not name.startswith((but, "consolidated"))]
    return tuple(found) if len(found) == 1 else ()


def _index(names: Sequence[str], ending: str) -> tuple[str, ...]:
    return tuple(name for name in names if name.endswith(f".{ending}.index.json"))


def _gguf(names: Sequence[str], where: str, wanted: str) -> Choice:
    # Projectors of models that see, and importance matrices, are GGUF files but no models.
    files = [n for n in names if n.lower().endswith(".gguf") and not re.search(r"mmproj|imatrix", n, re.I)]
    models: defaultdict[str, list[str]] = defaultdict(list)
    for name in files:
        models[_PART.sub(".gguf", name)].append(name)
    label = wanted or next((label for label in GGUF_ORDER if _labelled(models, label)), "")
    found = [wanted] if wanted in models else _labelled(models, label) if label else list(models)
    if len(found) != 1:
        raise InvalidRequestError(
            f"{where} has {'no' if not found else 'several'} GGUF files"
            + (f" for {label!r}" if label else ""),
            param="source",
            hint=f"There is {', '.join(list(models)[:12])}: name one as in owner/name:FILE."
            if models
            else "",
        )
    parts = tuple(models[found[0]])
    return Choice("gguf", parts, parts)


def _labelled(names: Iterable[str], label: str) -> list[str]:
    """Files whose name has this format as a word."""
    return [
        name
        for name in names
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(label)}(?![A-Za-z0-9_])", name, re.I)
    ]
