"""A GGUF model as a source: Hugging Face's names and order of rows over GGML's blocks."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from builder.compile.import_.chat import check_tokenizer
from builder.compile.import_.checkpoint import AGAIN, Files, Source, Tensor
from builder.compile.import_.gguf.architectures import TABLES, Architecture, architecture
from builder.compile.import_.gguf.blocks import BY_NAME, decode, q4_0_groups
from builder.compile.import_.gguf.config import config_json
from builder.compile.import_.gguf.header import Header, other_parts, read_gguf
from builder.compile.import_.gguf.tokenizer import write_tokenizer
from builder.compile.mlc import TOKENIZER
from builder.errors import FormatError, UnsupportedError

MAX_TABLE = 2**16  # elements of a tensor that the configuration is made from
# Files of their own that go with a model: projectors of images, adapters, importance matrices.
NOT_MODELS = ("mmproj", "adapter", "imatrix", "vocab")


def open_gguf(files: Files, path: Path, candidates: Sequence[Path]) -> "GGUFSource":
    """Open the one model that is among `candidates`, in one file or in parts.

    Raises:
        FormatError: damaged, incomplete, or several models.
        UnsupportedError: an architecture, weight type or option that is not read.
    """
    headers = [read_gguf(files, file) for file in candidates]
    if len(headers) > 1:
        models = [h for h in headers if h.metadata.get("general.type", "model") not in NOT_MODELS]
        headers = [h for h in models if h.architecture != "clip"] or headers
    firsts = [header for header in headers if header.split[0] == 0]
    if len(firsts) > 1:
        raise FormatError(
            f"{path} has several models: {', '.join(header.file.name for header in firsts[:5])}",
            hint="Give one of the files.",
        )
    known = {header.file: header for header in headers}
    first = firsts[0] if firsts else headers[0]
    others = [known.get(file) or read_gguf(files, file) for file in other_parts(first)]
    return GGUFSource(files, path, sorted((first, *others), key=lambda header: header.split))


class GGUFSource(Source):
    """An open GGUF model. `config` and `metadata` are made from its metadata."""

    def __init__(self, files: Files, path: Path, parts: Sequence[Header]) -> None:
        """Take over the checked headers of all parts, the first one in front.

        Raises:
            FormatError, UnsupportedError: as `open_gguf`.
        """
        first = parts[0]
        if [part.split for part in parts] != [(number, len(parts)) for number in range(len(parts))]:
            raise FormatError(f"{first.file}: its parts do not belong together", hint=AGAIN)
        known = architecture(first.architecture, str(first.file))
        tensors, tables = _named(files, parts, known)
        self._architecture = known
        self._header = first
        self._made: tempfile.TemporaryDirectory[str] | None = None
        config = config_json(first, known, tensors, tables)
        super().__init__(path, "GGUF", first.file, config, files, dict(sorted(tensors.items())))
        self._heads = {
            name: int(config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"])
            if known.is_paired(name)
            else 0
            for name in tensors
        }
        for name, heads in self._heads.items():
            if heads and (rows := tensors[name].shape[0]) % (2 * heads):
                raise FormatError(f"{tensors[name].file}: {name} has {rows} rows, not {heads} heads of pairs")

    def close(self) -> None:
        super().close()
        if self._made is not None:
            self._made.cleanup()
            self._made = None

    @property
    def metadata(self) -> Path:
        if self._made is None:
            made = tempfile.TemporaryDirectory(prefix="hob-gguf-")
            try:
                directory = Path(made.name)
                write_tokenizer(self._header, directory, self.config["vocab_size"])
                check_tokenizer(directory / TOKENIZER, f"{self._header.file}: the tokenizer")
            except BaseException:
                made.cleanup()
                raise
            self._made = made
        return Path(self._made.name)

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        tensor, heads = self.tensors[name], self._heads[name]
        values = decode(BY_NAME[tensor.dtype], self._raw(name, start, stop))
        if heads and len(tensor.shape) == 1:
            values = values[:, _stored_rows(0, tensor.shape[0], tensor.shape[0] // heads)]
        if self._architecture.is_shifted(name):
            values = values - np.float32(1)
        return values

    def groups(
        self, name: str, start: int, stop: int
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float16]] | None:
        if self.tensors[name].dtype != "Q4_0" or self._architecture.is_shifted(name):
            return None
        return q4_0_groups(self._raw(name, start, stop))

    def _raw(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes of rows [start, stop), in Hugging Face's order of rows."""
        tensor = self.tensors[name]
        kind = BY_NAME[tensor.dtype]
        row = tensor.shape[-1] // kind.weights * kind.nbytes
        order = None
        if (heads := self._heads[name]) and len(tensor.shape) == 2:
            order = _stored_rows(start, stop, tensor.shape[0] // heads)
            start, stop = int(order.min(initial=start)), int(order.max(initial=start)) + 1
        data = self._files.read(tensor.file, tensor.start + start * row, (stop - start) * row, name)
        raw = np.frombuffer(data, np.uint8).reshape(stop - start, row)
        return raw if order is None else raw[order - start]


def _stored_rows(start: int, stop: int, head: int) -> npt.NDArray[np.intp]:
    """Where llama.cpp stores rows [start, stop) of queries or keys with heads of `head` rows.

    The halves of a head rotate together: Hugging Face has one after the other, llama.cpp alternates them.
    """
    wanted = np.arange(start, stop)
    half, place = np.divmod(wanted % head, head // 2)
    stored: npt.NDArray[np.intp] = wanted // head * head + 2 * place + half
    return stored


def _named(
    files: Files, parts: Sequence[Header], known: Architecture
) -> tuple[dict[str, Tensor], dict[str, npt.NDArray[np.float32]]]:
    """Weights by Hugging Face's names, and by GGML's the tables that belong to the configuration."""
    tensors: dict[str, Tensor] = {}
    tables: dict[str, npt.NDArray[np.float32]] = {}
    for part in parts:
        for name, tensor in part.tensors.items():
            if re.fullmatch(TABLES, name):
                tables[name] = _table(files, name, tensor)
                continue
            renamed = known.tensor(name)
            if renamed is None:
                raise UnsupportedError(
                    f"{part.file}: tensor {name} has no place in a {known.model_type} model"
                )
            if renamed in tensors:
                raise FormatError(f"{part.file}: tensor {name} is in {tensors[renamed].file} too", hint=AGAIN)
            tensors[renamed] = tensor
    return tensors, tables


def _table(files: Files, name: str, tensor: Tensor) -> npt.NDArray[np.float32]:
    """A small float32 vector."""
    if tensor.dtype != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > MAX_TABLE:
        raise FormatError(f"{tensor.file}: {name} is not a short vector of F32", hint=AGAIN)
    return np.frombuffer(files.read(tensor.file, tensor.start, tensor.nbytes, name), "<f4").astype(np.float32)
