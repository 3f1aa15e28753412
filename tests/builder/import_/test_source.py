"""Finding the checkpoint in what a person names."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.compile.convert import convert
from builder.compile.import_.source import open_source
from builder.errors import BuildError, FormatError, UnsupportedError
from tests.builder.checkpoints import write_safetensors
from tests.builder.import_.archives import write_pytorch
from tests.builder.import_.exports import write_onnx
from tests.builder.import_.ggml import write_gguf
from tests.builder.import_.models import config_of, tensors_of, write_model

CONFIG = config_of("llama", num_hidden_layers=1)
TENSORS = tensors_of(CONFIG)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint as safetensors."""
    return write_model(tmp_path / "hf", CONFIG, TENSORS)


def test_content_decides(directory: Path) -> None:
    """Names of files mean nothing: each format is known by its first bytes."""
    (directory / "model.safetensors").unlink()
    file = directory / "weights.txt"
    for kind, write in (
        ("safetensors", lambda: write_safetensors(file, TENSORS)),
        ("PyTorch", lambda: write_pytorch(file, TENSORS)),
        ("GGUF", lambda: write_gguf(file, "llama", CONFIG, TENSORS)),
        ("ONNX", lambda: write_onnx(file, TENSORS)),
    ):
        write()
        for path in (file, directory):
            with open_source(path) as source:
                assert source.format == kind
                assert source.path == path
                assert set(source.tensors) == set(TENSORS)


def test_misleading_names(directory: Path) -> None:
    """A GGUF file called model.safetensors is a GGUF file."""
    (directory / "model.safetensors").unlink()
    write_gguf(directory / "model.safetensors", "llama", CONFIG, TENSORS)
    with open_source(directory) as source:
        assert source.format == "GGUF"


def test_preferred_format(directory: Path) -> None:
    """Where the same weights are there in several formats, the first of the list is taken."""
    write_gguf(directory / "a.gguf", "llama", CONFIG, TENSORS)
    write_pytorch(directory / "pytorch_model.bin", TENSORS)
    (directory / "model.safetensors").rename(directory / "w.safetensors")
    (directory / "pytorch_model.bin").rename(directory / "b.bin")
    kinds = []
    for name in ("w.safetensors", "b.bin", "a.gguf"):
        with open_source(directory) as source:
            kinds.append(source.format)
        (directory / name).unlink()
    assert kinds == ["safetensors", "PyTorch", "GGUF"]


def test_files_without_an_index(directory: Path) -> None:
    """Several files of different tensors are one checkpoint; of the same ones they are not."""
    (directory / "model.safetensors").unlink()
    names = list(TENSORS)
    for number in range(2):
        part = {name: TENSORS[name] for name in names[number::2]}
        write_safetensors(directory / f"part{number}.safetensors", part)
    with open_source(directory) as source:
        assert list(source.tensors) == sorted(TENSORS)
    write_safetensors(directory / "part3.safetensors", {names[0]: TENSORS[names[0]]})
    with pytest.raises(FormatError, match=f"{names[0]} is in .*part0.safetensors too"):
        open_source(directory)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map is missing"),
        ([], "weight_map is missing"),
        ({"model.norm.weight": 1}, "1 is not a plain file name"),
        ({"model.norm.weight": "../model.safetensors"}, "is not a plain file name"),
        ({"model.norm.weight": "/etc/passwd"}, "is not a plain file name"),
        ({"model.norm.weight": ".."}, "is not a plain file name"),
        ({"model.norm.weight": "a\0b"}, "is not a plain file name"),
        ({"model.norm.weight": "not-there.safetensors"}, "not-there.safetensors cannot be read"),
        ({"model.norm.weight": "config.json"}, r"config\.json is truncated or in no format"),
        ({"nothing": "model.safetensors"}, "has no tensor 'nothing'"),
    ],
)
def test_bad_index(weight_map: Any, message: str, directory: Path) -> None:
    """An index that lies, or leads out of the directory, is refused."""
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FormatError, match=message):
        open_source(directory)


def test_nothing_to_convert(tmp_path: Path, directory: Path) -> None:
    """What is not there, has no weights, is finished already, or is something else, is named."""
    (tmp_path / "empty").mkdir()
    convert(directory, tmp_path / "mlc", "q4f16_1")
    (tmp_path / "note.txt").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("missing", "does not exist"),
        ("empty", "has no weights, such as"),
        ("mlc", "is an MLC directory already"),
        ("note.txt", "in no format that is read"),
        ("pipe", "is not a file"),
    ):
        with pytest.raises(FormatError, match=message) as caught:
            open_source(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_missing_configuration(directory: Path) -> None:
    """Weights without config.json are not enough."""
    (directory / "config.json").unlink()
    with pytest.raises(FormatError, match=r"config\.json cannot be read"):
        open_source(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers: 2147483647 is more than"),
        ({"hidden_size": 2**40}, "hidden_size: 1099511627776 is more than"),
        ({"head_dim": 2**30}, "head_dim: 1073741824 is more than"),
        ({"vocab_size": 2**31 - 1}, "vocab_size: 2147483647 is more than"),
    ],
)
def test_configuration_of_a_giant(
    change: dict[str, int], message: str, directory: Path, tmp_path: Path
) -> None:
    """Numbers far beyond the tensors are refused before anything is made of them."""
    (directory / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(FormatError, match=message):
        convert(directory, tmp_path / "out", "q4f16_1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}', "listed twice"),
        (
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
            b' "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',
            "a and b overlap",
        ),
        (
            b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
            "a: the header record is malformed",
        ),
        (b'{"a": {"dtype": "F32", "shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 4]}}', "malformed"),
        (b'{"a\\nb": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "is not a tensor name"),
        (b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "is not a tensor name"),
        (b'{"\xff": 1}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON|truncated|no format"),
        (b'{"a":' * 50_000, "not valid JSON"),
    ],
)
def test_bad_safetensors(header: bytes, message: str, directory: Path) -> None:
    """Headers with tensors twice, on top of each other, or without a proper name are refused."""
    content = len(header).to_bytes(8, "little") + header + bytes(64)
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(BuildError, match=message) as caught:
        open_source(directory)
    assert "model.safetensors" in str(caught.value)


def test_files_are_closed(directory: Path) -> None:
    """No file stays open, neither after use nor after an error, and no made directory stays behind."""
    descriptors = len(os.listdir("/proc/self/fd"))
    with open_source(write_gguf(directory / "m.gguf", "llama", CONFIG, TENSORS)) as source:
        made = source.metadata
        assert (made / "tokenizer.json").is_file()
        assert source.metadata == made
    assert not made.exists()
    (directory / "config.json").unlink()
    with pytest.raises(FormatError):
        open_source(directory)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_weights_that_end_after_the_header_was_read(directory: Path) -> None:
    """A file that shrinks under way, as on a stick that is pulled out, gives an error and no crash."""
    for name, write in (
        ("model.safetensors", lambda file: write_safetensors(file, TENSORS)),
        ("m.gguf", lambda file: write_gguf(file, "llama", CONFIG, TENSORS)),
    ):
        write(directory / name)
        with open_source(directory / name) as source:
            os.truncate(directory / name, source.tensors["model.norm.weight"].start + 8)
            with pytest.raises(FormatError, match=r"ends inside model\.norm\.weight"):
                source.rows("model.norm.weight", 0, 1)


def test_extra_tensors(directory: Path, tmp_path: Path) -> None:
    """A tensor that the model would ignore is refused by name, whatever the format."""
    more = TENSORS | {"model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((2, 64), np.float32)}
    for write in (write_safetensors, write_pytorch):
        shutil.rmtree(directory)
        write_model(directory, CONFIG, {})
        write(directory / "model.safetensors", more)
        with pytest.raises(UnsupportedError, match=r"lora_A\.weight has no place"):
            convert(directory, tmp_path / "out", "q4f16_1")
