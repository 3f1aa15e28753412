"""Damaged files of every format: our errors and no others, in bounded memory."""

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.compile.convert import convert
from builder.compile.import_.matching import check_dimensions
from builder.compile.import_.source import open_source
from builder.compile.mlc import MLCDirectory
from builder.errors import BuildError
from tests.builder.checkpoints import write_safetensors
from tests.builder.import_.archives import write_pytorch
from tests.builder.import_.exports import write_onnx
from tests.builder.import_.ggml import TYPES, write_gguf
from tests.builder.import_.models import config_of, tensors_of, write_model
from tests.builder.import_.test_gguf_tokenizer import write_pieces

CONFIG = config_of("llama", num_hidden_layers=1, hidden_size=32, intermediate_size=32, vocab_size=40)
TENSORS = tensors_of(CONFIG)
MEMORY = 2**26  # far above what these files of a few kilobytes take, far below what they can claim


def few_tokens(writer: gguf.GGUFWriter) -> None:
    """A tokenizer of letters."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", *map(chr, range(65, 90))])
    writer.add_token_scores([0.0] * 26)
    writer.add_unk_token_id(0)


TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "BPE", "vocab": {chr(65 + token): token for token in range(26)}, "merges": []},
}
WRITERS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda file: write_safetensors(file, TENSORS),
    "pytorch": lambda file: write_pytorch(file, TENSORS),
    "onnx": lambda file: write_onnx(file, TENSORS),
    "gguf": lambda file: write_gguf(file, "llama", CONFIG, TENSORS, TYPES.Q4_0, tokenizer=few_tokens),
    "tokens": lambda file: write_gguf(
        file,
        "llama",
        CONFIG | {"vocab_size": 400},
        tensors_of(CONFIG | {"vocab_size": 400}),
        TYPES.Q4_0,
        tokenizer=lambda writer: write_pieces(writer, 400),
    ),
}
# What stands where counts, lengths, offsets and types do.
EXTREMES = [
    0,
    1,
    2,
    8,
    9,
    127,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
]


@pytest.fixture(scope="module", params=WRITERS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A directory with a valid file in it, and that file's content."""
    place = tmp_path_factory.mktemp("fuzz")
    file = write_model(place / "hf", CONFIG, {}) / "weights"
    (file.parent / "model.safetensors").unlink()
    (file.parent / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (file.parent / "tokenizer_config.json").write_text("{}")
    WRITERS[request.param](file)
    convert(file, place / "out", "q4f16_1")
    return file, file.read_bytes()


def read_all(file: Path) -> None:
    """Do with a file what the converter does: check it, read its tokenizer and some rows of every tensor."""
    with open_source(file) as source:
        check_dimensions(source)
        assert (source.metadata / "tokenizer.json").is_file()
        for name, tensor in source.tensors.items():
            rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
            if np.prod(tensor.shape, dtype=float) < 2**20:
                source.groups(name, 0, rows)
                source.rows(name, 0, rows)


def attempt(file: Path, content: bytes) -> None:
    """Read damaged content, which may succeed or give our error."""
    file.write_bytes(content)
    tracemalloc.start()
    try:
        read_all(file)
    except BuildError as error:
        message = f"{error} {error.hint}"
        assert "\n" not in message
        assert len(message) < 1000
        message.encode()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY


DAMAGE = st.tuples(
    st.sampled_from(["byte", "<Q", "<I", "<H", "cut", "double", "end"]),
    # Headers are at the beginning, but for zip archives, which have theirs at the end.
    st.booleans(),
    st.integers(0, 64) | st.integers(0, 600) | st.integers(0, 3000) | st.integers(0, 2**15),
    st.sampled_from(EXTREMES) | st.integers(0, 255),
)


def damaged(content: bytes, kind: str, behind: bool, at: int, value: int) -> bytes:
    """A byte changed, a number made extreme, a stretch cut out or doubled, the end cut off."""
    at = min(at, len(content))
    at = len(content) - at if behind else at
    before, after = content[:at], content[at:]
    if kind == "byte":
        return before + bytes([value % 256]) + after[1:]
    if kind.startswith("<"):
        size = struct.calcsize(kind)
        return before + struct.pack(kind, value % 256**size) + after[size:]
    if kind == "cut":
        return before + after[value % 64 :]
    return before if kind == "end" else before + after[: value % 64] + after


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(DAMAGE, min_size=1, max_size=4))
def test_damage(whole: tuple[Path, bytes], damages: list[tuple[str, bool, int, int]]) -> None:
    """Damage of every kind gives our error, or a file that can still be read."""
    file, content = whole
    for damage in damages:
        content = damaged(content, *damage)
    attempt(file, content)


@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=300))
def test_noise(noise: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Noise behind the beginning of every format."""
    place = write_model(tmp_path_factory.mktemp("noise") / "hf", CONFIG, {})
    starts = [
        b"",
        b"GGUF\3\0\0\0",
        b"PK\3\4",
        struct.pack("<Q", len(noise) + 1) + b"{",
        b"\x08\x07\x12\x00\x3a",
    ]
    for start in starts:
        attempt(place / "model.safetensors", start + noise)


def test_every_prefix(whole: tuple[Path, bytes]) -> None:
    """A file cut off anywhere in its header, and at many places behind, gives our error."""
    file, content = whole
    for end in (*range(200), *range(200, len(content), max(1, len(content) // 100))):
        attempt(file, content[:end])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(DAMAGE, min_size=1, max_size=2))
def test_conversion_of_damaged_files(
    whole: tuple[Path, bytes],
    damages: list[tuple[str, bool, int, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A damaged file becomes a directory that opens, or our error says why not and nothing is left."""
    file, content = whole
    for damage in damages:
        content = damaged(content, *damage)
    file.write_bytes(content)
    place = tmp_path_factory.mktemp("converted")
    try:
        MLCDirectory.open(convert(file, place / "out", "q4f16_1").path).verify()
    except BuildError:
        assert list(place.iterdir()) == []
