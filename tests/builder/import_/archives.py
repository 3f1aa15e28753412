"""Write PyTorch checkpoints by hand: a pickle, opcode by opcode, in a zip archive."""

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from builder.compile.bfloat16 import narrow_bfloat16

STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}


def text(value: str) -> bytes:
    """Opcode BINUNICODE."""
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    """An integer of any size, opcode LONG1."""
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def tuple_of(*items: bytes) -> bytes:
    """Opcodes MARK … TUPLE."""
    return b"(" + b"".join(items) + b"t"


def tensor(
    dtype: str,
    key: str,
    elements: int,
    shape: tuple[int, ...],
    *,
    offset: int = 0,
    strides: tuple[int, ...] | None = None,
) -> bytes:
    """A call of `_rebuild_tensor_v2`."""
    if strides is None:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = tuple_of(
        text("storage"),
        f"ctorch\n{STORAGES.get(dtype, dtype)}\n".encode(),
        text(key),
        text("cpu"),
        integer(elements),
    )
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"Q"
        + integer(offset)
        + tuple_of(*map(integer, shape))
        + tuple_of(*map(integer, strides))
        + b"\x89"
        + b"ccollections\nOrderedDict\n)R"
        + b"tR"
    )


def state_dict(entries: Mapping[str, bytes]) -> bytes:
    """A dictionary of pickled values."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u."


def stored(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    """Values as a storage holds them."""
    if dtype == "BF16":
        return narrow_bfloat16(values).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def archive(
    file: Path,
    pickle: bytes,
    storages: Mapping[str, bytes],
    *,
    compression: int = zipfile.ZIP_STORED,
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """A checkpoint's archive, with more members by name where they are given."""
    with zipfile.ZipFile(file, "w", compression) as out:
        out.writestr("archive/data.pkl", pickle)
        for key, content in storages.items():
            out.writestr(f"archive/data/{key}", content)
        for name, content in ({"byteorder": b"little"} | dict(more or {})).items():
            out.writestr(f"archive/{name}", content)
    return file


def write_pytorch(file: Path, tensors: Mapping[str, npt.NDArray[np.float32]], dtype: str = "F32") -> Path:
    """A checkpoint of tensors, each in a storage of its own."""
    entries = {
        name: tensor(dtype, str(key), values.size, values.shape)
        for key, (name, values) in enumerate(tensors.items())
    }
    members = {str(key): stored(values, dtype) for key, values in enumerate(tensors.values())}
    return archive(file, state_dict(entries), members)
