"""The chat configuration of a checkpoint: tokens, conversation template and sampling defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.compile.conversation import conv_template
from builder.compile.mlc import TOKENIZER, read_json
from builder.compile.template import (
    TOKENIZER_CONFIG,
    ChatTemplate,
    read_tokenizer_config,
    special_tokens,
)
from builder.errors import FormatError

TOKENIZER_FILES = (
    "tokenizer.model",
    TOKENIZER,
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    TOKENIZER_CONFIG,
)


def chat_config(
    hf_dir: Path, source: Mapping[str, Any], model: dict[str, Any], quantization: str
) -> dict[str, Any]:
    """Return `mlc-chat-config.json`: sampling defaults from the checkpoint, tokens from its tokenizer.

    Raises:
        FormatError: tokenizer.json is missing or damaged, or a token id is outside the vocabulary.
    """
    file = hf_dir / TOKENIZER
    if not file.is_file():
        raise FormatError(
            f"{file} is missing",
            hint="Save the tokenizer with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    tokenizer = read_json(file)
    tokens = _added_tokens(file, tokenizer)
    special = special_tokens(read_tokenizer_config(hf_dir))
    generation = read_json(path) if (path := hf_dir / "generation_config.json").is_file() else {}

    def first(field: str, default: Any) -> Any:
        """The first value given for a field, as MLC-LLM looks for it."""
        return next((s[field] for s in (generation, source) if s.get(field) is not None), default)

    bos_id = first("bos_token_id", tokens.get(special.get("bos_token", "")))
    eos_id = first("eos_token_id", tokens.get(special.get("eos_token", "")))
    by_id = {token: text for text, token in tokens.items()}
    stop_ids = eos_id if isinstance(eos_id, list) else [eos_id]
    stops = [by_id[token] for token in stop_ids if token in by_id]
    if (eos := special.get("eos_token")) in tokens and eos not in stops:
        stops.append(eos)
    bos = special.get("bos_token", by_id.get(bos_id))
    return {
        "version": "0.1.0",
        "model_type": "llama",
        "quantization": quantization,
        "model_config": model,
        "vocab_size": model["vocab_size"],
        "context_window_size": model["context_window_size"],
        "sliding_window_size": -1,
        "prefill_chunk_size": model["prefill_chunk_size"],
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "active_vocab_size": min(_vocabulary_size(tokenizer, tokens), model["vocab_size"]),
        "temperature": first("temperature", 1.0),
        "presence_penalty": first("presence_penalty", 0.0),
        "frequency_penalty": first("frequency_penalty", 0.0),
        "repetition_penalty": first("repetition_penalty", 1.0),
        "top_p": first("top_p", 1.0),
        "tokenizer_files": [name for name in TOKENIZER_FILES if (hf_dir / name).is_file()],
        "tokenizer_info": tokenizer_info(tokenizer),
        "conv_template": conv_template(
            ChatTemplate.find(hf_dir, dated=False), tokens, bos if bos in tokens else None, stops
        ),
        "pad_token_id": first("pad_token_id", 0),
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "model_task": "chat",
        "embedding_metadata": None,
    }


def _added_tokens(file: Path, tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the added tokens by text; special ones and others."""
    try:
        return {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    except (KeyError, TypeError) as error:
        raise FormatError(f"{file}: added_tokens is malformed") from error


def _vocabulary_size(tokenizer: Mapping[str, Any], tokens: Mapping[str, int]) -> int:
    """Number of different tokens: the model's own and the added ones."""
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
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
