"""Write ONNX decoders with the `onnx` package, named as exporters name them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from builder.compile.bfloat16 import narrow_bfloat16
from tests.builder.checkpoints import Tensors

DTYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}


def initialiser(name: str, values: npt.NDArray[np.float32], dtype: str) -> TensorProto:
    """A tensor with raw data."""
    if dtype == "BF16":
        raw = narrow_bfloat16(np.ascontiguousarray(values)).astype("<u2").tobytes()
        return helper.make_tensor(name, DTYPES[dtype], values.shape, raw, raw=True)
    return numpy_helper.from_array(values.astype({"F32": np.float32, "F16": np.float16}[dtype]), name)


def graph_of(tensors: Tensors, dtype: str, *, gemm: bool = False) -> onnx.GraphProto:
    """A graph with a node for each linear layer, whose weight is transposed and anonymous."""
    nodes, initialisers = [], []
    for number, (name, values) in enumerate(tensors.items()):
        module = "/" + name.rpartition(".")[0].replace(".layers.", ".layers@").replace(".", "/").replace(
            "@", "."
        )
        linear = values.ndim == 2 and "embed_tokens" not in name
        if not linear:
            initialisers.append(initialiser(name, values, dtype))
        elif gemm:
            initialisers.append(initialiser(name, values, dtype))
            nodes.append(helper.make_node("Gemm", ["x", name], ["y"], name=f"{module}/Gemm", transB=1))
        else:
            anonymous = f"onnx::MatMul_{number + 1000}"
            initialisers.append(initialiser(anonymous, values.T.copy(), dtype))
            nodes.append(helper.make_node("MatMul", ["x", anonymous], ["y"], name=f"{module}/MatMul"))
    initialisers.append(numpy_helper.from_array(np.array([1, -1], np.int64), "onnx::Reshape_7"))
    initialisers.append(numpy_helper.from_array(np.array(8.0, np.float32), "/model/Constant_output_0"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k"])
    return helper.make_graph(nodes, "decoder", [x], [], initialisers)


def write_onnx(
    file: Path,
    tensors: Tensors,
    dtype: str = "F32",
    *,
    gemm: bool = False,
    external: bool = False,
    merged: bool = False,
    change: Callable[[onnx.ModelProto], None] = lambda model: None,
) -> Path:
    """A model file; with `external` its weights lie in a file beside it, with `merged` inside a branch."""
    graph = graph_of(tensors, dtype, gemm=gemm)
    if merged:
        empty = helper.make_graph([], "first", [], [])
        graph = helper.make_graph(
            [helper.make_node("If", ["cond"], ["y"], name="if", then_branch=graph, else_branch=empty)],
            "merged",
            [],
            [],
        )
    model = helper.make_model(graph, producer_name="tests")
    change(model)
    if external:
        onnx.save_model(
            model, file, save_as_external_data=True, location=f"{file.name}_data", size_threshold=64
        )
    else:
        onnx.save_model(model, file)
    return file
