"""Find the weights in the ONNX export of a decoder.

Format: onnx.proto of https://github.com/onnx/onnx. Exporters keep the names of parameters that they store as
they are, and fold the transposition of a linear layer's weight into an anonymous one, `onnx::MatMul_123`: its
name follows from the node that multiplies with it, `/model/layers.0/mlp/up_proj/MatMul`.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from builder.compile.import_.checkpoint import AGAIN, FLOATS, MAX_DIMENSIONS, Files, Tensor, check_names
from builder.compile.import_.protobuf import BYTES, VARINT, Field, Message
from builder.errors import FormatError, UnsupportedError

MAX_DEPTH = 4  # of graphs in attributes of nodes; merged decoders have one below the main graph
# ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto: the numbers of the fields that are read.
GRAPH = 7
NODE, INITIALIZER, SPARSE_INITIALIZER = 1, 5, 15
INPUT, OUTPUT, NODE_NAME, OP_TYPE, ATTRIBUTE = 1, 2, 3, 4, 5
ATTRIBUTE_NAME, ATTRIBUTE_INT, ATTRIBUTE_GRAPH = 1, 3, 6
DIMS, DATA_TYPE, SEGMENT, FLOAT_DATA = 1, 2, 3, 4
TENSOR_NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 8, 9, 13, 14
# TensorProto.DataType; the others hold no float weights.
TYPES = {1: "F32", 10: "F16", 16: "BF16"}
QUANTISED = re.compile(
    r"MatMulNBits|MatMulInteger|DynamicQuantize\w+|(Deq|Q)uantizeLinear|QLinear\w+|\w+BlockQuantized"
)
PARAMETER = re.compile(r"(model|lm_head|transformer)\b[\w.]*\.(weight|bias)")


@dataclass(slots=True)
class _Node:
    """A use of tensors."""

    kind: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    integers: dict[str, int] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The layer a node belongs to, as PyTorch calls it."""
        return self.name.strip("/").rpartition("/")[0].replace("/", ".")


def looks_like_onnx(head: bytes) -> bool:
    """Whether a file begins as ONNX models do: with the format's version and another field of the model."""
    return (
        len(head) > 3
        and head[0] == 0x08
        and 0 < head[1] < 64
        and head[2] in (0x12, 0x1A, 0x2A, 0x32, 0x3A, 0x42)
    )


def read_onnx(files: Files, file: Path) -> dict[str, Tensor]:
    """Return the weights of a model by Hugging Face's names.

    Raises:
        FormatError: damaged or contradictory; names file and tensor.
        UnsupportedError: quantised, or stored in a way that is not read.
    """
    message = Message(files, file)
    graphs = [entry for entry in message.fields(0, message.size) if entry.number == GRAPH]
    if len(graphs) != 1 or graphs[0].wire != BYTES:
        raise FormatError(f"{file} is not an ONNX model: it has {len(graphs)} graphs", hint=AGAIN)
    initialisers: dict[str, Tensor] = {}
    nodes: list[_Node] = []
    _read_graph(files, message, graphs[0], initialisers, nodes, MAX_DEPTH)
    for node in nodes:
        if QUANTISED.fullmatch(node.kind):
            raise UnsupportedError(
                f"{file} is quantised: node {node.name[:80]!r} is a {node.kind[:40]}",
                hint="Take the export in float32 or float16.",
            )
    tensors: dict[str, Tensor] = {}
    for name, tensor in _named(file, initialisers, nodes):
        if tensors.setdefault(name, tensor) != tensor:
            raise FormatError(f"{file}: {name} is there twice", hint=AGAIN)
    if not tensors:
        raise FormatError(f"{file} has no weights of a decoder", hint="Export the model with its parameters.")
    check_names(file, tensors)
    return tensors


def _named(file: Path, initialisers: dict[str, Tensor], nodes: list[_Node]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights by Hugging Face's names, linear layers' as outputs by inputs."""
    # Exporters store equal tensors once, and give them their other names with Identity.
    same = [node for node in nodes if node.kind == "Identity" and node.inputs and node.outputs]
    known = initialisers | {
        node.outputs[0]: initialisers[node.inputs[0]] for node in same if node.inputs[0] in initialisers
    }
    multiplied: set[str] = set()
    for node in nodes:
        if node.kind not in ("MatMul", "Gemm") or len(node.inputs) < 2:
            continue
        weight = known.get(node.inputs[1])
        if weight is not None and len(weight.shape) == 2:
            multiplied.add(node.inputs[1])
            turned = weight if node.integers.get("transB") else _transposed(weight)
            yield _name(file, node.inputs[1], node, "weight"), turned
        if node.kind == "Gemm" and len(node.inputs) > 2 and node.inputs[2] in known:
            multiplied.add(node.inputs[2])
            yield _name(file, node.inputs[2], node, "bias"), known[node.inputs[2]]
    for name, tensor in known.items():
        if name not in multiplied and PARAMETER.fullmatch(name):
            yield name, tensor


def _name(file: Path, own: str, node: _Node, kind: str) -> str:
    """What a layer's weight or bias is called: as it is, or else after the node that uses it."""
    for name in (own, f"{node.module}.{kind}"):
        if PARAMETER.fullmatch(name):
            return name
    raise UnsupportedError(
        f"{file}: neither {own[:80]!r} nor its node {node.name[:80]!r} has the name of a layer",
        hint="Export the model with optimum, or with torch.onnx.export(…, dynamo=False).",
    )


def _transposed(tensor: Tensor) -> Tensor:
    """A matrix [K, N] as [N, K]."""
    inputs, outputs = tensor.shape
    return Tensor(tensor.file, tensor.dtype, (outputs, inputs), tensor.start, tensor.nbytes, (1, outputs))


def _read_graph(
    files: Files,
    message: Message,
    graph: Field,
    initialisers: dict[str, Tensor],
    nodes: list[_Node],
    depth: int,
) -> None:
    """Collect a graph's initialisers and nodes, and those of the graphs inside it."""
    if depth == 0:
        raise UnsupportedError(f"{message.file} has graphs more than {MAX_DEPTH} deep")
    for entry in message.fields(graph.start, graph.end):
        if entry.number == SPARSE_INITIALIZER:
            raise UnsupportedError(f"{message.file} has sparse weights", hint="Take a dense export.")
        if entry.wire != BYTES:
            continue
        if entry.number == INITIALIZER:
            name, tensor = _read_tensor(files, message, entry)
            if tensor is None:
                continue
            if name in initialisers:
                raise FormatError(f"{message.file}: initialiser {name!r} is there twice", hint=AGAIN)
            initialisers[name] = tensor
        elif entry.number == NODE:
            node = _Node()
            for part in message.fields(entry.start, entry.end):
                if part.number == INPUT:
                    node.inputs.append(message.text(part))
                elif part.number == OUTPUT:
                    node.outputs.append(message.text(part))
                elif part.number == NODE_NAME:
                    node.name = message.text(part)
                elif part.number == OP_TYPE:
                    node.kind = message.text(part)
                elif part.number == ATTRIBUTE and part.wire == BYTES:
                    _read_attribute(files, message, part, node, initialisers, nodes, depth)
            nodes.append(node)


def _read_attribute(
    files: Files,
    message: Message,
    attribute: Field,
    node: _Node,
    initialisers: dict[str, Tensor],
    nodes: list[_Node],
    depth: int,
) -> None:
    """Take an integer for the node, and what a graph holds."""
    name = ""
    for part in message.fields(attribute.start, attribute.end):
        if part.number == ATTRIBUTE_NAME:
            name = message.text(part)
        elif part.number == ATTRIBUTE_INT and part.wire == VARINT:
            node.integers[name] = part.value
        elif part.number == ATTRIBUTE_GRAPH and part.wire == BYTES:
            _read_graph(files, message, part, initialisers, nodes, depth - 1)


def _read_tensor(files: Files, message: Message, entry: Field) -> tuple[str, Tensor | None]:
    """Name and place of an initialiser; None where it holds no floats, as shapes and indices do not."""
    name, dims, data_type, data, external, outside = "", [], 0, None, {}, False
    for part in message.fields(entry.start, entry.end):
        if part.number == DIMS:
            dims += message.integers(part)
        elif part.number == DATA_TYPE:
            data_type = part.value
        elif part.number == TENSOR_NAME:
            name = message.text(part)
        elif part.number in (RAW_DATA, FLOAT_DATA) and part.wire == BYTES and data is None:
            data = part
        elif part.number in (SEGMENT, RAW_DATA, FLOAT_DATA):
            raise UnsupportedError(
                f"{message.file}: {name[:80]!r} is stored in pieces", hint="Save the model again."
            )
        elif part.number == EXTERNAL_DATA and part.wire == BYTES:
            key, value = _read_pair(message, part)
            external[key] = value
        elif part.number == DATA_LOCATION:
            outside = part.value == 1
    if data_type not in TYPES:
        return name, None
    dtype, shape = TYPES[data_type], tuple(dims)
    nbytes = math.prod(shape) * np.dtype(FLOATS[dtype]).itemsize
    if len(shape) > MAX_DIMENSIONS or any(dim >= 2**63 for dim in shape):
        raise FormatError(f"{message.file}: {name!r}: shape {shape[:MAX_DIMENSIONS]} is absurd", hint=AGAIN)
    check_names(message.file, [name])
    if outside:
        file, start, length, limit = _external(files, message, name, external, nbytes)
    elif data is not None:
        file, start, length, limit = message.file, data.start, data.end - data.start, data.end
    elif nbytes == 0:
        file, start, length, limit = message.file, entry.start, 0, entry.end
    else:
        raise UnsupportedError(
            f"{message.file}: {name!r} is not stored as raw data",
            hint="Save the model again with the onnx package.",
        )
    if length != nbytes or start + length > limit:
        raise FormatError(
            f"{file}: {name!r}: {length} bytes at {start} do not fit shape {list(shape)} or the file",
            hint=AGAIN,
        )
    return name, Tensor(file, dtype, shape, start, nbytes)


def _read_pair(message: Message, pair: Field) -> tuple[str, str]:
    """A StringStringEntryProto."""
    parts = {
        part.number: message.text(part) for part in message.fields(pair.start, pair.end) if part.wire == BYTES
    }
    return parts.get(1, ""), parts.get(2, "")


def _external(
    files: Files, message: Message, name: str, external: dict[str, str], nbytes: int
) -> tuple[Path, int, int, int]:
    """File, first byte, bytes, and size of the file of weights that lie outside the model's."""
    location = PurePosixPath(external.get("location", ""))
    inside = not location.is_absolute() and ".." not in location.parts and location.parts
    if not inside or "\\" in str(location) or not str(location).isprintable():
        raise FormatError(f"{message.file}: {name!r} lies in {str(location)[:80]!r}", hint=AGAIN)
    numbers = {key: external.get(key, default) for key, default in (("offset", "0"), ("length", str(nbytes)))}
    if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers.values()):
        raise FormatError(f"{message.file}: {name!r} has no place in its file", hint=AGAIN)
    file = message.file.parent / location
    return file, int(numbers["offset"]), int(numbers["length"]), files.size(file)
