"""The MLC model directory: weights in shards, `tensor-cache.json`, `mlc-chat-config.json`, tokenizer files.

What MLC-LLM writes opens here, and what Hob writes loads in MLC-LLM. Both the service and the compiler read
models through this module, so it needs numpy and the standard library only.

Layout of `tensor-cache.json` (older directories call it `ndarray-cache.json`):
`{"metadata": {…}, "records": [{dataPath, format, nbytes, md5sum, records: [{name, shape, dtype, format,
nbytes, byteOffset}]}]}`. A float32 tensor whose format is "f32-to-bf16" is stored as bfloat16.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.compile.bfloat16 import widen_bfloat16
from builder.compile.families import FAMILIES
from builder.compile.quantise import QUANTISATIONS
from builder.errors import FormatError, UnsupportedError

CONFIG = "mlc-chat-config.json"
TENSOR_CACHES = ("tensor-cache.json", "ndarray-cache.json")
TOKENIZER = "tokenizer.json"

# Largest JSON file read; a 70B model's tensor cache has about 0.5 MB. Keeps memory bounded on foreign files.
MAX_JSON = 64 * 2**20
ITEM_BYTES: Mapping[str, int] = {
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
}
AGAIN = "Copy or convert the model again."


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies and what it holds.

    Attributes:
        name: parameter name of the compiled library, such as "model.norm.weight".
        shape: dimensions, C order.
        dtype: what the library expects: a key of `ITEM_BYTES`.
        format: "raw", or "f32-to-bf16": stored as bfloat16 if (and only if) `dtype` is float32.
        shard: file name inside the directory.
        offset, nbytes: bytes inside the shard.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    shard: str
    offset: int
    nbytes: int

    @property
    def stored_dtype(self) -> str:
        """dtype of the bytes in the file."""
        return "bfloat16" if self.dtype == "float32" and self.format == "f32-to-bf16" else self.dtype


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file: name inside the directory, bytes, MD5 (hex; "" if the directory does not tell)."""

    name: str
    nbytes: int
    md5: str


@dataclass(frozen=True, slots=True)
class MLCDirectory:
    """A checked model directory. Made by `open`; holds no weights and no open file.

    Attributes:
        path: the directory.
        config: `mlc-chat-config.json`, checked as far as `open` says.
        tensors: all tensors by name, in file order.
        shards: all weight files, in order.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    shards: tuple[Shard, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def model_type(self) -> str:
        """Family, in MLC's words ("llama")."""
        return str(self.config["model_type"])

    @property
    def quantization(self) -> str:
        """MLC's name of the weight format ("q4f16_1")."""
        return str(self.config["quantization"])

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; every token id is below it."""
        return int(self.config["vocab_size"])

    @property
    def context_window(self) -> int:
        """Tokens of context the model was made for."""
        return int(self.config["context_window_size"])

    @classmethod
    def open(cls, path: Path) -> "MLCDirectory":
        """Read and check the description of the model in `path`; reads no weights.

        Checked: both JSON files and the fields Hob relies on, the tokenizer's presence, every shard's
        presence and size, every tensor's dtype, shape, byte count and place (inside its shard, overlapping
        no other), and that token ids in the configuration are in the vocabulary.

        Raises:
            FormatError: something is missing, damaged or contradictory; names file and field.
            UnsupportedError: a family or quantisation that Hob does not know.
        """
        if not path.is_dir():
            raise FormatError(f"{path} is not a directory", hint="Give the directory that holds the model.")
        config = read_config(path)
        if not (path / TOKENIZER).is_file():
            raise FormatError(
                f"{path / TOKENIZER} is missing",
                hint="Copy tokenizer.json from the model's original directory.",
            )
        cache = next((path / name for name in TENSOR_CACHES if (path / name).is_file()), None)
        if cache is None:
            raise FormatError(
                f"{path / TENSOR_CACHES[0]} is missing",
                hint="This is not a complete MLC directory; `hob model convert` makes one.",
            )
        tensors, shards = _read_tensor_cache(cache)
        return cls(path=path, config=config, tensors=tensors, shards=shards)

    def verify(self) -> None:
        """Read every shard and compare its MD5 with the one in the tensor cache.

        Raises:
            FormatError: a shard differs, or cannot be read; names it.
        """
        for shard in self.shards:
            file = self.path / shard.name
            try:
                with file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, _md5).hexdigest()
            except OSError as error:
                raise FormatError(f"{file} cannot be read: {error.strerror}", hint=AGAIN) from error
            if shard.md5 and digest != shard.md5:
                raise FormatError(f"{file} is damaged: MD5 {digest}, expected {shard.md5}", hint=AGAIN)

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return one tensor, read-only, in its `shape`.

        Mapped from the file, so that pages are read on use. Only tensors stored as bfloat16 are copied: they
        come back as float32, which holds every bfloat16 exactly.

        Raises:
            KeyError: no tensor of that name.
            FormatError: the shard disappeared or shrank since `open`.
        """
        entry = self.tensors[name]
        stored = "uint16" if entry.stored_dtype == "bfloat16" else entry.stored_dtype
        file = self.path / entry.shard
        try:
            mapped = np.memmap(file, np.dtype(stored).newbyteorder("<"), "r", entry.offset, entry.shape)
        except (OSError, ValueError) as error:
            raise FormatError(f"{file} cannot be read: {error}", hint=AGAIN) from error
        if entry.stored_dtype == "bfloat16":
            wide = widen_bfloat16(mapped)
            wide.flags.writeable = False
            return wide
        return mapped.view(np.ndarray)


def read_config(path: Path) -> dict[str, Any]:
    """Read and check `mlc-chat-config.json` in `path`.

    A model without end of its context gets the length of its window for one.

    Raises:
        FormatError, UnsupportedError: as `MLCDirectory.open`.
    """
    file = path / CONFIG
    config = read_json(file)
    for field in ("model_type", "quantization"):
        _typed(file, config, field, str)
    _typed(file, config, "model_config", dict)
    vocab_size = _positive(file, config, "vocab_size")
    if config.get("context_window_size") == -1 and config.get("sliding_window_size", -1) != -1:
        # MLC-LLM's way to say that a window rolls on without end. Inside the window both ways are the same.
        config["context_window_size"] = _positive(file, config, "sliding_window_size")
    for field in ("context_window_size", "prefill_chunk_size"):
        _positive(file, config, field)
    if (family := config["model_type"]) not in FAMILIES:
        raise UnsupportedError(
            f"{file}: model_type {family!r} is not supported", hint=f"Supported: {', '.join(FAMILIES)}."
        )
    if (quantisation := config["quantization"]) not in QUANTISATIONS:
        raise UnsupportedError(
            f"{file}: quantization {quantisation!r} is not supported",
            hint=f"Supported: {', '.join(QUANTISATIONS)}.",
        )
    for field, ids in _token_ids(file, config):
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int):
                raise FormatError(f"{file}: {field}: {token!r} is not a token id", hint=AGAIN)
            if not 0 <= token < vocab_size:
                raise FormatError(
                    f"{file}: {field}: token id {token} is outside the vocabulary of {vocab_size}",
                    hint="The conversation template belongs to another model; correct the ids in this file.",
                )
    return config


def _token_ids(file: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield every field of the chat configuration that holds token ids, each as a list."""
    for field in ("bos_token_id", "eos_token_id"):
        value = config.get(field)
        if value is not None:
            yield field, value if isinstance(value, list) else [value]
    template = config.get("conv_template")
    if not isinstance(template, dict):
        return  # older directories name a template, or have none
    for field in ("system_prefix_token_ids", "stop_token_ids"):
        value = template.get(field)
        if value is None:
            continue
        if not isinstance(value, list):
            raise FormatError(f"{file}: conv_template.{field} is not a list", hint=AGAIN)
        yield f"conv_template.{field}", value


def _read_tensor_cache(file: Path) -> tuple[dict[str, TensorEntry], tuple[Shard, ...]]:
    tensors: dict[str, TensorEntry] = {}
    shards: list[Shard] = []
    records = _typed(file, read_json(file), "records", list)
    for index, record in enumerate(records):
        where = f"records[{index}]"
        if not isinstance(record, dict):
            raise FormatError(f"{file}: {where} is not an object", hint=AGAIN)
        shard = _read_shard(file, record, where)
        if any(shard.name == other.name for other in shards):
            raise FormatError(f"{file}: {where}.dataPath: {shard.name} is listed twice", hint=AGAIN)
        shards.append(shard)
        entries = [
            _read_tensor(file, tensor, f"{where}.records[{i}]", shard)
            for i, tensor in enumerate(_typed(file, record, "records", list, where))
        ]
        _check_overlap(file, entries)
        for entry in entries:
            if entry.name in tensors:
                raise FormatError(f"{file}: tensor {entry.name} is listed twice", hint=AGAIN)
            tensors[entry.name] = entry
    if not tensors:
        raise FormatError(f"{file}: records: no tensor is listed", hint=AGAIN)
    return tensors, tuple(shards)


def _read_shard(file: Path, record: Mapping[str, Any], where: str) -> Shard:
    name = _typed(file, record, "dataPath", str, where)
    # A plain file name: anything else could point outside the directory.
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise FormatError(f"{file}: {where}.dataPath: {name!r} is not a plain file name", hint=AGAIN)
    nbytes = _positive(file, record, "nbytes", where)
    md5 = record.get("md5sum", "")
    if not isinstance(md5, str):
        raise FormatError(f"{file}: {where}.md5sum is not a string", hint=AGAIN)
    path = file.parent / name
    if not path.is_file():
        raise FormatError(f"{path} is missing", hint=AGAIN)
    if (size := path.stat().st_size) != nbytes:
        raise FormatError(f"{path} has {size} bytes, {file.name} says {nbytes}", hint=AGAIN)
    return Shard(name, nbytes, md5.lower())


def _read_tensor(file: Path, record: Any, where: str, shard: Shard) -> TensorEntry:
    if not isinstance(record, dict):
        raise FormatError(f"{file}: {where} is not an object", hint=AGAIN)
    name = _typed(file, record, "name", str, where)
    dtype = _typed(file, record, "dtype", str, where)
    storage = _typed(file, record, "format", str, where)
    if dtype not in ITEM_BYTES:
        raise FormatError(f"{file}: {name}: dtype {dtype!r} is not known", hint=AGAIN)
    if storage not in ("raw", "f32-to-bf16"):
        raise FormatError(f"{file}: {name}: format {storage!r} is not known", hint=AGAIN)
    shape = _typed(file, record, "shape", list, where)
    if any(isinstance(dim, bool) or not isinstance(dim, int) or dim < 1 for dim in shape):
        raise FormatError(f"{file}: {name}: shape {shape} is not a list of positive integers", hint=AGAIN)
    offset = record.get("byteOffset")
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise FormatError(f"{file}: {name}: byteOffset {offset!r} is not a byte count", hint=AGAIN)
    nbytes = _positive(file, record, "nbytes", where)
    entry = TensorEntry(name, tuple(shape), dtype, storage, shard.name, offset, nbytes)
    if nbytes != (expected := math.prod(shape) * ITEM_BYTES[entry.stored_dtype]):
        raise FormatError(
            f"{file}: {name}: nbytes is {nbytes}, shape {shape} of {entry.stored_dtype} takes {expected}",
            hint=AGAIN,
        )
    if offset + nbytes > shard.nbytes:
        raise FormatError(
            f"{file}: {name}: bytes {offset} to {offset + nbytes} lie outside {shard.name}"
            f" of {shard.nbytes} bytes",
            hint=AGAIN,
        )
    return entry


def _check_overlap(file: Path, entries: list[TensorEntry]) -> None:
    """Refuse tensors of one shard that share bytes."""
    ordered = sorted(entries, key=lambda entry: entry.offset)
    for left, right in itertools.pairwise(ordered):
        if left.offset + left.nbytes > right.offset:
            raise FormatError(f"{file}: {left.name} and {right.name} overlap in {left.shard}", hint=AGAIN)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of at most `MAX_JSON` bytes.

    Raises:
        FormatError: missing, too large, not UTF-8, not JSON, or not an object; names the file.
    """
    try:
        with file.open("rb") as stream:
            # Asked for more than there is, Python would set aside as much all the same.
            data = stream.read(min(os.fstat(stream.fileno()).st_size, MAX_JSON) + 1)
    except OSError as error:
        raise FormatError(
            f"{file} cannot be read: {error.strerror}", hint="Give the directory that holds the model."
        ) from error
    if len(data) > MAX_JSON:
        raise FormatError(f"{file} is larger than {MAX_JSON >> 20} MiB", hint=AGAIN)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError covers bad JSON and bad UTF-8
        raise FormatError(f"{file} is not valid JSON: {error}", hint=AGAIN) from error
    if not isinstance(value, dict):
        raise FormatError(f"{file} does not hold a JSON object", hint=AGAIN)
    return value


def _typed(file: Path, record: Mapping[str, Any], field: str, kind: type, where: str = "") -> Any:
    """Return `record[field]` if it is a `kind`."""
    value = record.get(field)
    if not isinstance(value, kind):
        name = f"{where}.{field}" if where else field
        problem = "is missing" if field not in record else f"is {type(value).__name__}, not {kind.__name__}"
        raise FormatError(f"{file}: {name} {problem}", hint=AGAIN)
    return value


def _positive(file: Path, record: Mapping[str, Any], field: str, where: str = "") -> int:
    """Return `record[field]` if it is an integer above zero."""
    value = _typed(file, record, field, int, where)
    if isinstance(value, bool) or value < 1:
        name = f"{where}.{field}" if where else field
        raise FormatError(f"{file}: {name}: {value!r} is not positive", hint=AGAIN)
    return int(value)


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)  # the format's checksum, against damage, not against people
