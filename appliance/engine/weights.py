"""Weights on their way from a model directory into memory, and whether memory has room for them.

A library says in its metadata which tensors it computes from (`params`), and by which of its own kernels they
are packed (`packing`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.engine.device import Device
from appliance.engine.runtime import empty
from appliance.errors import ModelLoadError
from builder.compile.bfloat16 import widen_bfloat16
from builder.compile.mlc import MLCDirectory, TensorEntry

Progress = Callable[[float], None]

PAGE = 16  # tokens per page of the KV cache; the attention kernels are made for it
# What the runtime, its threads and the allocator take on top of the tensors.
RESERVE = 32 * 2**20
# Elements that are converted or checked at a time while weights are read.
BLOCK = 2**20
# Bits of the exponent, in the unsigned integer of the same size, by the dtype in the file.
EXPONENTS: Mapping[str, np.unsignedinteger[Any]] = {
    "float16": np.uint16(0x7C00),
    "bfloat16": np.uint16(0x7F80),
    "float32": np.uint32(0x7F800000),
}


@dataclass(frozen=True)
class Footprint:
    """Bytes a model needs beyond those of the process that loads it.

    Attributes:
        weights: packed weights.
        loading: the most that packed weights and the tensor being packed take together.
        scratch: intermediate results of the largest forward pass.
        kv_per_token: KV cache per token of context.
    """

    weights: int
    loading: int
    scratch: int
    kv_per_token: int

    def total(self, tokens: int) -> int:
        """With `tokens` of KV cache."""
        running = self.weights + self.scratch + self.kv_per_token * tokens
        return max(self.loading, running) + RESERVE


def pages(tokens: int) -> int:
    """KV cache pages that hold `tokens` tokens of one sequence."""
    return -(-tokens // PAGE)


def footprint(model: MLCDirectory, metadata: Mapping[str, Any]) -> Footprint:
    """What a model needs, from its library's metadata."""
    cache = metadata["kv_cache"]
    size = np.dtype(metadata["activation_dtype"]).itemsize
    per_token = 2 * cache["num_hidden_layers"] * cache["num_key_value_heads"] * cache["head_dim"] * size
    weights = loading = 0
    for step in metadata["packing"]:
        weights += sum(
            math.prod(output["shape"]) * np.dtype(output["dtype"]).itemsize for output in step["outputs"]
        )
        unpacked = sum(model.tensors[name].nbytes for name in step["sources"]) if step["function"] else 0
        loading = max(loading, weights + unpacked)
    return Footprint(weights, loading, max(metadata["memory_usage"].values()), per_token)


def fit(name: str, need: Footprint, *, available: int, context: int, max_sequences: int) -> int:
    """How many sequences of `context` tokens fit `available` bytes with the weights: at most `max_sequences`.

    Raises:
        ModelLoadError: not even one does; the message has the numbers.
    """
    for sequences in range(max_sequences, 0, -1):
        if need.total(sequences * pages(context) * PAGE) <= available:
            return sequences
    raise ModelLoadError(
        f"{name} needs {need.total(pages(context) * PAGE) / 2**20:.0f} MiB "
        f"({need.weights / 2**20:.0f} of them weights, for {context} tokens of context), "
        f"{available / 2**20:.0f} MiB are available",
        hint="Choose a smaller model, or lower the setting `context`.",
    )


def check_parameters(model: MLCDirectory, metadata: Mapping[str, Any]) -> None:
    """Refuse a directory whose tensors are not the ones the library was compiled for.

    Raises:
        ModelLoadError: names the first tensor that is missing or different.
    """
    for wanted in metadata["params"]:
        entry = model.tensors.get(wanted["name"])
        found = "missing" if entry is None else f"{entry.dtype} {list(entry.shape)}"
        if found != (expected := f"{wanted['dtype']} {wanted['shape']}"):
            raise ModelLoadError(
                f"{model.path.name}: tensor {wanted['name']} is {found}, the library wants {expected}",
                hint="Compile the model again: `hob model compile`.",
            )


def pack(
    model: MLCDirectory,
    module: Any,
    steps: Sequence[Mapping[str, Any]],
    progress: Progress,
    device: Device | None = None,
) -> Iterator[Any]:
    """Yield the library's `packed_params` in order, made by its own kernels from the directory's tensors.

    Args:
        device: where they go; None for the processor. Only there are kernels called: a GPU's library takes
            the tensors as they are.
    """
    done, total = 0, sum(model.tensors[name].nbytes for step in steps for name in step["sources"])
    for step in steps:
        if device is not None and device.kind != "cpu":
            yield from upload(model, step, device)
            done += sum(model.tensors[name].nbytes for name in step["sources"])
            progress(done / total)
            continue
        outputs = [empty(output["shape"], output["dtype"]) for output in step["outputs"]]
        entries = [model.tensors[name] for name in step["sources"]]
        if step["function"] is None:
            for entry, output in zip(entries, outputs, strict=True):
                read_into(model, entry, np.from_dlpack(output))
        else:
            # Kernels get bfloat16 as its bits.
            sources = [empty(e.shape, "uint16" if e.dtype == "bfloat16" else e.dtype) for e in entries]
            for entry, source in zip(entries, sources, strict=True):
                read_into(model, entry, np.from_dlpack(source))
            module.get_function(step["function"], query_imports=True)(*sources, *outputs)
        yield from outputs
        done += sum(entry.nbytes for entry in entries)
        progress(done / total)


def upload(model: MLCDirectory, step: Mapping[str, Any], device: Device) -> Iterator[Any]:
    """Yield the tensors of a step without kernel, in a GPU's memory."""
    assert step["function"] is None, "the libraries of GPUs pack nothing"
    for name, output in zip(step["sources"], step["outputs"], strict=True):
        array = np.empty(output["shape"], output["dtype"])
        read_into(model, model.tensors[name], array)
        yield device.tensor(array)


def read_into(model: MLCDirectory, entry: TensorEntry, out: npt.NDArray[Any]) -> None:
    """Fill `out` with a tensor of the directory, converted to its dtype.

    Reads instead of mapping: mapped pages would count as memory of the process beside their packed copy.

    Raises:
        ModelLoadError: the file ends early, or a value is NaN or infinite; names the tensor.
    """
    stored = np.dtype("uint16" if entry.stored_dtype == "bfloat16" else entry.stored_dtype)
    target = out.reshape(-1)
    # Straight into place, or block by block through a buffer.
    size = target.size if stored == out.dtype else min(target.size, BLOCK)
    buffer = target if stored == out.dtype else np.empty(size, stored)
    with (model.path / entry.shard).open("rb", buffering=0) as file:
        file.seek(entry.offset)
        for start in range(0, target.size, size):
            part = buffer[: target.size - start]
            view = part.view(np.uint8).data
            while view:
                if not (count := file.readinto(view)):
                    raise ModelLoadError(f"{model.path / entry.shard} is shorter than its description")
                view = view[count:]
            _check_finite(model, entry, part)
            if buffer is not target:
                wide = widen_bfloat16(part) if entry.stored_dtype == "bfloat16" else part
                target[start : start + part.size] = wide


def _check_finite(model: MLCDirectory, entry: TensorEntry, values: npt.NDArray[Any]) -> None:
    """Refuse NaN and infinity: one of them is enough for a model to say nothing but nonsense."""
    if entry.stored_dtype not in EXPONENTS:
        return
    # All exponent bits set; on bits, because numpy is slow in float16.
    exponent = EXPONENTS[entry.stored_dtype]
    bits = values.view(exponent.dtype)
    for start in range(0, bits.size, BLOCK):
        if ((bits[start : start + BLOCK] & exponent) == exponent).any():
            raise ModelLoadError(
                f"{model.path / entry.shard}: {entry.name} has NaN or infinity",
                hint="The model was damaged or made from a failed training run. Copy or convert it again.",
            )
