"""ONNX exports, written by the `onnx` package: weights found by name and by use."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builder.compile.convert import convert
from builder.compile.import_.source import open_source
from builder.errors import BuildError, FormatError, UnsupportedError
from tests.builder.import_.exports import write_onnx
from tests.builder.import_.models import config_of, tensors_of, write_model

CONFIG = config_of("llama", num_hidden_layers=1)
TENSORS = tensors_of(CONFIG)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint's directory without weights."""
    place = write_model(tmp_path / "hf", CONFIG, TENSORS)
    shutil.move(place / "model.safetensors", tmp_path / "model.safetensors")
    return place


@pytest.mark.parametrize("form", [{}, {"gemm": True}, {"external": True}, {"merged": True}], ids=str)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_tensors(dtype: str, form: dict[str, Any], directory: Path) -> None:
    """Named and anonymous, transposed and plain, inside and outside the file: all weights are found."""
    write_onnx(directory / "model.onnx", TENSORS, dtype, **form)
    with open_source(directory) as source:
        assert source.format == "ONNX"
        assert list(source.tensors) == sorted(TENSORS)
        for name, values in TENSORS.items():
            rows = len(values) if values.ndim > 1 else 1
            assert source.tensors[name].shape == values.shape
            assert np.array_equal(source.rows(name, 0, rows).reshape(values.shape), values), name
            if rows > 40:
                assert np.array_equal(source.rows(name, 7, 40), values[7:40])


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_same_directory_as_from_safetensors(dtype: str, directory: Path, tmp_path: Path) -> None:
    """The directory equals, byte for byte, the one from the same checkpoint as safetensors."""
    convert(write_model(tmp_path / "other", CONFIG, TENSORS, dtype), tmp_path / "safetensors", "q4f16_1")
    write_onnx(directory / "model.onnx", TENSORS, dtype)
    convert(directory / "model.onnx", tmp_path / "onnx", "q4f16_1")
    expected = {file.name: file.read_bytes() for file in (tmp_path / "safetensors").iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "onnx").iterdir()} == expected


def test_folder_of_exports(directory: Path) -> None:
    """On Hugging Face exports lie in a folder below the checkpoint's other files; the plain one is taken."""
    (directory / "onnx").mkdir()
    write_onnx(directory / "onnx" / "model.onnx", TENSORS)
    write_onnx(directory / "onnx" / "model_fp16.onnx", TENSORS, "F16")
    for path in (directory, directory / "onnx", directory / "onnx" / "model.onnx"):
        with open_source(path) as source:
            assert source.config == CONFIG
            assert source.metadata == directory
            assert source.tensors["model.norm.weight"].dtype == "F32"


def node(kind: str) -> Callable[[onnx.ModelProto], None]:
    """A change that adds a node."""
    return lambda model: model.graph.node.append(helper.make_node(kind, ["a", "b"], ["c"], name="/model/odd"))


def first(**fields: Any) -> Callable[[onnx.ModelProto], None]:
    """A change of the embedding."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if "embed_tokens" in t.name)
        for name, value in fields.items():
            if name == "external":
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                for key, text in value.items():
                    tensor.external_data.add(key=key, value=text)
            elif isinstance(value, list):
                del getattr(tensor, name)[:]
                getattr(tensor, name).extend(value)
            else:
                setattr(tensor, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (node("MatMulNBits"), "is quantised: node '/model/odd' is a MatMulNBits"),
        (node("DequantizeLinear"), "is a DequantizeLinear"),
        (first(raw_data=b"1234"), "'model.embed_tokens.weight': 4 bytes"),
        (first(raw_data=b""), "'model.embed_tokens.weight': 0 bytes"),
        (first(dims=[2**62, 2**62]), "do not fit shape"),
        (first(dims=[-4, 64]), "is absurd"),
        (first(dims=[1] * 20), "is absurd"),
        (first(data_type=TensorProto.INT8), "is missing"),
        (first(name="model.norm.weight"), "'model.norm.weight' is there twice"),
        (first(name="model.x\ny.weight"), "is not a tensor name"),
        (first(external={"location": "../model.safetensors"}), "lies in '../model.safetensors'"),
        (first(external={"location": "/etc/passwd"}), "lies in '/etc/passwd'"),
        (first(external={"location": "a\\b"}), "lies in"),
        (first(external={}), "lies in"),
        (first(external={"location": "not-there"}), "not-there cannot be read"),
        (first(external={"location": "config.json"}), "do not fit"),
        (first(external={"location": "config.json", "offset": "-1"}), "no place in its file"),
        (first(external={"location": "config.json", "offset": "9" * 30}), "no place in its file"),
        (first(external={"location": "config.json", "length": "4"}), "do not fit"),
        (lambda model: model.ClearField("graph"), "it has 0 graphs"),
    ],
)
def test_refused(
    change: Callable[[onnx.ModelProto], None], message: str, directory: Path, tmp_path: Path
) -> None:
    """Quantised, contradictory and far-reaching models are refused by file and tensor; nothing is written."""
    write_onnx(directory / "model.onnx", TENSORS, change=change)
    with pytest.raises(BuildError, match=message):
        convert(directory, tmp_path / "out", "q4f16_1")
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "model.safetensors"}


def test_floats_that_are_not_raw(directory: Path) -> None:
    """Packed floats are read as raw data is."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "model.norm.weight")
        tensor.ClearField("raw_data")
        tensor.float_data.extend(TENSORS["model.norm.weight"].tolist())

    write_onnx(directory / "model.onnx", TENSORS, change=change)
    with open_source(directory) as source:
        assert np.array_equal(source.rows("model.norm.weight", 0, 1)[0], TENSORS["model.norm.weight"])


def test_equal_tensors_stored_once(directory: Path) -> None:
    """A tensor that goes by a second name is found under both."""

    def change(model: onnx.ModelProto) -> None:
        names = "model.norm.weight", "model.layers.0.input_layernorm.weight"
        kept = [tensor for tensor in model.graph.initializer if tensor.name != names[1]]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        model.graph.node.append(helper.make_node("Identity", [names[0]], [names[1]], name="Identity_0"))

    write_onnx(directory / "model.onnx", TENSORS, change=change)
    with open_source(directory) as source:
        assert list(source.tensors) == sorted(TENSORS)
        found = source.rows("model.layers.0.input_layernorm.weight", 0, 1)[0]
        assert np.array_equal(found, TENSORS["model.norm.weight"])


def test_nameless_weights(directory: Path) -> None:
    """A weight whose layer nothing tells is refused."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.name = "node_MatMul_7"

    write_onnx(directory / "model.onnx", TENSORS, change=change)
    with pytest.raises(UnsupportedError, match=r"neither 'onnx::MatMul_\d+' nor its node 'node_MatMul_7'"):
        open_source(directory)


def test_cut_anywhere(directory: Path) -> None:
    """A file that ends early is refused by name."""
    file = write_onnx(directory / "model.onnx", TENSORS)
    data = file.read_bytes()
    for cut in (*range(40), *range(40, len(data) - 1, len(data) // 50)):
        file.write_bytes(data[:cut])
        with pytest.raises(FormatError, match=r"model\.onnx"):
            open_source(file)


def test_graphs_without_end(directory: Path) -> None:
    """Graphs inside graphs are followed a few levels, as far as exporters go."""
    graph = helper.make_graph([], "inner", [], [])
    for _ in range(50):
        graph = helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)], "outer", [], []
        )
        if graph.ByteSize() > 2**20:
            break
    onnx.save_model(helper.make_model(graph), directory / "model.onnx")
    with pytest.raises(BuildError, match="graphs more than 4 deep"):
        open_source(directory)
