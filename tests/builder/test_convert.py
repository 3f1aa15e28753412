"""From a Hugging Face checkpoint to an MLC directory."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.compile.convert import convert
from builder.compile.mlc import MLCDirectory
from builder.compile.quantise import quantise
from builder.errors import BuildError, FormatError, UnsupportedError
from tests.builder.checkpoints import CONFIG, GOLDEN, Tensors, llama_tensors, write_checkpoint


@pytest.mark.parametrize("quantization", ["q4f16_1", "q4f32_1", "q0f16"])
def test_bit_exact_with_mlc(quantization: str, tmp_path: Path) -> None:
    """Every file equals the one that MLC-LLM wrote for the same checkpoint, configuration included."""
    out = tmp_path / "out"
    convert(
        GOLDEN / "hf", out, quantization, context_window_size=1024, prefill_chunk_size=256, max_batch_size=4
    )
    expected = {path.name: path.read_bytes() for path in (GOLDEN / quantization).iterdir()}
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    if (
        "params_shard_0.bin" not in expected
    ):  # kept out of the repository for its size; its MD5 is in the cache
        del found["params_shard_0.bin"]
        MLCDirectory.open(out).verify()
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in expected)


def test_unquantised_float32_is_stored_as_bfloat16(tmp_path: Path) -> None:
    """q0f32 keeps float32 tensors, stored as bfloat16, and labels them for browsers in a second cache."""
    tensors = llama_tensors(CONFIG)
    model = convert(write_checkpoint(tmp_path / "hf", tensors), tmp_path / "out", "q0f32")
    weight = model.read("lm_head.weight")
    assert weight.dtype == np.float32
    assert np.allclose(weight, tensors["lm_head.weight"], rtol=2**-8, atol=0)
    browser = json.loads((tmp_path / "out" / "tensor-cache-b16.json").read_text())
    assert {t["dtype"] for shard in browser["records"] for t in shard["records"]} == {"bfloat16"}


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_source_dtypes(dtype: str, tmp_path: Path) -> None:
    """A half-precision checkpoint gives what the same values in float32 give."""
    eighth = np.float32(1 / 8)
    exact: Tensors = {name: np.rint(w / eighth) * eighth for name, w in llama_tensors(CONFIG).items()}
    for name, kind in (("half", dtype), ("full", "F32")):
        convert(write_checkpoint(tmp_path / f"{name}-hf", exact, kind), tmp_path / name, "q4f16_1")
    assert (tmp_path / "half/params_shard_0.bin").read_bytes() == (
        tmp_path / "full/params_shard_0.bin"
    ).read_bytes()


def test_fused_rows(tmp_path: Path) -> None:
    """qkv and gate_up are the sources' rows one after the other."""
    tensors = llama_tensors(CONFIG)
    model = convert(write_checkpoint(tmp_path / "hf", tensors), tmp_path / "out", "q4f16_1")
    layer = "model.layers.1"
    for fused, parts in (
        ("self_attn.qkv_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        ("mlp.gate_up_proj", ["mlp.gate_proj", "mlp.up_proj"]),
    ):
        stacked = np.concatenate([tensors[f"{layer}.{part}.weight"] for part in parts])
        words, scale = quantise(stacked, "float16")
        assert np.array_equal(model.read(f"{layer}.{fused}.q_weight"), words)
        assert np.array_equal(model.read(f"{layer}.{fused}.q_scale"), scale)


def test_sharded_checkpoint(tmp_path: Path) -> None:
    """A checkpoint in several files holds the same weights; those of one file stay together."""
    tensors = llama_tensors(CONFIG)
    one = convert(write_checkpoint(tmp_path / "one-hf", tensors), tmp_path / "one", "q4f16_1")
    three = convert(write_checkpoint(tmp_path / "three-hf", tensors, files=3), tmp_path / "three", "q4f16_1")
    assert one.tensors.keys() == three.tensors.keys()
    assert all(np.array_equal(one.read(name), three.read(name)) for name in one.tensors)
    in_file = dict.fromkeys(name for i in range(3) for name in list(tensors)[i::3])
    order = [name for name in in_file if name.endswith(("norm.weight", "layernorm.weight"))]
    assert [name for name in three.tensors if name.endswith(("norm.weight", "layernorm.weight"))] == order


def test_tied_embeddings(tmp_path: Path) -> None:
    """A tied model has no lm_head, even where the checkpoint carries a copy."""
    tensors = llama_tensors(CONFIG)
    model = convert(
        write_checkpoint(tmp_path / "hf", tensors, tie_word_embeddings=True), tmp_path / "out", "q4f16_1"
    )
    assert not any(name.startswith("lm_head") for name in model.tensors)


def test_shard_rules(tmp_path: Path) -> None:
    """A tensor of 16 MiB that would fill the open shard gets its own; small ones share."""
    config: dict[str, Any] = {"vocab_size": 1 << 17, "num_hidden_layers": 1, "tie_word_embeddings": False}
    checkpoint = write_checkpoint(tmp_path / "hf", **config)
    model = convert(checkpoint, tmp_path / "out", "q0f16")
    shards = [(s.name, [t.name for t in model.tensors.values() if t.shard == s.name]) for s in model.shards]
    # By name, lm_head (16 MiB) opens a shard; the embedding (16 MiB) would fill it, and is written first.
    assert shards[0] == ("params_shard_0.bin", ["model.embed_tokens.weight"])
    assert shards[1][1][0] == "lm_head.weight"
    assert shards[1][1][-1] == "model.norm.weight"
    model.verify()


LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}},
        {"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", **LLAMA3}},
    ],
    ids=["transformers 4", "transformers 5", "old key"],
)
def test_rope_scaling(changes: dict[str, Any], tmp_path: Path) -> None:
    """llama3 rope scaling is found where either generation of transformers puts it."""
    model = convert(write_checkpoint(tmp_path / "hf", **changes), tmp_path / "out", "q4f16_1")
    architecture = model.config["model_config"]
    assert architecture["position_embedding_base"] == 500000.0
    assert architecture["rope_scaling"] == {"rope_type": "llama3", **LLAMA3}


def test_defaults(tmp_path: Path) -> None:
    """Context, chunk and head sizes are as MLC-LLM derives them; plain rope has no scaling."""
    changes: dict[str, Any] = {
        "max_position_embeddings": 131072,
        "num_key_value_heads": None,
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    tensors = llama_tensors(CONFIG | {"num_key_value_heads": 4})
    model = convert(write_checkpoint(tmp_path / "hf", tensors, **changes), tmp_path / "out", "q4f16_1")
    architecture = model.config["model_config"]
    assert (architecture["context_window_size"], architecture["prefill_chunk_size"]) == (131072, 8192)
    assert (architecture["num_key_value_heads"], architecture["head_dim"]) == (4, 16)
    assert (architecture["position_embedding_base"], architecture["rope_scaling"]) == (1e6, None)


def test_generation_defaults(tmp_path: Path) -> None:
    """Sampling defaults and stop tokens come from generation_config.json before config.json."""
    checkpoint = write_checkpoint(tmp_path / "hf", eos_token_id=1020, bos_token_id=1019)
    (checkpoint / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": [1020, 1023]})
    )
    config = convert(checkpoint, tmp_path / "out", "q4f16_1").config
    assert (config["temperature"], config["top_p"], config["repetition_penalty"]) == (0.6, 0.9, 1.0)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1019, [1020, 1023])
    assert config["conv_template"]["stop_token_ids"] == [1020, 1023]


def test_chat_template_travels(tmp_path: Path) -> None:
    """Templates of the checkpoint stay in the directory, in either place."""
    checkpoint = write_checkpoint(tmp_path / "hf")
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0].content }}")
    convert(checkpoint, tmp_path / "out", "q4f16_1")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_progress(tmp_path: Path) -> None:
    """Progress rises from 0 to 1."""
    seen: list[float] = []
    convert(
        write_checkpoint(tmp_path / "hf"), tmp_path / "out", "q4f16_1", lambda step, part: seen.append(part)
    )
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"rope_scaling": {"rope_type": "mrope", "factor": 4}}, "rope type 'mrope'"),
        ({"rope_scaling": {"type": "ntk", "factor": 4}}, "rope type 'ntk'"),
        ({"quantization_config": {"quant_method": "awq"}}, "already quantised"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_unsupported_architecture(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """What the compiled model would silently do wrong is refused by name."""
    checkpoint = write_checkpoint(tmp_path / "hf", llama_tensors(CONFIG), **changes)
    with pytest.raises(UnsupportedError, match=message):
        convert(checkpoint, tmp_path / "out", "q4f16_1")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_unknown_quantisation(tmp_path: Path) -> None:
    """An unknown weight format is refused with the known ones."""
    with pytest.raises(UnsupportedError, match="'q5_k_m'") as caught:
        convert(write_checkpoint(tmp_path / "hf"), tmp_path / "out", "q5_k_m")
    assert "q4f16_1" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size: None is not a positive integer"),
        ({"vocab_size": "many"}, "vocab_size: 'many'"),
        ({"num_hidden_layers": 3}, r"tensor model\.layers\.2\.\S+ is missing"),
        ({"intermediate_size": 128}, r"shape \[96, 64\], not \[128, 64\]"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor: None"),
        ({"bos_token_id": 4000}, "bos_token_id: token id 4000 is outside the vocabulary of 1024"),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A config.json that does not describe the weights or the tokenizer is refused."""
    checkpoint = write_checkpoint(tmp_path / "hf", llama_tensors(CONFIG), **changes)
    with pytest.raises(FormatError, match=message):
        convert(checkpoint, tmp_path / "out", "q4f16_1")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_unexpected_tensor(tmp_path: Path) -> None:
    """A tensor that the model would ignore, such as a bias, is refused; known leftovers are not."""
    tensors: Tensors = llama_tensors(CONFIG)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    convert(write_checkpoint(tmp_path / "hf", tensors), tmp_path / "out", "q4f16_1")
    tensors["model.layers.0.mlp.down_proj.bias"] = np.ones(64, np.float32)
    with pytest.raises(UnsupportedError, match=r"down_proj\.bias has no place"):
        convert(write_checkpoint(tmp_path / "hf", tensors), tmp_path / "other", "q4f16_1")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files(name: str, tmp_path: Path) -> None:
    """Each file that must be there is named."""
    checkpoint = write_checkpoint(tmp_path / "hf")
    (checkpoint / name).unlink()
    with pytest.raises(FormatError, match=name):
        convert(checkpoint, tmp_path / "out", "q4f16_1")


@pytest.mark.parametrize(
    ("value", "quantization"), [(np.nan, "q4f32_1"), (np.inf, "q0f32"), (1e5, "q4f16_1")]
)
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_not_finite(name: str, value: float, quantization: str, tmp_path: Path) -> None:
    """A weight that is NaN, infinite or beyond the model dtype is named, and nothing is left."""
    tensors = llama_tensors(CONFIG)
    tensors[name].flat[5] = value
    with pytest.raises(FormatError, match=f"{name} has NaN or infinity"):
        convert(write_checkpoint(tmp_path / "hf", tensors), tmp_path / "out", quantization)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("cut", [0, 4, 100, 5000, -1])
def test_truncated_safetensors(cut: int, tmp_path: Path) -> None:
    """A checkpoint file cut anywhere is refused by name."""
    checkpoint = write_checkpoint(tmp_path / "hf")
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        convert(checkpoint, tmp_path / "out", "q4f16_1")


@pytest.mark.parametrize(
    "record",
    [
        {"dtype": "F32", "shape": [64], "data_offsets": [0, 2**60]},
        {"dtype": "F32", "shape": [64], "data_offsets": [0, 255]},
        {"dtype": "F32", "shape": [-64], "data_offsets": [0, 256]},
        {"dtype": "F32", "shape": "64", "data_offsets": [0, 256]},
        {"dtype": "I64", "shape": [64], "data_offsets": [0, 512]},
        "nothing",
    ],
)
def test_malformed_safetensors_header(record: Any, tmp_path: Path) -> None:
    """A header that lies about a tensor, or a dtype that holds no weights, is refused by tensor."""
    checkpoint = write_checkpoint(tmp_path / "hf")
    file = checkpoint / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"] = record
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])
    with pytest.raises(FormatError, match=r"model\.norm\.weight"):
        convert(checkpoint, tmp_path / "out", "q4f16_1")


def test_missing_parents_are_made(tmp_path: Path) -> None:
    """The first model ever converted finds no models folder; it is made."""
    convert(write_checkpoint(tmp_path / "hf"), tmp_path / "a" / "b" / "out", "q4f16_1")
    assert (tmp_path / "a" / "b" / "out" / "mlc-chat-config.json").exists()


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A place where no directory can be made is named."""
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="cannot write in"):
        convert(write_checkpoint(tmp_path / "hf"), tmp_path / "file" / "out", "q4f16_1")


def test_existing_output(tmp_path: Path) -> None:
    """What is already there is never touched."""
    (tmp_path / "out").mkdir()
    with pytest.raises(BuildError, match="already exists"):
        convert(write_checkpoint(tmp_path / "hf"), tmp_path / "out", "q4f16_1")
    assert list((tmp_path / "out").iterdir()) == []


JUNK: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-1, 2**40)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.none() | st.integers() | st.text(max_size=1), max_size=2)
    | st.dictionaries(
        st.sampled_from(["rope_type", "type", "content", "name", "x"]), st.none() | st.text(max_size=1)
    )
)


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value outside large vocabularies: container and key."""
    if not isinstance(value, dict | list) or len(value) > 100:
        return []
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    return [spot for key in keys for spot in ((value, key), *_spots(value[key]))]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_junk_gives_an_error_or_converts(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever stands in a checkpoint's JSON: it converts to what opens, or our error says why not."""
    place = tmp_path_factory.mktemp("junk")
    checkpoint = write_checkpoint(place / "hf", num_hidden_layers=1)
    (checkpoint / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "eos_token_id": [1020]})
    )
    file = checkpoint / data.draw(
        st.sampled_from(["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
    )
    value = json.loads(file.read_text())
    container, key = data.draw(st.sampled_from(_spots(value)))
    container[key] = data.draw(JUNK)
    file.write_text(json.dumps(value))
    try:
        MLCDirectory.open(convert(checkpoint, place / "out", "q4f16_1").path)
    except BuildError as error:
        assert "\n" not in str(error)  # noqa: PT017 -- converting is allowed, other exceptions are not
        assert [path.name for path in place.iterdir()] == ["hf"]


def test_leftovers_of_a_killed_conversion(tmp_path: Path) -> None:
    """What a killed attempt left is removed by the next; one still at work is not disturbed."""
    stale, busy = tmp_path / ".out.dead.partial", tmp_path / ".out.busy.partial"
    other = tmp_path / ".output.dead.partial"
    for directory in (stale, busy, other):
        directory.mkdir()
        (directory / "params_shard_0.bin").touch()
    lock = os.open(busy, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        convert(write_checkpoint(tmp_path / "hf"), tmp_path / "out", "q4f16_1")
    finally:
        os.close(lock)
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "out", busy.name, other.name}


LIMITED = """
import resource, sys
from pathlib import Path
from builder.compile.convert import convert
from builder.errors import BuildError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    convert(Path(sys.argv[1]), Path(sys.argv[2]), "q4f16_1")
except BuildError as error:
    print(error)
"""


def test_file_size_limit(tmp_path: Path) -> None:
    """A write that the system refuses half-way gives a one-line error and leaves nothing."""
    checkpoint, place = write_checkpoint(tmp_path / "hf"), tmp_path / "place"
    place.mkdir()
    command = [sys.executable, "-c", LIMITED, str(checkpoint), str(place / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == f"cannot write {place / 'out'}: File too large\n"
    assert list(place.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 128 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "hob-test", str(place)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """A full disk gives a one-line error with a hint, and the disk is empty again."""
    with pytest.raises(BuildError, match="No space left on device") as caught:
        convert(write_checkpoint(tmp_path / "hf"), small_disk / "out", "q4f16_1")
    assert "space" in caught.value.hint
    assert list(small_disk.iterdir()) == []
