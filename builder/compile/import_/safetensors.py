"""Read the headers of safetensors files.

Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header, data). The
`safetensors` package maps whole files and knows no bfloat16 in numpy, hence this reader.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from builder.compile.import_.checkpoint import (
    AGAIN,
    FLOATS,
    MAX_DIMENSIONS,
    Files,
    Tensor,
    check_disjoint,
    check_names,
)
from builder.errors import FormatError

MAX_HEADER = 2**25  # the format allows 100 MB; what is in use has a few


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file beginning with `head` (at least 9 bytes) can be a safetensors file."""
    return len(head) > 8 and struct.unpack("<Q", head[:8])[0] <= MAX_HEADER and head[8:9] == b"{"


def read_safetensors(files: Files, file: Path) -> dict[str, Tensor]:
    """Read the header of one file and check that its tensors lie inside it, without sharing bytes.

    Raises:
        FormatError: missing, truncated, or not a safetensors file; names file and tensor.
    """
    size = files.size(file)
    length = struct.unpack("<Q", files.read(file, 0, 8, "the header's length"))[0] if size >= 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise FormatError(f"{file} is truncated or not a safetensors file", hint=AGAIN)
    try:
        header = json.loads(files.read(file, 8, length, "the header"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: the header is not valid JSON: {error}", hint=AGAIN) from error
    if not isinstance(header, dict):
        raise FormatError(f"{file}: the header is not a JSON object", hint=AGAIN)
    header.pop("__metadata__", None)
    check_names(file, header)
    tensors = {name: _tensor(file, name, record, 8 + length, size) for name, record in header.items()}
    check_disjoint(tensors)
    return tensors


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is listed twice")
    return value


def _tensor(file: Path, name: str, record: Any, data: int, size: int) -> Tensor:
    """Check one header record against the file's size; `data` is where the data section begins."""
    match record:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            numbers = (*shape, begin, end)
        case _:
            raise FormatError(f"{file}: {name}: the header record is malformed", hint=AGAIN)
    if len(shape) > MAX_DIMENSIONS or len(dtype) > 16 or not all(map(_is_size, numbers)):
        raise FormatError(f"{file}: {name}: the header record is malformed", hint=AGAIN)
    if not 0 <= begin <= end <= size - data:
        raise FormatError(f"{file}: {name} lies outside the file of {size} bytes", hint=AGAIN)
    if dtype in FLOATS and end - begin != math.prod(shape) * np.dtype(FLOATS[dtype]).itemsize:
        raise FormatError(f"{file}: {name}: {end - begin} bytes do not fit shape {shape}", hint=AGAIN)
    return Tensor(file, dtype, tuple(shape), data + begin, end - begin)


def _is_size(value: Any) -> bool:
    """Whether a JSON value can be a dimension or an offset."""
    return type(value) is int and 0 <= value < 2**63
