"""GGUF files, written by the `gguf` package: weights, names, configuration, directories made of them."""

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from builder.compile.convert import convert
from builder.compile.families import FAMILIES
from builder.compile.import_.gguf.blocks import BY_NAME, decode
from builder.compile.import_.source import open_source
from builder.compile.mlc import MLCDirectory
from builder.compile.quantise import dequantise
from builder.errors import BuildError, FormatError, UnsupportedError
from tests.builder.import_.ggml import TYPES, as_stored, rope_divisors, write_gguf
from tests.builder.import_.models import CONFIGS, LLAMA3, config_of, tensors_of, write_model

BLOCK_TYPES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def weights_of(model: MLCDirectory) -> dict[str, bytes]:
    """Everything of a directory that is made of weights."""
    return {
        file.name: file.read_bytes()
        for file in model.path.iterdir()
        if "shard" in file.name or "cache" in file.name
    }


@pytest.mark.parametrize("family", CONFIGS)
def test_config_and_tensors(family: str, tmp_path: Path) -> None:
    """Every family's configuration and tensors come back as Hugging Face has them."""
    config = config_of(family)
    tensors = tensors_of(config)
    file = write_gguf(tmp_path / "model", family, config, tensors)
    with open_source(file) as source:
        assert source.format == "GGUF"
        assert config.items() <= source.config.items()
        assert list(source.tensors) == sorted(tensors)
        assert source.parameters == sum(weights.size for weights in tensors.values())
        assert source.nbytes == 4 * source.parameters
        for name, weights in tensors.items():
            rows = len(weights) if weights.ndim > 1 else 1
            assert source.tensors[name].shape == weights.shape
            assert np.array_equal(source.rows(name, 0, rows).reshape(weights.shape), weights), name


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("family", [f for f in CONFIGS if CONFIGS[f]["model_type"] in FAMILIES])
def test_same_directory_as_from_safetensors(family: str, kind: str, tmp_path: Path) -> None:
    """Unquantised GGUF gives the directory that the same checkpoint gives as safetensors, byte for byte."""
    config = config_of(family)
    tensors = tensors_of(config)
    file = write_gguf(tmp_path / "model.gguf", family, config, tensors, TYPES[kind])
    ours = convert(file, tmp_path / "gguf", "q4f16_1")
    theirs = convert(write_model(tmp_path / "hf", config, tensors, kind), tmp_path / "safetensors", "q4f16_1")
    assert weights_of(ours) == weights_of(theirs)
    assert ours.config["model_config"] == theirs.config["model_config"]
    for field in ("model_type", "active_vocab_size", "eos_token_id", "tokenizer_info"):
        assert ours.config[field] == theirs.config[field], field


@pytest.mark.parametrize("start", [0, 3, 16, 33])
def test_rows_of_heads(start: int, tmp_path: Path) -> None:
    """Any stretch of query and key rows is found, inside a head and across heads."""
    config = config_of("llama")
    tensors = tensors_of(config)
    with open_source(write_gguf(tmp_path / "m.gguf", "llama", config, tensors, TYPES.F16)) as source:
        for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"):
            stop = min(start + 45, len(tensors[name]))
            assert np.array_equal(source.rows(name, start, stop), tensors[name][start:stop])


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_quantised_files(kind: str, tmp_path: Path) -> None:
    """Rows of a quantised file are what the reference makes of the stored bytes, in Hugging Face's order."""
    config = config_of("llama")
    tensors = tensors_of(config)
    with open_source(write_gguf(tmp_path / "m.gguf", "llama", config, tensors, TYPES[kind])) as source:
        for name, weights in tensors.items():
            if weights.ndim < 2:
                continue
            stored = gguf.quants.quantize(as_stored("llama", config, name, weights), TYPES[kind])
            expected = gguf.quants.dequantize(stored, TYPES[kind])
            found = source.rows(name, 0, len(weights))
            assert np.array_equal(as_stored("llama", config, name, found), expected), name
            assert np.abs(found - weights).max() < 0.3


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_files_of_k_quants(kind: str, tmp_path: Path) -> None:
    """Rows of K-quants, which the package does not write, are the reference's, in the right order."""
    config = config_of("llama", hidden_size=256, intermediate_size=256, num_hidden_layers=1, vocab_size=1024)
    block = BY_NAME[kind]
    raw = np.random.default_rng(0).integers(0, 60, (128, block.nbytes), dtype=np.uint8)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = {"model.embed_tokens.weight": np.zeros((1024, 256), np.float32)}
    file = write_gguf(
        tmp_path / "m.gguf", "llama", config, tensors, raw={"blk.0.attn_q.weight": (raw, TYPES[kind])}
    )
    expected = gguf.quants.dequantize(raw, TYPES[kind])
    with open_source(file) as source:
        assert source.tensors[name].dtype == kind
        assert source.groups(name, 0, 128) is None
        assert np.array_equal(as_stored("llama", config, name, source.rows(name, 0, 128)), expected)


def test_q4_0_arrives_without_loss(tmp_path: Path) -> None:
    """In q4f16_1 every weight of a Q4_0 file keeps its exact value, through reordered and stacked rows."""
    config = config_of("llama")
    tensors = tensors_of(config)
    file = write_gguf(tmp_path / "m.gguf", "llama", config, tensors, TYPES.Q4_0)
    model = convert(file, tmp_path / "out", "q4f16_1")

    def kept(name: str) -> Any:
        words, scale = model.read(f"{name}.q_weight"), model.read(f"{name}.q_scale")
        return dequantise(words, scale, scale.shape[1] * 32)

    def stored(name: str) -> Any:
        raw = gguf.quants.quantize(tensors[f"{name}.weight"], TYPES.Q4_0)
        return decode(BY_NAME["Q4_0"], raw)

    layer = "model.layers.1"
    for name, parts in (
        ("self_attn.qkv_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        ("mlp.gate_up_proj", ["mlp.gate_proj", "mlp.up_proj"]),
        ("mlp.down_proj", ["mlp.down_proj"]),
    ):
        expected = np.concatenate([stored(f"{layer}.{part}") for part in parts])
        assert np.array_equal(kept(f"{layer}.{name}"), expected)
    assert np.array_equal(kept("lm_head"), stored("lm_head"))


def split(place: Path, name: str = "model") -> list[Path]:
    """A model in three files."""
    config = config_of("qwen2")
    write_gguf(
        place / f"{name}.gguf",
        "qwen2",
        config,
        tensors_of(config),
        split_max_tensors=12,
        small_first_shard=True,
    )
    return sorted(place.glob(f"{name}-*.gguf"))


def test_split_files(tmp_path: Path) -> None:
    """A model in several files is whole from any of them, and from their directory."""
    parts = split(tmp_path)
    assert len(parts) > 2
    tensors = tensors_of(config_of("qwen2"))
    for path in (*parts, tmp_path):
        with open_source(path) as source:
            assert list(source.tensors) == sorted(tensors)
            assert {tensor.file for tensor in source.tensors.values()} == set(parts[1:])
            assert np.array_equal(source.rows("model.norm.weight", 0, 1)[0], tensors["model.norm.weight"])


def test_missing_part(tmp_path: Path) -> None:
    """A part that is not there is missed."""
    parts = split(tmp_path)
    parts[1].unlink()
    with pytest.raises(FormatError, match="not all of its"):
        open_source(parts[0])


def test_part_of_another_model(tmp_path: Path) -> None:
    """A part with a wrong number inside is refused."""
    parts = split(tmp_path)
    shutil.copyfile(parts[1], parts[2])
    with pytest.raises(FormatError, match=r"do not belong together|is part 2 of"):
        open_source(parts[0])


def test_several_models_in_a_directory(tmp_path: Path) -> None:
    """Where a directory has several models, the person has to choose; a projector of images is no model."""
    config = config_of("qwen2")
    for name in ("small", "large"):
        write_gguf(tmp_path / f"{name}.gguf", "qwen2", config, tensors_of(config))
    with pytest.raises(FormatError, match=r"several models: large\.gguf, small\.gguf"):
        open_source(tmp_path)
    (tmp_path / "large.gguf").unlink()
    writer = gguf.GGUFWriter(tmp_path / "mmproj.gguf", "clip")
    writer.add_type("mmproj")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with open_source(tmp_path) as source:
        assert source.config_file.name == "small.gguf"


@pytest.mark.parametrize(
    "scaling",
    [
        LLAMA3,
        LLAMA3 | {"factor": 8.0},
        LLAMA3 | {"factor": 4.0, "low_freq_factor": 2.0, "high_freq_factor": 16.0},
    ],
)
def test_llama3_scaling(scaling: dict[str, Any], tmp_path: Path) -> None:
    """Llama 3's rope scaling is told from the divisors that it gives."""
    config = config_of("llama", rope_scaling=scaling, head_dim=64, num_hidden_layers=1)
    with open_source(write_gguf(tmp_path / "m.gguf", "llama", config, tensors_of(config))) as source:
        found = source.config["rope_scaling"]
    assert found == scaling
    assert np.allclose(rope_divisors(config), rope_divisors({**config, "rope_scaling": found}))


def test_scaling_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Divisors of no known scaling are refused."""
    monkeypatch.setattr(
        "tests.builder.import_.ggml.rope_divisors", lambda _: np.linspace(3, 9, 16).astype(np.float32)
    )
    config = config_of("llama")
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight is no scaling"):
        open_source(write_gguf(tmp_path / "m.gguf", "llama", config, tensors_of(config)))


@pytest.mark.parametrize(
    ("family", "tensor", "message"),
    [
        ("bloom", {}, "general.architecture 'bloom' is not supported"),
        ("llama", {"blk.0.ffn_gate_exps.weight": (2, 32, 64)}, r"ffn_gate_exps\.weight has no place"),
        ("llama", {"token_embd.weight": None}, r"tensor token_embd\.weight is missing"),
    ],
)
def test_refused_by_name(family: str, tensor: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Architectures and tensors that would come out wrong are named."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", family)
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_head_count(2)
    writer.add_context_length(512)
    writer.add_feed_forward_length(96)
    for name, shape in ({"token_embd.weight": (8, 64)} | tensor).items():
        if shape:
            writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BuildError, match=message):
        open_source(tmp_path / "m.gguf")


def test_not_a_number(tmp_path: Path) -> None:
    """A scale that is not finite is named with file and tensor, and nothing is left behind."""
    config = config_of("llama")
    tensors = tensors_of(config)
    file = write_gguf(tmp_path / "m.gguf", "llama", config, tensors, TYPES.Q4_0)
    with open_source(file) as source:
        at = source.tensors["model.layers.0.mlp.down_proj.weight"].start
    data = bytearray(file.read_bytes())
    data[at : at + 2] = b"\x00\x7c"  # infinity
    file.write_bytes(data)
    with pytest.raises(FormatError, match=r"m\.gguf: model\.layers\.0\.mlp\.down_proj\.weight has NaN"):
        convert(file, tmp_path / "out", "q4f16_1")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
