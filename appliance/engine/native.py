"""Runs compiled model libraries with TVM's runtime alone: there is no compiler and no `tvm` package."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.engine.device import TYPES, Device
from appliance.engine.runtime import release_free_memory, runtime
from appliance.engine.weights import PAGE, Progress, check_parameters, fit, footprint, pack, pages
from appliance.errors import ContextLengthError, InvalidRequestError, ModelLoadError
from builder.compile import check_library, parse_target
from builder.compile.mlc import MLCDirectory
from builder.errors import BuildError

Floats = npt.NDArray[np.float32]

# The pooled one keeps every size it has ever seen: with prompts of any length, memory would only grow.
NAIVE_ALLOCATOR = 1
CPU = TYPES["cpu"]


class NativeModel:
    """A loaded model with its KV cache.

    The runtime keeps a pool of threads for every thread that calls it: use a model from the thread that
    loaded it.

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
        device: Device,
        context: int,
        max_sequences: int,
    ) -> None:
        self.vocab_size = int(metadata["vocab_size"])
        self.prefill_chunk = int(metadata["prefill_chunk_size"])
        self.context = context
        self.max_sequences = max_sequences
        self._device = device
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
                model does not fit the available memory. `DeviceError` where the GPU is missing.
        """
        try:
            model = MLCDirectory.open(directory)
            manifest = check_library(library, model)
            kind = parse_target(manifest["target"]).kind
        except BuildError as error:
            raise ModelLoadError(str(error), hint=error.hint) from error
        ffi = runtime(threads)
        device = Device.open(kind)
        module = ffi.load_module(str(library), keep_module_alive=True)
        executable = module["vm_load_executable"]()
        # The machine's own functions run on the processor, which comes last.
        devices = [device.type] if kind == "cpu" else [device.type, CPU]
        executable["vm_initialization"](*(part for type in devices for part in (type, 0, NAIVE_ALLOCATOR)))
        metadata = json.loads(str(executable["_metadata"]()))
        check_parameters(model, metadata)
        context = min(context, int(metadata["context_window_size"]))
        max_sequences = fit(
            model.path.name,
            footprint(model, metadata),
            available=device.available(),
            context=context,
            max_sequences=min(max_sequences, int(metadata["max_batch_size"])),
        )
        weights = list(pack(model, module, metadata["packing"], progress or (lambda _share: None), device))
        release_free_memory()
        return cls(executable, metadata, weights, device=device, context=context, max_sequences=max_sequences)

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
        tokens = self._device.tensor(np.asarray(ids, np.int32))
        call["begin_forward"](self._kv, shaped(list(seqs)), shaped(list(lengths)))
        embedded = call["embed"](tokens, self._weights)
        embedded = call["reshape"](embedded, shaped([*shape, embedded.shape[-1]]))
        out = call[name](embedded, self._kv, self._weights)[0]
        call["end_forward"](self._kv)
        for seq, length in zip(seqs, lengths, strict=True):
            self._lengths[seq] += length
        return self._device.array(out)  # a copy: the runtime reuses the buffer at the next call

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
