"""The chat configuration of a checkpoint: tokens, conversation template and sampling defaults."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from builder.compile.conversation import conv_template, end_of_turn
from builder.compile.mlc import TOKENIZER, read_json
from builder.compile.template import (
    TOKENIZER_CONFIG,
    ChatTemplate,
    read_tokenizer_config,
    special_tokens,
)
from builder.errors import FormatError, UnsupportedError

TOKENIZER_FILES = (
    "tokenizer.model",
    TOKENIZER,
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    TOKENIZER_CONFIG,
)


SAMPLING = {
    "temperature": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "top_p": 1.0,
}


def chat_config(
    hf_dir: Path, source: Mapping[str, Any], model: dict[str, Any], quantization: str
) -> dict[str, Any]:
    """Return `mlc-chat-config.json`: sampling defaults from the checkpoint, tokens from its tokenizer.

    Args:
        source: the checkpoint's `config.json`.
        model: `model_config` of the result.

    Raises:
        FormatError: tokenizer.json is missing or damaged, or a field has an impossible value.
    """
    tokenizer, tokens = _tokenizer(hf_dir)
    special = special_tokens(read_tokenizer_config(hf_dir))
    file = hf_dir / "generation_config.json"
    wanted = {
        **source,
        **{k: v for k, v in (read_json(file) if file.is_file() else {}).items() if v is not None},
    }
    bos_ids = _token_ids(hf_dir, wanted, "bos_token_id") or [tokens.get(special.get("bos_token", ""))]
    eos_ids = _token_ids(hf_dir, wanted, "eos_token_id") or [tokens.get(special.get("eos_token", ""))]
    by_id: dict[int | None, str] = {token: text for text, token in tokens.items()}
    stops = [by_id[token] for token in eos_ids if token in by_id]
    if (eos := special.get("eos_token")) in tokens and eos not in stops:
        stops.append(eos)
    bos = special.get("bos_token", by_id.get(bos_ids[0]))
    template = ChatTemplate.find(hf_dir, dated=False)
    if template and (end := end_of_turn(template, bos or "", tokens)) and end not in stops:
        stops.append(end)
    return {
        "version": "0.1.0",
        "model_type": source["model_type"],
        "quantization": quantization,
        "model_config": model,
        "vocab_size": model["vocab_size"],
        "context_window_size": model["context_window_size"],
        "sliding_window_size": model.get("sliding_window_size", -1),
        "prefill_chunk_size": model["prefill_chunk_size"],
        "attention_sink_size": model.get("attention_sink_size", -1),
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "active_vocab_size": min(_vocabulary_size(tokenizer, tokens), model["vocab_size"]),
        **{field: _number(hf_dir, wanted, field, default) for field, default in SAMPLING.items()},
        "tokenizer_files": [name for name in TOKENIZER_FILES if (hf_dir / name).is_file()],
        "tokenizer_info": tokenizer_info(tokenizer),
        "conv_template": conv_template(template, tokens, bos if bos in tokens else None, stops),
        "pad_token_id": (_token_ids(hf_dir, wanted, "pad_token_id") or [0])[0],
        "bos_token_id": bos_ids[0],
        "eos_token_id": eos_ids if isinstance(wanted.get("eos_token_id"), list) else eos_ids[0],
        "model_task": "chat",
        "embedding_metadata": None,
    }


def _token_ids(hf_dir: Path, wanted: Mapping[str, Any], field: str) -> list[Any]:
    """Token ids of a field that holds none, one or several."""
    value = wanted.get(field)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
        raise FormatError(f"{hf_dir}: {field}: {value!r} is not a token id")
    return ids


def _number(hf_dir: Path, wanted: Mapping[str, Any], field: str, default: float) -> float:
    """A sampling default."""
    value = wanted.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FormatError(f"{hf_dir}: {field}: {value!r} is not a number")
    return value


def _tokenizer(hf_dir: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return tokenizer.json, and the ids of its added tokens by text."""
    file = hf_dir / TOKENIZER
    if not file.is_file():
        raise FormatError(
            f"{file} is missing",
            hint="Save the tokenizer with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    tokenizer = check_tokenizer(file, str(file))
    return tokenizer, {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}


def check_tokenizer(file: Path, where: str) -> dict[str, Any]:
    """Return the tokenizer.json in `file` if it works; `where` is how messages name it.

    Raises:
        FormatError: it does not.
        UnsupportedError: a kind that the tokenizers library may abort on.
    """
    tokenizer = read_json(file)
    model = tokenizer.get("model")
    if isinstance(model, dict) and model.get("continuing_subword_prefix"):
        raise UnsupportedError(f"{where}: model.continuing_subword_prefix is not supported")  # may abort
    try:
        # What counts is whether the library can read it; our own look at a few fields comes after.
        Tokenizer.from_file(str(file))
    except BaseException as error:  # a damaged file can make the library's Rust code panic
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        problem = str(error).partition("\n")[0]
        raise FormatError(f"{where} does not work: {problem}", hint="Download or copy it again.") from error
    return tokenizer


def _vocabulary_size(tokenizer: Mapping[str, Any], tokens: Mapping[str, int]) -> int:
    """Number of different tokens: the model's own and the added ones."""
    vocabulary = tokenizer["model"]["vocab"]
    own = vocabulary if isinstance(vocabulary, dict) else {entry[0] for entry in vocabulary}
    return len(own) + sum(text not in own for text in tokens)


def tokenizer_info(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return MLC's summary of how tokens become text, read off `tokenizer.json`."""
    decoders = _steps(tokenizer.get("decoder"), "decoders")
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    byte_level = any(step.get("type") == "ByteLevel" for step in decoders)
    return {
        "token_postproc_method": "byte_level" if byte_level else "byte_fallback",
        "prepend_space_in_encode": any(
            step.get("type") == "Prepend" and step.get("prepend") == "▁" for step in normalizers
        ),
        "strip_space_in_decode": any(
            step.get("type") == "Strip" and step.get("content") == " " and step.get("start") == 1
            for step in decoders
        ),
    }


def _steps(step: Any, inner: str) -> list[Mapping[str, Any]]:
    """A decoder or normalizer as a flat list, whether it is a sequence or a single one."""
    if not isinstance(step, dict):
        return []
    return step[inner] if step.get("type") == "Sequence" else [step]
