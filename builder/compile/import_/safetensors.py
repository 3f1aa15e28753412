"""Read Hugging Face safetensors checkpoints block by block.

Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header, data).
The `safetensors` package maps whole files and knows no bfloat16 in numpy; mapped pages count as resident
memory, so a 2.5 GB checkpoint would show as 2.5 GB. This reader takes only the rows it is asked for.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.compile.mlc import read_json, widen_bfloat16
from builder.errors import FormatError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # the format's own limit
FLOATS: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
AGAIN = "Download or copy the checkpoint again."


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies: file, safetensors dtype, shape, first byte inside the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(slots=True)
class Checkpoint:
    """An open checkpoint: one file, or several with an index. Use as a context manager.

    Attributes:
        directory: where it lies.
        tensors: by name, in the order MLC-LLM reads them (index order, or sorted for a single file).
    """

    directory: Path
    tensors: dict[str, Tensor]
    _files: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Read and check the headers of every file of the checkpoint in `directory`.

        Raises:
            FormatError: a file is missing, truncated or contradicts itself; names it.
        """
        index = directory / INDEX
        if not index.is_file():
            file = directory / SINGLE
            if not file.is_file():
                raise FormatError(
                    f"{file} is missing", hint="Hob converts safetensors checkpoints; save the model as one."
                )
            return cls(directory, dict(sorted(read_header(file).items())))
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise FormatError(f"{index}: weight_map is missing", hint=AGAIN)
        headers: dict[str, dict[str, Tensor]] = {}
        # Grouped by file in order of first mention, as MLC-LLM does for locality.
        grouped: dict[str, list[str]] = {}
        for name, file_name in weight_map.items():
            if not isinstance(file_name, str) or Path(file_name).name != file_name:
                raise FormatError(f"{index}: {name}: {file_name!r} is not a plain file name", hint=AGAIN)
            if file_name not in headers:
                headers[file_name] = read_header(directory / file_name)
            if name not in headers[file_name]:
                raise FormatError(f"{directory / file_name} has no tensor {name}", hint=AGAIN)
            grouped.setdefault(file_name, []).append(name)
        return cls(directory, {name: headers[f][name] for f, names in grouped.items() for name in names})

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return rows [start, stop) of a tensor as float32, exactly; a vector counts as one row.

        Raises:
            FormatError: the dtype is not F32, F16 or BF16, or the file ends early.
        """
        tensor = self.tensors[name]
        if tensor.dtype not in FLOATS:
            raise FormatError(
                f"{tensor.file}: {name}: dtype {tensor.dtype} is not F32, F16 or BF16",
                hint="Convert the original, unquantised checkpoint.",
            )
        stored = np.dtype(FLOATS[tensor.dtype])
        shape = tensor.shape if len(tensor.shape) > 1 else (1, *tensor.shape)
        row_bytes = math.prod(shape[1:]) * stored.itemsize
        if tensor.file not in self._files:
            self._files[tensor.file] = os.open(tensor.file, os.O_RDONLY | os.O_CLOEXEC)
        wanted = (stop - start) * row_bytes
        data = os.pread(self._files[tensor.file], wanted, tensor.start + start * row_bytes)
        if len(data) != wanted:
            raise FormatError(f"{tensor.file} ends inside tensor {name}", hint=AGAIN)
        values = np.frombuffer(data, stored).reshape(stop - start, *shape[1:])
        if tensor.dtype == "BF16":
            return widen_bfloat16(values)
        return values.astype(np.float32, copy=False)


def read_header(file: Path) -> dict[str, Tensor]:
    """Read the header of one safetensors file and check that its tensors lie inside the file.

    Raises:
        FormatError: missing, truncated, or not a safetensors file; names file and tensor.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise FormatError(f"{file} is truncated or not a safetensors file", hint=AGAIN)
            header = json.loads(stream.read(length))
    except OSError as error:
        raise FormatError(f"{file} cannot be read: {error.strerror}", hint=AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: the header is not valid JSON: {error}", hint=AGAIN) from error
    if not isinstance(header, dict):
        raise FormatError(f"{file}: the header is not a JSON object", hint=AGAIN)
    header.pop("__metadata__", None)
    data = 8 + length
    return {name: _tensor(file, name, record, data, size) for name, record in header.items()}


def _tensor(file: Path, name: str, record: Any, data: int, size: int) -> Tensor:
    """Check one header record against the file's size; `data` is where the data section begins."""
    match record:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if all(
            isinstance(dim, int) and dim >= 0 for dim in shape
        ):
            pass
        case _:
            raise FormatError(f"{file}: {name}: the header record is malformed", hint=AGAIN)
    if not 0 <= begin <= end <= size - data:
        raise FormatError(f"{file}: {name} lies outside the file of {size} bytes", hint=AGAIN)
    if dtype in FLOATS and end - begin != math.prod(shape) * np.dtype(FLOATS[dtype]).itemsize:
        raise FormatError(f"{file}: {name}: {end - begin} bytes do not fit shape {shape}", hint=AGAIN)
    return Tensor(file, dtype, tuple(shape), data + begin)
