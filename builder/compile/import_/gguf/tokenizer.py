"""tokenizer.json and tokenizer_config.json of Hugging Face, from the metadata of a GGUF file.

GGUF keeps the tokens with their types and scores or merges, and names the rest: `tokenizer.ggml.model` says
which algorithm, `tokenizer.ggml.pre` how text is cut before merging. Keys: docs/gguf.md of ggml; token types:
`llama_token_type` in llama.h of llama.cpp, https://github.com/ggml-org/llama.cpp.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.compile.import_.checkpoint import AGAIN
from builder.compile.import_.gguf.header import Header
from builder.compile.import_.gguf.merges import merges_of_scores
from builder.compile.mlc import TOKENIZER
from builder.compile.template import TOKENIZER_CONFIG
from builder.errors import FormatError, UnsupportedError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"
Json = dict[str, Any]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*END|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = CASED.replace("END", "").replace("DIGITS", r"\p{N}")
GPT4O = CASED.replace("END", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", r"\p{N}{1,3}")
DIGITS = r"\p{N}"
# How text is cut, by `tokenizer.ggml.pre`: expressions applied one after the other.
CUTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "olmo", "mpt"), (GPT2,)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2"), (LLAMA3,)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), (QWEN2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (DIGITS, GPT2)),
    "tekken": (TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4"), (GPT4O,)),
}
# Those whose texts are brought into Unicode's composed form first.
COMPOSED = ("qwen2",)
# Those that take a piece which is a token as it is, without merging, and begin texts with BOS by default.
WHOLE = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "tekken")


def write_tokenizer(header: Header, directory: Path, rows: int) -> None:
    """Write both files into `directory`.

    Args:
        rows: of the embedding; no token may have an id beyond it.

    Raises:
        FormatError: the metadata is incomplete or contradictory; names the key.
        UnsupportedError: an algorithm or way of cutting that Hob does not know.
    """
    tokens = Tokens(header)
    if len(tokens.texts) > rows:
        raise FormatError(
            f"{header.file}: {len(tokens.texts)} tokens, but token_embd.weight has {rows} rows", hint=AGAIN
        )
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(tokens)
    elif kind == "llama":
        tokenizer = _sentencepiece(tokens)
    else:
        raise UnsupportedError(
            f"{header.file}: tokenizer.ggml.model {str(kind)[:40]!r} is not supported",
            hint="Convert the original checkpoint; it has a tokenizer.json.",
        )
    bos = tokens.special("bos_token_id")
    default = kind == "llama" or header.metadata.get("tokenizer.ggml.pre") in WHOLE
    begins = bos is not None and bool(header.metadata.get("tokenizer.ggml.add_bos_token", default))
    tokenizer["post_processor"] = _post_processor(tokens, bos if begins else None)
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": begins,
    }
    for field in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if (token := tokens.special(SPECIAL[field])) is not None:
            config[field] = tokens.texts[token]
    if isinstance(template := header.metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    for name, content in ((TOKENIZER, tokenizer), (TOKENIZER_CONFIG, config)):
        (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


class Tokens:
    """The vocabulary of a GGUF file.

    Attributes:
        header: where it is from.
        texts: by id.
        kinds: token types by id.
        vocabulary: ids by text, without what only fills the table up.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        raw = header.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(raw, list) or not raw:
            raise FormatError(
                f"{header.file}: tokenizer.ggml.tokens is missing",
                hint="This file has no tokenizer; convert the original checkpoint.",
            )
        self.texts = [_text(header, token, text) for token, text in enumerate(raw)]
        kinds = header.metadata.get("tokenizer.ggml.token_type")
        self.kinds: list[int] = [NORMAL] * len(raw) if kinds is None else [int(kind) for kind in kinds]
        if len(self.kinds) != len(raw):
            raise FormatError(
                f"{header.file}: tokenizer.ggml.token_type has not {len(raw)} entries", hint=AGAIN
            )
        self.vocabulary: dict[str, int] = {}
        for token, text in enumerate(self.texts):
            if text == f"[PAD{token}]" and self.kinds[token] == UNUSED:
                continue
            if text in self.vocabulary:
                other = self.vocabulary[text]
                raise FormatError(
                    f"{header.file}: tokenizer.ggml.tokens: {text[:40]!r} is both {other} and {token}",
                    hint=AGAIN,
                )
            self.vocabulary[text] = token

    def special(self, key: str) -> int | None:
        """The id that a key gives.

        Raises:
            FormatError: it is not a token.
        """
        value = self.header.metadata.get(f"tokenizer.ggml.{key}")
        if value is None or value == 2**32 - 1:  # llama.cpp's "none" in unsigned form
            return None
        if type(value) is not int or not 0 <= value < len(self.texts):
            raise FormatError(
                f"{self.header.file}: tokenizer.ggml.{key}: {value!r} is not a token id", hint=AGAIN
            )
        return value

    def added(self) -> list[Json]:
        """Tokens that are found in the text before anything else, as tokenizer.json lists them."""
        return [
            {
                "id": token,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": self.kinds[token] != USER_DEFINED,
            }
            for text, token in self.vocabulary.items()
            if self.kinds[token] in (UNKNOWN, CONTROL, USER_DEFINED) and text
        ]

    def merges(self) -> list[list[str]] | None:
        """The merges that the file lists, None if it lists none."""
        raw = self.header.metadata.get("tokenizer.ggml.merges")
        if raw is None:
            return None
        if not isinstance(raw, list):
            raise FormatError(f"{self.header.file}: tokenizer.ggml.merges is no list of strings", hint=AGAIN)
        merges = []
        for index, merge in enumerate(raw):
            pair = _text(self.header, index, merge, "tokenizer.ggml.merges").split(" ")
            if len(pair) != 2:
                raise FormatError(
                    f"{self.header.file}: tokenizer.ggml.merges[{index}] is not a pair", hint=AGAIN
                )
            merges.append(pair)
        return merges


def _text(header: Header, index: int, raw: bytes, key: str = "tokenizer.ggml.tokens") -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{header.file}: {key}[{index}] is not UTF-8", hint=AGAIN) from error


def _byte_level(tokens: Tokens) -> Json:
    """BPE over bytes, as GPT-2 has it."""
    pre = tokens.header.metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in CUTS:
        raise UnsupportedError(
            f"{tokens.header.file}: tokenizer.ggml.pre {str(pre)[:40]!r} is not supported",
            hint="Convert the original checkpoint; it has a tokenizer.json.",
        )
    merges = tokens.merges()
    if merges is None:
        raise FormatError(f"{tokens.header.file}: tokenizer.ggml.merges is missing", hint=AGAIN)
    cuts = [
        {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}
        for cut in CUTS[pre]
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": tokens.added(),
        "normalizer": {"type": "NFC"} if pre in COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, byte_level]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(tokens, merges, ignore_merges=pre in WHOLE),
    }


def _sentencepiece(tokens: Tokens) -> Json:
    """BPE over characters with spaces written as "▁", and bytes for what the vocabulary lacks."""
    merges = tokens.merges()
    if merges is None:
        merges = merges_of_scores(tokens.header, tokens.texts, tokens.kinds)
    prefix = bool(tokens.header.metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces: Json = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizers: list[Json] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = tokens.special("unknown_token_id")
    model = _bpe(tokens, merges, ignore_merges=False)
    model |= {"byte_fallback": BYTE in tokens.kinds, "fuse_unk": True}
    model["unk_token"] = None if unknown is None else tokens.texts[unknown]
    return {
        "version": "1.0",
        "added_tokens": tokens.added(),
        "normalizer": {"type": "Sequence", "normalizers": [*normalizers, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _bpe(tokens: Tokens, merges: list[list[str]], *, ignore_merges: bool) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": tokens.vocabulary,
        "merges": merges,
    }


def _post_processor(tokens: Tokens, bos: int | None) -> Json:
    """What puts BOS before a text."""
    first = [] if bos is None else [{"SpecialToken": {"id": tokens.texts[bos], "type_id": 0}}]
    known = (
        {}
        if bos is None
        else {tokens.texts[bos]: {"id": tokens.texts[bos], "ids": [bos], "tokens": [tokens.texts[bos]]}}
    )
    return {
        "type": "TemplateProcessing",
        "single": [*first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [*first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": known,
    }
