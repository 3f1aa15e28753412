"""What a person types never becomes a control token.

A tokenizer finds its special tokens anywhere in a text, so a message that contains `<|eot_id|>` would end its
own turn and could speak as somebody else. Here the control tokens are renamed, inside the tokenizer, to names
nobody can guess. Before rendering, every spelling of one inside a message is replaced by a placeholder; after
it, the spellings in the text are the template's own and get the secret names; then the placeholders become
spellings again, which by now mean nothing. One pass of the tokenizer over the whole prompt follows, so
ordinary text is cut into tokens exactly as without any of this.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from builder.compile.mlc import TOKENIZER
from builder.errors import FormatError


@dataclass(frozen=True, slots=True)
class Controls:
    """The control tokens of a model: their spellings, secret names and placeholders.

    Attributes:
        names: secret name by spelling.
        everywhere: finds a spelling.
        special: finds a spelling of those marked special in the tokenizer. The others, which only the
            template makes into controls, an assistant may have written itself (`<think>`).
    """

    names: Mapping[str, str]
    everywhere: re.Pattern[str]
    special: re.Pattern[str]
    _placeholders: Mapping[str, str]
    _placeholder: re.Pattern[str]

    @classmethod
    def of(cls, added: Sequence[Mapping[str, Any]], template: str) -> "Controls":
        """Those of a tokenizer's added tokens that are special, or that the template writes by itself."""
        special = [t["content"] for t in added if t["special"]]
        written = [t["content"] for t in added if t["content"].strip() and t["content"] in template]
        spellings = list(dict.fromkeys(special + written))
        secret = secrets.token_hex(8)
        # Noncharacters: no normaliser changes them and no text should hold them.
        return cls(
            names={text: f"\ufdd0{secret}n{i}\ufdd1" for i, text in enumerate(spellings)},
            everywhere=_any_of(spellings),
            special=_any_of(special),
            _placeholders={text: f"\ufdd0{secret}p{i}\ufdd1" for i, text in enumerate(spellings)},
            _placeholder=re.compile(f"\ufdd0{secret}p([0-9]+)\ufdd1"),
        )

    def hide(self, role: str, content: str) -> str:
        """A message's content with a placeholder for every spelling in it."""
        spelling = self.special if role == "assistant" else self.everywhere
        return spelling.sub(lambda match: self._placeholders[match[0]], content)

    def settle(self, prompt: str) -> str:
        """A rendered prompt with secret names for the template's controls and the hidden spellings back."""
        named = self.everywhere.sub(lambda match: self.names[match[0]], prompt)
        spellings = list(self.names)
        return self._placeholder.sub(lambda match: spellings[int(match[1])], named)


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Matches any of these, the longest where several begin; nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


@contextmanager
def library_errors() -> Iterator[None]:
    """Turn whatever the tokenizers library raises into `FormatError`.

    Its errors are plain `Exception`, and a damaged file may even make its Rust code panic, which pyo3 raises
    as a `BaseException` that would end the service.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FormatError(f"{TOKENIZER} does not work: {str(error).partition(chr(10))[0]}") from error


def renamed(raw: dict[str, Any], names: Mapping[str, str], added: Mapping[str, int]) -> Tokenizer:
    """Return the tokenizer with its control tokens under other names; uses up `raw`.

    Raises:
        FormatError: the library refuses the tokenizer, or gives a control token another id.
    """
    for token in raw.get("added_tokens", ()):
        token["content"] = names.get(token["content"], token["content"])
    model = raw["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): token for text, token in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    # The template alone decides about BOS, and prompts are never cut or padded.
    raw |= {"post_processor": None, "truncation": None, "padding": None}
    with library_errors():
        tokenizer = Tokenizer.from_str(json.dumps(raw))
    for text, name in names.items():
        if (found := tokenizer.token_to_id(name)) != added[text]:
            raise FormatError(f"{TOKENIZER}: added token {text!r} has id {added[text]}, but loads as {found}")
    return tokenizer
