"""Runs compiled model libraries with TVM's runtime alone: no compiler, and no `tvm` package, in the process.

The runtime keeps one thread pool per calling thread, so all calls on a model come from the thread that loaded
it. Tensors are allocated by the runtime, because the libraries' vector code needs 64-byte alignment.
"""

import ctypes
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from appliance.errors import ContextLengthError, InvalidRequestError, ModelLoadError
from builder.compile import check_library
from builder.compile.mlc import MLCDirectory, TensorEntry, widen_bfloat16
from builder.errors import BuildError

Floats = npt.NDArray[np.float32]
Progress = Callable[[float], None]

PAGE = 16  # tokens per page of the KV cache; the attention kernels are made for it
# What the runtime, its threads and the allocator take on top of the tensors.
RESERVE = 32 * 2**20
# Elements that are converted at a time while weights are read.
BLOCK = 2**20
# The pooled one keeps every size it has ever seen: with prompts of any length, memory would only grow.
NAIVE_ALLOCATOR = 1
CPU = 1  # DLPack's device type


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


class NativeModel:
    """A loaded model with its KV cache. Use it from the thread that loaded it.

    Attributes:
        vocab_size: rows of the logits; token ids are below it.
        context: most tokens a sequence can hold.
        max_sequences: most sequences that can exist at a time, each with a full context. Fewer than asked for
            where memory is short.
        prefill_chunk: most tokens of one forward pass; longer prompts are cut into chunks.
    """

    def __init__(
        self,
        executable: Any,
        metadata: Mapping[str, Any],
        weights: Sequence[Any],
        *,
        context: int,
        max_sequences: int,
    ) -> None:
        self.vocab_size = int(metadata["vocab_size"])
        self.prefill_chunk = int(metadata["prefill_chunk_size"])
        self.context = context
        self.max_sequences = max_sequences
        self._lengths: dict[int, int] = {}
        ffi = runtime()
        self._weights: Any = ffi.Array(list(weights))
        self._call: dict[str, Any] = {
            name: executable[name]
            for name in ("embed", "prefill", "prefill_to_last_hidden_states", "decode", "batch_decode")
        }
        for name in (
            "add_sequence",
            "remove_sequence",
            "fork_sequence",
            "popn",
            "begin_forward",
            "end_forward",
        ):
            self._call[name] = ffi.get_global_func(f"vm.builtin.kv_state_{name}")
        self._call["reshape"] = ffi.get_global_func("vm.builtin.reshape")
        capacity = pages(context) * max_sequences * PAGE
        self._kv: Any = executable["create_tir_paged_kv_cache"](
            *(ffi.Shape([size]) for size in (max_sequences, capacity, self.prefill_chunk, PAGE, 0))
        )

    @classmethod
    def load(
        cls,
        directory: Path,
        library: Path,
        *,
        context: int,
        max_sequences: int = 4,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> "NativeModel":
        """Load the model in `directory` with the `library` compiled for it.

        Weights stream through one tensor at a time: memory peaks at the packed weights and the largest
        tensor.

        Args:
            context: tokens to reserve for each sequence; at most what the model was made for is used.
            max_sequences: sequences that may exist together; fewer are reserved where memory is short.
            threads: of the kernels, for the whole process from the first load on; 0 means one per physical
                core.
            progress: called with the share of weight bytes done, 0 to 1.

        Raises:
            ModelLoadError: directory or library are damaged, do not belong together or to this CPU, or the
                model does not fit the available memory.
        """
        try:
            model = MLCDirectory.open(directory)
            check_library(library, model)
        except BuildError as error:
            raise ModelLoadError(str(error), hint=error.hint) from error
        ffi = runtime(threads)
        module = ffi.load_module(str(library), keep_module_alive=True)
        executable = module["vm_load_executable"]()
        executable["vm_initialization"](CPU, 0, NAIVE_ALLOCATOR)
        metadata = json.loads(str(executable["_metadata"]()))
        check_parameters(model, metadata)
        context = min(context, int(metadata["context_window_size"]))
        max_sequences = fit(
            model.path.name,
            footprint(model, metadata),
            available=psutil.virtual_memory().available,
            context=context,
            max_sequences=min(max_sequences, int(metadata["max_batch_size"])),
        )
        weights = list(pack(model, module, metadata["packing"], progress or (lambda _share: None)))
        release_free_memory()
        return cls(executable, metadata, weights, context=context, max_sequences=max_sequences)

    def add_sequence(self, seq: int) -> None:
        """Start an empty sequence named `seq`."""
        if seq in self._lengths:
            raise InvalidRequestError(f"sequence {seq} exists already")
        if len(self._lengths) >= self.max_sequences:
            raise InvalidRequestError(f"all {self.max_sequences} sequences are in use")
        self._call["add_sequence"](self._kv, seq)
        self._lengths[seq] = 0

    def remove_sequence(self, seq: int) -> None:
        """Forget a sequence and free its pages."""
        self._known(seq)
        self._call["remove_sequence"](self._kv, seq)
        del self._lengths[seq]

    def fork_sequence(self, parent: int, child: int, length: int | None = None) -> None:
        """Start `child` with the first `length` tokens of `parent` (default: all), sharing their pages."""
        self._known(parent)
        if child in self._lengths or len(self._lengths) >= self.max_sequences:
            raise InvalidRequestError(f"sequence {child} exists already or no sequence is free")
        length = self._lengths[parent] if length is None else length
        if not 0 < length <= self._lengths[parent]:
            raise InvalidRequestError(f"cannot fork {length} of {self._lengths[parent]} tokens")
        self._call["fork_sequence"](self._kv, parent, child, length)
        self._lengths[child] = length

    def truncate(self, seq: int, length: int) -> None:
        """Forget all tokens of `seq` after the first `length`."""
        self._known(seq)
        if not 0 <= length <= self._lengths[seq]:
            raise InvalidRequestError(f"cannot cut {self._lengths[seq]} tokens to {length}")
        if drop := self._lengths[seq] - length:
            self._call["popn"](self._kv, seq, drop)
            self._lengths[seq] = length

    def length(self, seq: int) -> int:
        """Tokens that sequence `seq` holds."""
        self._known(seq)
        return self._lengths[seq]

    def prefill(self, seq: int, ids: Sequence[int]) -> Floats:
        """Append `ids` to the sequence; return the logits float32 `[vocab_size]` after the last of them.

        Raises:
            InvalidRequestError: no such sequence, no ids, or an id outside the vocabulary.
            ContextLengthError: the sequence would outgrow `context`. Nothing was appended.
        """
        self._check([seq], ids, grow=len(ids))
        for start in range(0, len(ids), self.prefill_chunk):
            chunk = ids[start : start + self.prefill_chunk]
            # Only the last chunk's logits are wanted: the others skip the output matrix.
            final = start + len(chunk) == len(ids)
            name = "prefill" if final else "prefill_to_last_hidden_states"
            out = self._forward(name, [seq], [len(chunk)], chunk, (1, len(chunk)))
        return out.reshape(self.vocab_size)

    def decode(self, seqs: Sequence[int], ids: Sequence[int]) -> Floats:
        """Append one id to each of the sequences; return their logits float32 `[len(seqs), vocab_size]`.

        Raises:
            InvalidRequestError: an unknown or repeated sequence, or an id outside the vocabulary.
            ContextLengthError: a sequence would outgrow `context`. Nothing was appended.
        """
        if len(seqs) != len(ids) or len(set(seqs)) != len(seqs):
            raise InvalidRequestError(
                f"decode wants one id for each of several different sequences, got {seqs}"
            )
        self._check(seqs, ids, grow=1)
        name = "decode" if len(seqs) == 1 else "batch_decode"
        out = self._forward(name, seqs, [1] * len(seqs), ids, (len(seqs), 1))
        return out.reshape(len(seqs), self.vocab_size)

    def close(self) -> None:
        """Free weights and KV cache. The library's code stays mapped until the process ends."""
        self._lengths.clear()
        self._call.clear()
        self._kv = self._weights = None
        release_free_memory()

    def _forward(
        self,
        name: str,
        seqs: Sequence[int],
        lengths: Sequence[int],
        ids: Sequence[int],
        shape: tuple[int, int],
    ) -> Floats:
        call, shaped = self._call, runtime().Shape
        tokens = tensor_of(np.asarray(ids, np.int32))
        call["begin_forward"](self._kv, shaped(list(seqs)), shaped(list(lengths)))
        embedded = call["embed"](tokens, self._weights)
        embedded = call["reshape"](embedded, shaped([*shape, embedded.shape[-1]]))
        out = call[name](embedded, self._kv, self._weights)[0]
        call["end_forward"](self._kv)
        for seq, length in zip(seqs, lengths, strict=True):
            self._lengths[seq] += length
        # A copy: the runtime reuses the buffer at the next call.
        return np.array(np.from_dlpack(out))

    def _known(self, seq: int) -> None:
        if seq not in self._lengths:
            raise InvalidRequestError(f"there is no sequence {seq}")

    def _check(self, seqs: Sequence[int], ids: Sequence[int], grow: int) -> None:
        if not ids:
            raise InvalidRequestError("there are no token ids")
        for seq in seqs:
            self._known(seq)
            if self._lengths[seq] + grow > self.context:
                raise ContextLengthError(
                    f"{self._lengths[seq]} tokens and {grow} more do not fit "
                    f"the context of {self.context} tokens"
                )
        # The kernels do not check: a wrong id would read outside the embedding.
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise InvalidRequestError(f"token id {token} is outside the vocabulary of {self.vocab_size}")


def runtime(threads: int = 0) -> Any:
    """Load TVM's runtime libraries, once, and return the `tvm_ffi` module.

    `threads` counts at the first call only, because the thread pool reads it when it starts; 0 means one per
    physical core that this process may use. A TVM_NUM_THREADS from outside wins.
    """
    # TVM's own default halves the count on x86, where it takes every second core for a hyper-thread.
    os.environ.setdefault("TVM_NUM_THREADS", str(threads or cores()))
    return _runtime()


def cores() -> int:
    """Physical cores that this process may use; all logical ones if the system does not tell them apart."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


@cache
def _runtime() -> Any:
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError("TVM is not installed", hint="Run `pip install apache-tvm`.")
    import tvm_ffi  # loads its shared library; only a process that runs models pays for it

    folder = Path(next(iter(spec.submodule_search_locations))) / "lib"
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    for name in ("libtvm_runtime", "libtvm_runtime_extra"):
        ctypes.CDLL(str(folder / f"{name}{suffix}"), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def empty(shape: Sequence[int], dtype: str) -> Any:
    """An uninitialised tensor, aligned as the kernels need it."""
    ffi = _runtime()
    allocate = ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    return allocate(ffi.Shape(list(shape)), ffi.dtype(dtype), ffi.device("cpu", 0), None)


def tensor_of(array: npt.NDArray[Any]) -> Any:
    """A copy of `array` as a tensor."""
    tensor = empty(array.shape, str(array.dtype))
    np.from_dlpack(tensor)[...] = array
    return tensor


def pages(tokens: int) -> int:
    """KV cache pages that hold `tokens` tokens of one sequence."""
    return -(-tokens // PAGE)


def footprint(model: MLCDirectory, metadata: Mapping[str, Any]) -> Footprint:
    """What a model needs, from its library's metadata."""
    cache = metadata["kv_cache"]
    per_token = 2 * cache["num_hidden_layers"] * cache["num_key_value_heads"] * cache["head_dim"] * 4
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
    model: MLCDirectory, module: Any, steps: Sequence[Mapping[str, Any]], progress: Progress
) -> Iterator[Any]:
    """Yield the library's `packed_params` in order, made by its own kernels from the directory's tensors."""
    done, total = 0, sum(model.tensors[name].nbytes for step in steps for name in step["sources"])
    for step in steps:
        outputs = [empty(output["shape"], output["dtype"]) for output in step["outputs"]]
        entries = [model.tensors[name] for name in step["sources"]]
        if step["function"] is None:
            for entry, output in zip(entries, outputs, strict=True):
                read_into(model, entry, np.from_dlpack(output))
        else:
            sources = [empty(entry.shape, entry.dtype) for entry in entries]
            for entry, source in zip(entries, sources, strict=True):
                read_into(model, entry, np.from_dlpack(source))
            module.get_function(step["function"], query_imports=True)(*sources, *outputs)
        yield from outputs
        done += sum(entry.nbytes for entry in entries)
        progress(done / total)


def read_into(model: MLCDirectory, entry: TensorEntry, out: npt.NDArray[Any]) -> None:
    """Fill `out` with a tensor of the directory, converted to its dtype.

    Reads instead of mapping: mapped pages would count as memory of the process beside their packed copy.
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
            if buffer is not target:
                wide = widen_bfloat16(part) if entry.stored_dtype == "bfloat16" else part
                target[start : start + part.size] = wide


def release_free_memory() -> None:
    """Give freed heap memory back to the system where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
