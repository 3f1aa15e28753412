"""Tokenizers out of GGUF metadata against the tokenizers that they were written from."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from builder.compile.convert import convert
from builder.compile.import_.source import open_source
from builder.errors import FormatError, UnsupportedError
from tests.builder.import_.ggml import byte_level_tokenizer, write_gguf
from tests.builder.import_.models import config_of, tensors_of

GUIDE = Path(__file__).parents[3] / "builder" / "guide" / "model"
KINDS = gguf.TokenType

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two spaces, then three   and a tab\t.",
    "I'll say it's 12345 times, don't we'RE?",
    "line\nline\r\n\n\nlast ",
    "Grüße aus Köln, naïve café; 中文字符, かな, русский, العربية, עברית",
    "emoji 🎉👩‍👩‍👧 and symbols ∑∫≠ ½ ²³",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|im_end|> <|im_start|>",
    "def f(x):\n    return x ** 2  # square\n",
    "\x00\x01\x7f\u200b\ufeff",
]
Write = Callable[[gguf.GGUFWriter], None]


def through_gguf(place: Path, write: Write) -> tuple[Tokenizer, dict[str, Any]]:
    """What a model file with this tokenizer gives: tokenizer.json and tokenizer_config.json."""
    config = config_of("llama", vocab_size=5000, num_hidden_layers=1, rope_scaling=None)
    file = write_gguf(place / "model.gguf", "llama", config, tensors_of(config), tokenizer=write)
    with open_source(file) as source:
        made = Tokenizer.from_file(str(source.metadata / "tokenizer.json"))
        description = json.loads((source.metadata / "tokenizer_config.json").read_text(encoding="utf-8"))
    return made, description


def same(made: Tokenizer, original: Tokenizer, text: str) -> bool:
    """Whether both encode a text alike, and decode it again alike, with and without special tokens."""
    ids = original.encode(text, add_special_tokens=False).ids
    return made.encode(text, add_special_tokens=False).ids == ids and all(
        made.decode(ids, skip_special_tokens=skip) == original.decode(ids, skip_special_tokens=skip)
        for skip in (True, False)
    )


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """The built-in model's tokenizer through GGUF, and itself."""

    def write(writer: gguf.GGUFWriter) -> None:
        byte_level_tokenizer(writer, GUIDE / "tokenizer.json", "gpt-2")

    made, _ = through_gguf(tmp_path_factory.mktemp("guide"), write)
    return made, Tokenizer.from_file(str(GUIDE / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level(guide: tuple[Tokenizer, Tokenizer], text: str) -> None:
    """A byte-level tokenizer encodes and decodes as the original, special tokens included."""
    assert same(*guide, text)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40) | st.text("ab '\n\r1x<|>. é", max_size=40))
def test_byte_level_any_text(guide: tuple[Tokenizer, Tokenizer], text: str) -> None:
    """So it does for any text."""
    assert same(*guide, text)


def test_digits_apart(tmp_path: Path) -> None:
    """`smollm` cuts digits apart first, as the pre-tokenizers Digits and ByteLevel do."""
    original = Tokenizer.from_file(str(GUIDE / "tokenizer.json"))
    original.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made, _ = through_gguf(
        tmp_path, lambda writer: byte_level_tokenizer(writer, GUIDE / "tokenizer.json", "smollm")
    )
    assert all(same(made, original, text) for text in TEXTS)


def test_unicode_is_composed(tmp_path: Path) -> None:
    """`qwen2` brings text into Unicode's composed form first."""
    made, _ = through_gguf(
        tmp_path, lambda writer: byte_level_tokenizer(writer, GUIDE / "tokenizer.json", "qwen2")
    )
    assert (
        made.encode("u\u0308", add_special_tokens=False).ids == made.encode("ü", add_special_tokens=False).ids
    )


def pieces() -> tuple[list[str], list[float], list[int]]:
    """A SentencePiece vocabulary: control tokens, bytes, user-defined ones, characters, and merged pieces."""
    text = (GUIDE.parent / "heldout.toml").read_text(encoding="utf-8")
    words = ["▁" + word for word in dict.fromkeys(text.split())]
    merged: dict[str, int] = {}
    for word in words:
        for size in range(2, 7):
            for at in range(len(word) - size + 1):
                merged[word[at : at + size]] = merged.get(word[at : at + size], 0) + 1
    frequent = sorted(merged, key=lambda piece: (-merged[piece], piece))[:1500]
    entries: list[tuple[str, float, int]] = [
        ("<unk>", 0.0, KINDS.UNKNOWN),
        ("<s>", 0.0, KINDS.CONTROL),
        ("</s>", 0.0, KINDS.CONTROL),
        *((f"<0x{byte:02X}>", 0.0, KINDS.BYTE) for byte in range(256)),
        ("<|im_start|>", -1000.0, KINDS.CONTROL),
        ("<|im_end|>", -1000.0, KINDS.USER_DEFINED),
        ("   ", -1000.0, KINDS.USER_DEFINED),
        *((piece, -float(rank), KINDS.NORMAL) for rank, piece in enumerate(frequent)),
        *((char, -1e6 - rank, KINDS.NORMAL) for rank, char in enumerate(sorted(set("".join(words))))),
    ]
    entries.append((f"[PAD{len(entries)}]", -1e4, KINDS.UNUSED))
    return [e[0] for e in entries], [e[1] for e in entries], [int(e[2]) for e in entries]


TOKENS, SCORES, TYPES = pieces()
IDS = {text: token for token, text in enumerate(TOKENS)}


def write_pieces(writer: gguf.GGUFWriter, count: int | None = None) -> None:
    """Put the vocabulary, or its first tokens, into a file, as llama.cpp does: no merges, only scores."""
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS[:count])
    writer.add_token_scores(SCORES[:count])
    writer.add_token_types(TYPES[:count])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def segment(text: str) -> list[int]:
    """SentencePiece's BPE by its definition: join the neighbours with the best score until none can be."""
    symbols = list(text.replace(" ", "▁"))
    while True:
        best: tuple[float, int] | None = None
        for at in range(len(symbols) - 1):
            token = IDS.get(symbols[at] + symbols[at + 1])
            if (
                token is not None
                and TYPES[token] == KINDS.NORMAL
                and (best is None or SCORES[token] > best[0])
            ):
                best = (SCORES[token], at)
        if best is None:
            break
        symbols[best[1] : best[1] + 2] = ["".join(symbols[best[1] : best[1] + 2])]
    ids: list[int] = []
    for symbol in symbols:
        known = symbol in IDS and TYPES[IDS[symbol]] == KINDS.NORMAL
        ids += [IDS[symbol]] if known else [IDS[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return ids


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The vocabulary of `pieces`, through GGUF."""
    return through_gguf(tmp_path_factory.mktemp("spm"), write_pieces)[0]


@settings(max_examples=300, deadline=None)
@given(text=st.text("the mod lHob'.\n\t-12Ünï中🎉", min_size=1, max_size=60))
def test_sentencepiece_any_text(sentencepiece: Tokenizer, text: str) -> None:
    """Merges ranked by score find what SentencePiece's own rule finds, and bytes for unknown characters."""
    for part in (re.sub(" {3,}", "  ", text), "Hob answers questions about the model on this device."):
        if part:
            assert sentencepiece.encode(part, add_special_tokens=False).ids == segment(" " + part)


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_decodes(sentencepiece: Tokenizer, text: str) -> None:
    """What was encoded is decoded again, without the space that was put in front."""
    ids = sentencepiece.encode(text, add_special_tokens=False).ids
    if "<|" not in text and "   " not in text:  # each stretch between such tokens gets a space of its own
        assert sentencepiece.decode(ids, skip_special_tokens=False) == text


def test_sentencepiece_tokens_that_stay_whole(sentencepiece: Tokenizer) -> None:
    """Control and user-defined tokens are found in the text as they stand; BOS comes before all."""
    ids = sentencepiece.encode("<|im_start|>a<|im_end|>   b").ids
    expected = [1, IDS["<|im_start|>"], *segment(" a"), IDS["<|im_end|>"], IDS["   "], *segment(" b")]
    assert ids == expected


def test_fillers_are_no_tokens(sentencepiece: Tokenizer) -> None:
    """Entries that only fill the table up to the embedding's size are left out, as in the original."""
    assert TOKENS[-1] == f"[PAD{len(TOKENS) - 1}]"
    assert sentencepiece.get_vocab_size() == len(TOKENS) - 1


def test_no_space_in_front(tmp_path: Path) -> None:
    """Where the file says so, as Gemma's do, no space is put in front of a text."""

    def write(writer: gguf.GGUFWriter) -> None:
        write_pieces(writer)
        writer.add_add_space_prefix(False)
        writer.add_add_bos_token(False)

    made, description = through_gguf(tmp_path, write)
    assert made.encode("the model").ids == segment("the model")
    assert made.decode(made.encode(" the").ids) == " the"
    assert description["add_bos_token"] is False


def test_special_tokens_and_template(tmp_path: Path) -> None:
    """BOS, EOS, unknown and padding tokens and the chat template arrive in tokenizer_config.json."""

    def write(writer: gguf.GGUFWriter) -> None:
        write_pieces(writer)
        writer.add_pad_token_id(2)
        writer.add_chat_template("{{ bos_token }}{{ messages[0].content }}")

    _, description = through_gguf(tmp_path, write)
    assert description["chat_template"] == "{{ bos_token }}{{ messages[0].content }}"
    wanted = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    assert wanted.items() <= description.items()
    assert description["add_bos_token"] is True


def broken(change: Write) -> Write:
    """The vocabulary of `pieces` with a change."""

    def write(writer: gguf.GGUFWriter) -> None:
        write_pieces(writer)
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
            assert key in writer.kv_data[0]
        change(writer)

    return write


def replaced(key: str, value: Any) -> Write:
    """A change of one key."""

    def change(writer: gguf.GGUFWriter) -> None:
        kinds = {
            list: gguf.GGUFValueType.ARRAY,
            str: gguf.GGUFValueType.STRING,
            int: gguf.GGUFValueType.UINT32,
        }
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, kinds[type(value)])

    return change


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "bert", "tokenizer.ggml.model 'bert' is not supported"),
        ("tokenizer.ggml.tokens", ["a", "a"], "token_type has not 2 entries"),
        ("tokenizer.ggml.tokens", [*TOKENS[:-1], "<s>"], "'<s>' is both 1 and"),
        ("tokenizer.ggml.tokens", [*TOKENS[:-1], b"\xff\xfe"], "is not UTF-8"),
        ("tokenizer.ggml.tokens", "none", "tokens is missing"),
        ("tokenizer.ggml.scores", [0.0], "scores are not"),
        ("tokenizer.ggml.scores", [float("nan"), *SCORES[1:]], "scores are not"),
        ("tokenizer.ggml.merges", ["a", "b"], r"merges\[0\] is not a pair"),
        ("tokenizer.ggml.merges", ["xx qqq"], "the tokenizer does not work"),
        ("tokenizer.ggml.bos_token_id", 99999, "bos_token_id: 99999 is not a token id"),
    ],
)
def test_bad_metadata(key: str, value: Any, message: str, tmp_path: Path) -> None:
    """A tokenizer that cannot be is refused by key, and the file is named."""
    with pytest.raises((FormatError, UnsupportedError), match=message) as caught:
        through_gguf(tmp_path, broken(replaced(key, value)))
    assert "model.gguf" in str(caught.value)


@pytest.mark.parametrize("pre", ["default", "unheard-of"])
def test_unknown_way_of_cutting(pre: str, tmp_path: Path) -> None:
    """A pre-tokenizer that is not known is refused by name: guessing would spoil every answer a little."""
    with pytest.raises(UnsupportedError, match=f"tokenizer.ggml.pre '{pre}'"):
        through_gguf(tmp_path, lambda writer: byte_level_tokenizer(writer, GUIDE / "tokenizer.json", pre))


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    """A token without a row in the embedding is refused."""
    config = config_of("llama", vocab_size=1000, num_hidden_layers=1, rope_scaling=None)
    file = write_gguf(tmp_path / "model.gguf", "llama", config, tensors_of(config), tokenizer=write_pieces)
    with open_source(file) as source, pytest.raises(FormatError, match="has 1000 rows"):
        _ = source.metadata


def test_end_of_a_turn(tmp_path: Path) -> None:
    """The token that the chat template puts behind answers stops them, though EOS is another one."""

    def write(writer: gguf.GGUFWriter) -> None:
        byte_level_tokenizer(writer, GUIDE / "tokenizer.json", "gpt-2")
        writer.add_eos_token_id(0)
        writer.add_chat_template(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )

    config = config_of("llama", vocab_size=5000, num_hidden_layers=1, rope_scaling=None)
    file = write_gguf(tmp_path / "model.gguf", "llama", config, tensors_of(config), tokenizer=write)
    made = convert(file, tmp_path / "out", "q4f16_1").config
    assert made["eos_token_id"] == 0
    assert made["conv_template"]["stop_token_ids"] == [0, 2]
    assert made["conv_template"]["name"] == "chatml"
