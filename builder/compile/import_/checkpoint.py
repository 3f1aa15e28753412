"""A checkpoint of any format, as the converter reads it: configuration, tokenizer files, tensors by name.

Headers are read once; afterwards a checkpoint gives only the rows it is asked for, by `pread`. Mapped pages
would count as resident memory: a 2.5 GB checkpoint would show as 2.5 GB.
"""

import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from builder.compile.bfloat16 import widen_bfloat16
from builder.errors import FormatError

FLOATS: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
MAX_DIMENSIONS = 8
AGAIN = "Download or copy the checkpoint again."


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a file's header describes it.

    Attributes:
        file: where its bytes are.
        dtype: a key of `FLOATS`, or a type that is not float in the words of the format.
        shape: Hugging Face's, outputs first; C order unless `strides` says otherwise.
        start: first byte inside the file.
        nbytes: bytes in the file from there on.
        strides: elements from one index to the next in each dimension; None for C order.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    strides: tuple[int, ...] | None = None


class Files:
    """The files of a checkpoint, opened once: those whose headers were checked are those that are read."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def size(self, file: Path) -> int:
        """Bytes of `file`, which is opened.

        Raises:
            FormatError: missing, unreadable, or not a regular file.
        """
        try:
            if file not in self._descriptors:
                # Non-blocking, so that a named pipe does not wait for a writer for ever.
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
                self._descriptors[file] = os.open(file, flags)
            status = os.fstat(self._descriptors[file])
        except OSError as error:
            raise FormatError(f"{file} cannot be read: {error.strerror}", hint=AGAIN) from error
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{file} is not a file", hint=AGAIN)
        return status.st_size

    def read(self, file: Path, start: int, count: int, what: str) -> bytes:
        """Return `count` bytes from `start`; `what` they belong to is named when the file ends before.

        Raises:
            FormatError: the file ends early or cannot be read.
        """
        if file not in self._descriptors:
            self.size(file)
        try:
            data = os.pread(self._descriptors[file], count, start)
        except OSError as error:
            raise FormatError(f"{file}: {what} cannot be read: {error.strerror}", hint=AGAIN) from error
        if len(data) != count:
            raise FormatError(f"{file} ends inside {what}", hint=AGAIN)
        return data

    def close(self) -> None:
        """Close all files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


class Source:
    """An open checkpoint. Use as a context manager.

    Attributes:
        path: file or directory that it was opened from, for messages.
        format: "safetensors", "PyTorch", "GGUF" or "ONNX".
        config_file: where `config` comes from, for messages.
        config: in the form of Hugging Face's config.json.
        tensors: by Hugging Face's names, in the order they are to be written.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        config_file: Path,
        config: dict[str, Any],
        files: Files,
        tensors: Mapping[str, Tensor],
    ) -> None:
        self.path = path
        self.format = format
        self.config_file = config_file
        self.config = config
        self.tensors = tensors
        self._files = files

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and remove what was made for `metadata`."""
        self._files.close()

    @property
    def metadata(self) -> Path:
        """Directory with tokenizer.json, tokenizer_config.json and whatever else describes the tokens.

        Raises:
            FormatError, UnsupportedError: they are made from the file's own metadata, which does not suffice.
        """
        return self.config_file.parent

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return rows [start, stop) of a tensor as float32, exactly; a vector counts as one row.

        Safe to call from several threads.

        Raises:
            FormatError: the dtype holds no floats, or the file ends early.
        """
        return read_floats(self._files, name, self.tensors[name], start, stop)

    def groups(
        self, name: str, start: int, stop: int
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float16]] | None:
        """Return rows [start, stop) as `q_weight` and `q_scale` of q4f16_1, without any loss.

        None where the stored weights are not 4-bit groups of 32 with a float16 scale.
        """
        return None


def read_floats(files: Files, name: str, tensor: Tensor, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Return rows [start, stop) of a float tensor; see `Source.rows`."""
    if tensor.dtype not in FLOATS:
        raise FormatError(
            f"{tensor.file}: {name}: dtype {tensor.dtype} is not F32, F16 or BF16",
            hint="Convert the original, unquantised checkpoint.",
        )
    stored = np.dtype(FLOATS[tensor.dtype])
    vector = len(tensor.shape) < 2
    shape = (stop - start, *((tensor.shape or (1,)) if vector else tensor.shape[1:]))
    if tensor.strides is None:
        skip = start * math.prod(shape[1:]) * stored.itemsize
        data = files.read(tensor.file, tensor.start + skip, math.prod(shape) * stored.itemsize, name)
        values = np.frombuffer(data, stored).reshape(shape)
    else:
        strides = (0, *tensor.strides) if vector else tensor.strides
        values = _strided(files, name, tensor, stored, start, shape, strides)
    if tensor.dtype == "BF16":
        return widen_bfloat16(values)
    return values.astype(np.float32, copy=False)


def _strided(
    files: Files,
    name: str,
    tensor: Tensor,
    stored: np.dtype[Any],
    start: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> npt.NDArray[Any]:
    """Gather rows that do not lie one behind the other."""
    item = stored.itemsize
    first = tensor.start + start * strides[0] * item
    if 0 in shape:
        return np.empty(shape, stored)
    if len(shape) == 2 and strides[0] == 1:
        # A transposed matrix, as ONNX has them: the rows are a few elements of each of its lines.
        lines = (first + line * strides[1] * item for line in range(shape[1]))
        data = b"".join(files.read(tensor.file, at, shape[0] * item, name) for at in lines)
        return np.ascontiguousarray(np.frombuffer(data, stored).reshape(shape[::-1]).T)
    span = 1 + sum((dim - 1) * step for dim, step in zip(shape, strides, strict=True))
    data = files.read(tensor.file, first, span * item, name)
    steps = [step * item for step in strides]
    return np.ascontiguousarray(
        np.lib.stride_tricks.as_strided(np.frombuffer(data, stored), shape, steps, writeable=False)
    )


def check_disjoint(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of one file that share bytes.

    Raises:
        FormatError: names both.
    """
    last: dict[Path, tuple[int, str]] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        end, other = last.get(tensor.file, (0, ""))
        if tensor.nbytes and tensor.start < end:
            raise FormatError(f"{tensor.file}: {other} and {name} overlap", hint=AGAIN)
        last[tensor.file] = max((end, other), (tensor.start + tensor.nbytes, name))


def check_names(file: Path, names: Iterable[str]) -> None:
    """Refuse names that could not stand in a one-line message.

    Raises:
        FormatError: empty, or with control characters, line ends or broken Unicode.
    """
    for name in names:
        if not name or len(name) > 512 or not name.isprintable():
            raise FormatError(f"{file}: {name[:80]!r} is not a tensor name", hint=AGAIN)
