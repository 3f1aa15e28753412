"""PyTorch checkpoints: read as data, never run."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from builder.compile.convert import convert
from builder.compile.import_.checkpoint import Files, read_floats
from builder.compile.import_.pytorch import read_pytorch
from builder.compile.import_.source import open_source
from builder.errors import BuildError, FormatError, UnsupportedError
from tests.builder.import_.archives import (
    archive,
    integer,
    state_dict,
    tensor,
    text,
    tuple_of,
    write_pytorch,
)
from tests.builder.import_.models import config_of, tensors_of, write_model

GOLDEN = Path(__file__).parents[2] / "golden" / "pytorch"
WHOLE = np.arange(24, dtype=np.float32).reshape(4, 6) / 8


def read(file: Path) -> dict[str, npt.NDArray[np.float32]]:
    """All tensors of a file."""
    files = Files()
    try:
        found = {}
        for name, entry in read_pytorch(files, file).items():
            rows = entry.shape[0] if len(entry.shape) > 1 else 1
            found[name] = read_floats(files, name, entry, 0, rows).reshape(entry.shape)
        return found
    finally:
        files.close()


def test_shared_storage() -> None:
    """Tied weights, as `state_dict` saves them, are two names for the same bytes."""
    found = read(GOLDEN / "tied.bin")
    assert list(found) == ["embed.weight", "head.weight"]
    assert all(np.array_equal(values, WHOLE) for values in found.values())


def test_views() -> None:
    """Slices, transposes, steps and every float type come out as PyTorch shows them."""
    files = Files()
    entries = read_pytorch(files, GOLDEN / "views.bin")
    assert entries.pop("double").dtype == "F64"
    expected = {
        "rows": WHOLE[1:3],
        "turned": WHOLE.T,
        "steps": WHOLE[::2, ::3],
        "half": WHOLE,
        "brain": WHOLE,
        "parameter": WHOLE[0],
        "vector": WHOLE[:, 1],
        "empty": np.empty((0, 6), np.float32),
    }
    assert entries.keys() == expected.keys()
    for name, values in expected.items():
        rows = len(values) if values.ndim > 1 else 1
        assert np.array_equal(
            read_floats(files, name, entries[name], 0, rows).reshape(values.shape), values
        ), name
    turned = read_floats(files, "turned", entries["turned"], 2, 5)
    assert np.array_equal(turned, WHOLE.T[2:5])
    files.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("legacy.bin", "legacy format"),
        ("expanded.bin", "expanded: shape .* lies outside its storage"),
        ("module.bin", "asks for '__main__.Tied', which is not run"),
        ("script.bin", "is a TorchScript program"),
    ],
)
def test_refused_by_name(name: str, message: str) -> None:
    """What is no plain dictionary of weights is refused, with a way out."""
    with pytest.raises(BuildError, match=message) as caught:
        read(GOLDEN / name)
    assert caught.value.hint


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_same_directory_as_from_safetensors(dtype: str, tmp_path: Path) -> None:
    """The directory equals, byte for byte, the one from the same checkpoint as safetensors."""
    config = config_of("llama")
    tensors = tensors_of(config)
    safetensors = write_model(tmp_path / "hf", config, tensors, dtype)
    convert(safetensors, tmp_path / "safetensors", "q4f16_1")
    (safetensors / "model.safetensors").unlink()
    write_pytorch(safetensors / "pytorch_model.bin", tensors, dtype)
    convert(safetensors, tmp_path / "pytorch", "q4f16_1")
    expected = {file.name: file.read_bytes() for file in (tmp_path / "safetensors").iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "pytorch").iterdir()} == expected


def test_sharded(tmp_path: Path) -> None:
    """A checkpoint in several files is read through its index; other pickles beside it are left alone."""
    config = config_of("llama")
    tensors = tensors_of(config)
    directory = write_model(tmp_path / "hf", config, tensors)
    (directory / "model.safetensors").unlink()
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(3):
        part = {name: tensors[name] for name in names[number::3]}
        write_pytorch(directory / f"pytorch_model-{number}.bin", part)
        weight_map |= dict.fromkeys(part, f"pytorch_model-{number}.bin")
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "optimizer.pt").write_bytes((GOLDEN / "module.bin").read_bytes())
    with open_source(directory) as source:
        assert source.format == "PyTorch"
        assert set(source.tensors) == set(tensors)
        for name, values in tensors.items():
            rows = len(values) if values.ndim > 1 else 1
            assert np.array_equal(source.rows(name, 0, rows).reshape(values.shape), values)


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


def test_nothing_is_run(tmp_path: Path) -> None:
    """A pickle that would run code is refused before anything happens, wherever the code hides."""
    for number, content in enumerate([Trap(tmp_path / "ran"), {"weight": Trap(tmp_path / "ran")}]):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            file = archive(tmp_path / f"{number}-{protocol}.bin", pickle.dumps(content, protocol), {})
            with pytest.raises(UnsupportedError, match=r"not run|do not need"):
                read(file)
    assert not (tmp_path / "ran").exists()


FOUR = tensor("F32", "0", 4, (4,))
DEEP = b"\x80\x02" + b")" + b"\x85" * 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a valid pickle"),
        (b"\x80\x02.", "not a valid pickle"),
        (b"\x80\x02}X\xff\xff\xff\xff", "not a valid pickle"),
        (b"\x80\x02}r\xff\xff\xff\xff0.", "operation POP"),
        (b"\x80\x02h\x05.", "not a valid pickle"),
        (b"\x80\x02)\x86.", "not a valid pickle"),
        (b"\x80\x02}" + b")0" * 600_000, "operation POP"),
        (b"\x80\x02}" + b"q\x00" * 1_100_000, "more than 1000000 operations"),
        (DEEP + b".", "no dictionary of tensors"),
        (b"\x80\x02}" + DEEP[2:] + b"K\x01s.", "something else than named tensors"),
        (state_dict({"a": FOUR, "b": integer(1)}), "has 'b', which is no named tensor"),
        (b"\x80\x02}(" + text("a") + FOUR + text("a") + FOUR + b"u.", "'a' twice"),
        (b"\x80\x02}(K\x01" + FOUR + b"u.", "has '1', which is no named"),
        (state_dict({"a\nb": FOUR}), "is not a tensor name"),
        (state_dict({"a": b"cos\nsystem\n" + tuple_of(text("true")) + b"R"}), "asks for 'os.system'"),
        (state_dict({"a": b"cbuiltins\neval\n"}), "asks for 'builtins.eval'"),
        (state_dict({"a": b"ctorch\nload\n"}), "asks for 'torch.load'"),
        (state_dict({"a": tensor("F32", "9", 4, (4,))}), "storage '9' is missing"),
        (state_dict({"a": tensor("F32", "../../etc/passwd", 4, (4,))}), "is missing"),
        (state_dict({"a": tensor("F32", "0", 2**60, (2**60,))}), "has 16 bytes, not"),
        (state_dict({"a": tensor("F32", "0", 4, (2**31, 2**31))}), "lies outside its storage"),
        (state_dict({"a": tensor("F32", "0", 4, (4,), offset=1)}), "lies outside its storage"),
        (state_dict({"a": tensor("F32", "0", 4, (2, 2), strides=(0, 1))}), "lies outside its storage"),
        (state_dict({"a": tensor("F32", "0", 4, (4,), strides=(-1,))}), "malformed"),
        (state_dict({"a": tensor("F32", "0", 4, (-4,))}), "malformed"),
        (state_dict({"a": tensor("F32", "0", 4, (2, 2), strides=(1,))}), "malformed"),
        (state_dict({"a": tensor("F32", "0", 4, (1,) * 40)}), "malformed"),
    ],
)
def test_bad_pickles(content: bytes, message: str, tmp_path: Path) -> None:
    """Bombs, lies and code give an error that names the file; nothing large is made on the way."""
    file = archive(tmp_path / "model.bin", content, {"0": bytes(16)})
    with pytest.raises(BuildError, match=message) as caught:
        read(file)
    assert "model.bin" in str(caught.value)


def test_bad_archives(tmp_path: Path) -> None:
    """Compressed, doubled, foreign, big-endian and cut archives are refused by name."""
    content, data = state_dict({"a": FOUR}), {"0": bytes(16)}
    compressed = archive(tmp_path / "compressed.bin", content, data, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsupportedError, match="compressed"):
        read(compressed)
    with pytest.raises(UnsupportedError, match="big-endian"):
        read(archive(tmp_path / "order.bin", content, data, more={"byteorder": b"big"}))
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = archive(tmp_path / "twice.bin", content, data, more={"data.pkl": content})
    with pytest.raises(FormatError, match=r"'archive/data\.pkl' twice"):
        read(twice)
    whole = archive(tmp_path / "whole.bin", content, data).read_bytes()
    for cut in range(0, len(whole) - 1, 7):
        (tmp_path / "cut.bin").write_bytes(whole[:cut])
        with pytest.raises(FormatError, match=r"cut\.bin"):
            read(tmp_path / "cut.bin")


def test_one_file(tmp_path: Path) -> None:
    """A file is enough where config.json lies beside it."""
    config = config_of("llama")
    directory = write_model(tmp_path / "hf", config, {})
    file = write_pytorch(directory / "weights", tensors_of(config))
    with open_source(file) as source:
        assert source.config == config
        assert source.metadata == directory
