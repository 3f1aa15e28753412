"""The MLC model directory: what opens, what is refused and how."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.compile.bfloat16 import narrow_bfloat16, widen_bfloat16
from builder.compile.mlc import MLCDirectory
from builder.errors import BuildError, FormatError, UnsupportedError
from tests.builder.checkpoints import GOLDEN


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of a directory that MLC-LLM wrote."""
    return shutil.copytree(GOLDEN / "q4f32_1", tmp_path / "model", copy_function=shutil.copyfile)


def change(file: Path, edit: Callable[[Any], object]) -> None:
    """Edit a JSON file in place."""
    value = json.loads(file.read_text())
    edit(value)
    file.write_text(json.dumps(value))


@pytest.mark.parametrize("quantization", ["q4f16_1", "q4f32_1"])
def test_reads_what_mlc_wrote(quantization: str) -> None:
    """A directory by MLC-LLM opens, verifies, and its tensors are those of the checkpoint."""
    model = MLCDirectory.open(GOLDEN / quantization)
    model.verify()
    assert (model.model_type, model.quantization, model.vocab_size, model.context_window) == (
        "llama",
        quantization,
        1024,
        1024,
    )
    assert len(model.tensors) == 33
    assert model.nbytes == 386560
    words = model.read("model.embed_tokens.q_weight")
    assert words.dtype == np.uint32
    assert words.shape == (1024, 16)
    norm = model.read("model.norm.weight")
    assert norm.dtype == ("float16" if quantization == "q4f16_1" else "float32")
    assert not norm.flags.writeable


def test_float32_is_widened_from_bfloat16() -> None:
    """float32 tensors are stored as bfloat16 and come back as the float32 of the same value."""
    model = MLCDirectory.open(GOLDEN / "q4f32_1")
    entry = model.tensors["model.norm.weight"]
    raw = (GOLDEN / "q4f32_1" / entry.shard).read_bytes()[entry.offset : entry.offset + entry.nbytes]
    expected = np.frombuffer(raw, ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(model.read(entry.name), expected)


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_bfloat16_rounding(values: list[float]) -> None:
    """Narrowing rounds to nearest, ties to even, as ml_dtypes does; widening is exact."""
    exact = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        reference = exact.astype(ml_dtypes.bfloat16)
    assert np.array_equal(narrow_bfloat16(exact), reference.view(np.uint16))
    assert np.array_equal(widen_bfloat16(reference.view(np.uint16)), reference.astype(np.float32))


def test_older_name_of_the_tensor_cache(directory: Path) -> None:
    """Directories from before the renaming of tensor-cache.json open too."""
    (directory / "tensor-cache.json").rename(directory / "ndarray-cache.json")
    MLCDirectory.open(directory).verify()


def test_a_window_without_end_of_context(directory: Path) -> None:
    """MLC-LLM gives models with a sliding window no end of their context; the window is one."""
    endless = {"context_window_size": -1, "sliding_window_size": 512}
    change(directory / "mlc-chat-config.json", lambda config: config.update(endless))
    assert MLCDirectory.open(directory).context_window == 512
    change(directory / "mlc-chat-config.json", lambda config: config.update(sliding_window_size=0))
    with pytest.raises(FormatError, match="sliding_window_size"):
        MLCDirectory.open(directory)
    change(directory / "mlc-chat-config.json", lambda config: config.update(sliding_window_size=-1))
    with pytest.raises(FormatError, match="context_window_size"):
        MLCDirectory.open(directory)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("params_shard_0.bin", "again"),
        ("tensor-cache.json", "convert"),
        ("tokenizer.json", "tokenizer.json"),
        ("mlc-chat-config.json", "directory"),
    ],
)
def test_missing_file(directory: Path, name: str, hint: str) -> None:
    """Each missing file is named, with what to do."""
    (directory / name).unlink()
    with pytest.raises(FormatError, match=name) as caught:
        MLCDirectory.open(directory)
    assert hint in caught.value.hint


def test_damaged_shard(directory: Path) -> None:
    """One flipped bit is found by verify; open reads no weights and does not notice."""
    shard = directory / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    model = MLCDirectory.open(directory)
    with pytest.raises(FormatError, match=r"params_shard_0\.bin is damaged: MD5"):
        model.verify()


def test_truncated_shard(directory: Path) -> None:
    """A shard of the wrong size is refused with both sizes; one that shrinks later cannot be read."""
    model = MLCDirectory.open(directory)
    shard = directory / "params_shard_0.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"has 386559 bytes, tensor-cache\.json says 386560"):
        MLCDirectory.open(directory)
    with pytest.raises(FormatError, match="cannot be read"):
        model.read("model.norm.weight")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("nbytes", 4, "nbytes is 4, shape"),
        ("shape", [1024, 17], "takes 69632"),
        ("shape", [1024, -16], "positive integers"),
        ("shape", [2**70, 2**70], "takes"),
        ("byteOffset", 386000, "lie outside"),
        ("byteOffset", -1, "is not a byte count"),
        ("byteOffset", 8, "overlap"),
        ("dtype", "complex64", "dtype 'complex64' is not known"),
        ("format", "zip", "format 'zip' is not known"),
        ("name", 7, "name is int, not str"),
        ("name", "model.norm.weight", "listed twice"),
    ],
)
def test_contradicting_tensor(directory: Path, field: str, value: Any, message: str) -> None:
    """A tensor whose description contradicts itself or its shard is refused."""
    cache = directory / "tensor-cache.json"
    change(cache, lambda c: c["records"][0]["records"][0].update({field: value}))
    with pytest.raises(FormatError, match=message) as caught:
        MLCDirectory.open(directory)
    assert "tensor-cache.json" in str(caught.value)


@pytest.mark.parametrize("path", ["../params_shard_0.bin", "/etc/passwd", "..", "a\0b", "", "sub\\x.bin"])
def test_shard_outside_the_directory(directory: Path, path: str) -> None:
    """A shard path that could leave the directory is refused."""
    change(directory / "tensor-cache.json", lambda c: c["records"][0].update(dataPath=path))
    with pytest.raises(FormatError, match="is not a plain file name"):
        MLCDirectory.open(directory)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(model_type="mamba"), "model_type 'mamba' is not supported"),
        (lambda c: c.update(quantization="q2f16_9"), "quantization 'q2f16_9' is not supported"),
    ],
)
def test_unknown_kind_lists_the_known(directory: Path, edit: Callable[[Any], object], message: str) -> None:
    """An unknown family or quantisation is named, and the hint lists what is supported."""
    change(directory / "mlc-chat-config.json", edit)
    with pytest.raises(UnsupportedError, match=message) as caught:
        MLCDirectory.open(directory)
    assert caught.value.hint.startswith("Supported: ")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c["conv_template"].update(stop_token_ids=[128009]),
            r"conv_template\.stop_token_ids: token id 128009 is outside the vocabulary of 1024",
        ),
        (lambda c: c["conv_template"].update(system_prefix_token_ids=[-1]), "token id -1"),
        (lambda c: c["conv_template"].update(stop_token_ids=["x"]), "'x' is not a token id"),
        (lambda c: c["conv_template"].update(stop_token_ids=3), "is not a list"),
        (lambda c: c.update(eos_token_id=[3, 1024]), "eos_token_id: token id 1024"),
        (lambda c: c.update(bos_token_id=True), "True is not a token id"),
        (lambda c: c.update(vocab_size=0), "vocab_size: 0 is not positive"),
        (lambda c: c.pop("vocab_size"), "vocab_size is missing"),
        (lambda c: c.update(model_config=[]), "model_config is list, not dict"),
    ],
)
def test_bad_configuration(directory: Path, edit: Callable[[Any], object], message: str) -> None:
    """A configuration that would break later is refused now, by field."""
    change(directory / "mlc-chat-config.json", edit)
    with pytest.raises(FormatError, match=message) as caught:
        MLCDirectory.open(directory)
    assert "mlc-chat-config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b'{"records": 5}'])
@pytest.mark.parametrize("name", ["tensor-cache.json", "mlc-chat-config.json"])
def test_foreign_json(directory: Path, name: str, content: bytes) -> None:
    """What is not the expected JSON object is refused by file name, however strange."""
    (directory / name).write_bytes(content)
    with pytest.raises(FormatError, match=name):
        MLCDirectory.open(directory)


def test_not_a_directory(tmp_path: Path) -> None:
    """A path that is no directory is said to be none."""
    with pytest.raises(FormatError, match="is not a directory"):
        MLCDirectory.open(tmp_path / "nowhere")


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as container and key."""
    if not isinstance(value, dict | list):
        return []
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    return [spot for key in keys for spot in ((value, key), *_spots(value[key]))]


@pytest.mark.parametrize("name", ["tensor-cache.json", "mlc-chat-config.json"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_junk_gives_an_error_or_opens(name: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    """Whatever stands anywhere in the JSON: the directory opens, or one of our errors says what is wrong."""
    directory = tmp_path_factory.getbasetemp() / f"junk-{name}"
    if not directory.exists():
        shutil.copytree(GOLDEN / "q4f16_1", directory, copy_function=shutil.copyfile)
    value = json.loads((GOLDEN / "q4f16_1" / name).read_text())
    container, key = data.draw(st.sampled_from(_spots(value)))
    container[key] = data.draw(junk)
    (directory / name).write_text(json.dumps(value))
    try:
        MLCDirectory.open(directory)
    except BuildError as error:
        assert name in str(error)  # noqa: PT017 -- opening is allowed, other exceptions are not
