"""From token ids to text, one token at a time."""

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from builder.errors import FormatError


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What tokens stand for.

    Attributes:
        pieces: bytes by token id; ids that are not used are absent.
        special: ids of control tokens, which are never part of an answer.
        strips: whether the space that begins a text is not part of it (SentencePiece).
    """

    pieces: Mapping[int, bytes]
    special: frozenset[int]
    strips: bool

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Vocabulary":
        """Read it off `tokenizer.json`: byte-level BPE, or SentencePiece with or without byte fallback.

        Raises:
            FormatError: another kind of tokenizer.
        """
        decoders = _steps(raw.get("decoder"))
        kinds = {step["type"] for step in decoders}
        if not kinds or kinds - _DECODERS:
            found = ", ".join(sorted(kinds - _DECODERS)) or "none"
            raise FormatError(f"tokenizer.json: decoder: {found} is not supported")
        spaces = [(step["replacement"], " ") for step in decoders if step["type"] == "Metaspace"]
        spaces += [(s["pattern"]["String"], s["content"]) for s in decoders if s["type"] == "Replace"]
        for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
            # Besides changing the text, a prefix that the merges lack makes the library abort the process.
            if raw["model"].get(affix):
                raise FormatError(f"tokenizer.json: model.{affix} is not supported")
        tokens = _tokens(raw["model"])
        pieces: dict[int, bytes] = {}
        for text, token in tokens.items():
            if "ByteLevel" in kinds:
                pieces[token] = _byte_level(text)
            elif "ByteFallback" in kinds and (match := _BYTE.fullmatch(text)):
                pieces[token] = bytes.fromhex(match[1])
            else:
                for old, new in spaces:
                    text = text.replace(old, new)
                pieces[token] = text.encode()
        special = set()
        for added in raw.get("added_tokens", ()):
            pieces[added["id"]] = added["content"].encode()
            if added["special"]:
                special.add(added["id"])
        return cls(
            pieces=pieces,
            special=frozenset(special),
            strips=any(_strips(step) for step in decoders),
        )


_DECODERS = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"}
_BYTE = re.compile("<0x([0-9A-F]{2})>")


def _steps(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A decoder as a flat list of its steps."""
    if step is None:
        return []
    return list(step["decoders"]) if step["type"] == "Sequence" else [step]


def _strips(step: Mapping[str, Any]) -> bool:
    """Whether a decoder step takes away one leading space."""
    if step["type"] == "Strip":
        return bool(step["content"] == " " and step["start"] == 1)
    if step["type"] == "Metaspace":
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        return bool(scheme != "never")
    return False


def _tokens(model: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the model's own tokens by text; BPE has an object, Unigram a list of pairs."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {text: token for token, (text, _) in enumerate(vocabulary)}


def _byte_level(text: str) -> bytes:
    """Undo GPT-2's printable spelling of bytes; text that is not spelt so is taken as it is."""
    try:
        return bytes(_BYTE_OF[character] for character in text)
    except KeyError:
        return text.encode()


def _printable_bytes() -> dict[str, int]:
    """GPT-2's map: printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on."""
    same = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in same]
    return {chr(b): b for b in same} | {chr(0x100 + i): b for i, b in enumerate(rest)}


_BYTE_OF = _printable_bytes()


class Detokenizer:
    """Turns token ids into text as they arrive, in constant time per token.

    What `push` returns are whole characters: bytes of an unfinished one wait for the rest. Special tokens
    give no text. Bytes that cannot be UTF-8 become U+FFFD.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips = vocabulary.strips

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; "" while a character is unfinished."""
        if token_id in self._vocabulary.special:
            return ""
        return self._begin(self._decoder.decode(self._vocabulary.pieces.get(token_id, b"")))

    def flush(self) -> str:
        """End the text: U+FFFD if a character stayed unfinished, else ""."""
        return self._begin(self._decoder.decode(b"", True))

    def _begin(self, text: str) -> str:
        """Take away the one space that a SentencePiece text begins with."""
        if self._strips and text:
            self._strips = False
            return text.removeprefix(" ")
        return text
