"""Drives a compiled library's functions the way MLC-LLM's server drives its own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.engine import native, weights
from appliance.engine.runtime import runtime, tensor_of
from builder.compile.mlc import MLCDirectory
from tests.compiled import library


class Library:
    """A library with packed weights and a KV cache: `path`, or the one compiled with `kernels`."""

    def __init__(self, directory: Path, kernels: str = "exact", path: Path | None = None) -> None:
        self.ffi = runtime()
        model = MLCDirectory.open(directory)
        path = path or library(model.path, kernels)
        self.module = self.ffi.load_module(str(path), keep_module_alive=True)
        self.vm = self.module["vm_load_executable"]()
        self.vm["vm_initialization"](native.CPU, 0, native.NAIVE_ALLOCATOR)
        self.metadata = json.loads(str(self.vm["_metadata"]()))
        self.packed = self.ffi.Array(
            list(weights.pack(model, self.module, self.metadata["packing"], lambda _share: None))
        )
        sizes = (4, 1024, 256, weights.PAGE, 0)
        self.kv = self.vm["create_tir_paged_kv_cache"](*(self.ffi.Shape([size]) for size in sizes))

    def kernel(self, name: str) -> Any:
        """An exported kernel."""
        return self.module.get_function(name, query_imports=True)

    def begin(self, lengths: dict[int, int]) -> None:
        """Announce new tokens of sequences."""
        call = self.ffi.get_global_func
        shape = self.ffi.Shape
        call("vm.builtin.kv_state_begin_forward")(
            self.kv, shape(list(lengths)), shape(list(lengths.values()))
        )

    def add(self, *seqs: int) -> None:
        """Start empty sequences, after forgetting all others."""
        self.ffi.get_global_func("vm.builtin.kv_state_clear")(self.kv)
        for seq in seqs:
            self.ffi.get_global_func("vm.builtin.kv_state_add_sequence")(self.kv, seq)

    def fork(self, parent: int, child: int, length: int) -> None:
        """Start a sequence with the first tokens of another one, in the same pages."""
        self.ffi.get_global_func("vm.builtin.kv_state_fork_sequence")(self.kv, parent, child, length)

    def end(self) -> None:
        """The tokens announced are in."""
        self.ffi.get_global_func("vm.builtin.kv_state_end_forward")(self.kv)

    def embed(self, ids: list[int], *lead: int) -> Any:
        """Embeddings, with leading dimensions."""
        rows = self.vm["embed"](tensor(ids, np.int32), self.packed)
        return self.ffi.get_global_func("vm.builtin.reshape")(rows, self.ffi.Shape([*lead, rows.shape[1]]))

    def prefill(self, tokens: dict[int, list[int]]) -> npt.NDArray[Any]:
        """Append tokens to sequences in one pass; logits of each one's last, float32 [sequences, vocab]."""
        lengths = {seq: len(ids) for seq, ids in tokens.items()}
        self.begin(lengths)
        ids = [token for part in tokens.values() for token in part]
        ends = tensor(np.cumsum(list(lengths.values())) - 1, np.int32)
        logits = self.vm["batch_prefill"](self.embed(ids, 1, len(ids)), ends, self.kv, self.packed)[0]
        self.end()
        return array(logits).reshape(len(tokens), -1)

    def decode(self, tokens: dict[int, int]) -> npt.NDArray[Any]:
        """Append one token to each sequence; logits as `prefill`. A single sequence takes `decode`."""
        self.begin(dict.fromkeys(tokens, 1))
        name = "decode" if len(tokens) == 1 else "batch_decode"
        rows = self.embed(list(tokens.values()), len(tokens), 1)
        logits = self.vm[name](rows, self.kv, self.packed)[0]
        self.end()
        return array(logits).reshape(len(tokens), -1)


def tensor(values: Any, dtype: Any = np.float32) -> Any:
    """A runtime tensor."""
    return tensor_of(np.asarray(values, dtype))


def array(value: Any) -> npt.NDArray[Any]:
    """A numpy copy."""
    return np.array(np.from_dlpack(value))
