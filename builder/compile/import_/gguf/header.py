"""Read the header of a GGUF file: metadata and where each tensor lies.

Format: docs/gguf.md of ggml, https://github.com/ggml-org/ggml, versions 2 and 3, little-endian. Nothing is
believed before it is compared with the file's size, and nothing is allocated from a count alone.
"""

import itertools
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from builder.compile.import_.checkpoint import (
    AGAIN,
    MAX_DIMENSIONS,
    Files,
    Tensor,
    check_disjoint,
    check_names,
)
from builder.compile.import_.gguf.blocks import OTHER_TYPES, TYPES
from builder.errors import FormatError, UnsupportedError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 2**16
MAX_TENSORS = 2**16
# Of all arrays together; the largest vocabularies have 2**18 tokens, types and scores, and 2**19 merges.
MAX_ITEMS = 2**22
MAX_STRING = 2**24
MAX_HEADER = 2**27
CHUNK = 2**20
# Value types by number: struct letter and bytes. 8 is a string, 9 an array.
SCALARS = {
    0: ("B", 1),
    1: ("b", 1),
    2: ("<H", 2),
    3: ("<h", 2),
    4: ("<I", 4),
    5: ("<i", 4),
    6: ("<f", 4),
    7: ("?", 1),
    10: ("<Q", 8),
    11: ("<q", 8),
    12: ("<d", 8),
}
STRING, ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says about itself.

    Attributes:
        file: the file.
        metadata: by key: int, float, bool, str (bytes that are no UTF-8 replaced), list[bytes] for an array
            of strings, a one-dimensional numpy array for any other.
        tensors: by GGML's names, shapes outputs first, `dtype` a GGML type name.
    """

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        """`general.architecture`, "" if it is not given."""
        value = self.metadata.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    @property
    def split(self) -> tuple[int, int]:
        """Number of this file and how many there are, counted from 0; (0, 1) for a whole model."""
        number, count = self.metadata.get("split.no", 0), self.metadata.get("split.count", 1)
        if not (isinstance(number, int) and isinstance(count, int)) or not 0 <= number < max(count, 1):
            raise FormatError(f"{self.file}: split.no {number!r} of split.count {count!r}", hint=AGAIN)
        return number, max(count, 1)


def looks_like_gguf(head: bytes) -> bool:
    """Whether a file begins as GGUF files do."""
    return head[:4] == MAGIC


def read_gguf(files: Files, file: Path) -> Header:
    """Read and check the header of `file`.

    Raises:
        FormatError: truncated, contradictory or absurd; names file and key or tensor.
        UnsupportedError: a version, byte order or weight type that is not read.
    """
    cursor = _Cursor(files, file)
    if cursor.take(4, "the magic number") != MAGIC:
        raise FormatError(f"{file} is not a GGUF file")
    version = cursor.number("<I", "the version")
    if version not in VERSIONS:
        kind = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise UnsupportedError(
            f"{file}: {kind} GGUF files are not supported", hint="Convert the model anew with llama.cpp."
        )
    tensor_count = cursor.count("<Q", "the number of tensors", MAX_TENSORS)
    key_count = cursor.count("<Q", "the number of keys", MAX_KEYS)
    metadata: dict[str, Any] = {}
    for index in range(key_count):
        key = cursor.name(f"key {index}")
        if key in metadata:
            raise FormatError(f"{file}: {key} is given twice", hint=AGAIN)
        metadata[key] = cursor.value(cursor.number("<I", key), key)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise FormatError(f"{file}: general.alignment: {alignment!r} is not a power of two", hint=AGAIN)
    infos = [_info(cursor, index) for index in range(tensor_count)]
    data = -(-cursor.position // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, shape, kind_number, offset in infos:
        if name in tensors:
            raise FormatError(f"{file}: tensor {name} is listed twice", hint=AGAIN)
        tensors[name] = _tensor(file, name, shape, kind_number, offset, alignment, data, cursor.size)
    check_names(file, tensors)
    check_disjoint(tensors)
    return Header(file, metadata, tensors)


def other_parts(header: Header) -> list[Path]:
    """The other files of a split model, by llama.cpp's naming: `NAME-00001-of-00003.gguf`.

    Raises:
        FormatError: the file is part of a split model, but not named so.
    """
    number, count = header.split
    if count == 1:
        return []
    found = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", header.file.name, re.DOTALL)
    if not found or (int(found[2]), int(found[3])) != (number + 1, count):
        raise FormatError(
            f"{header.file} is part {number + 1} of {count}, which its name does not say",
            hint=f"Name the parts model-00001-of-{count:05}.gguf and so on.",
        )
    names = (f"{found[1]}-{part + 1:05}-of-{count:05}.gguf" for part in range(count) if part != number)
    # Lazily: the count is not believed further than there are files.
    there = [header.file.with_name(n) for n in itertools.takewhile(lambda n: _is_there(header, n), names)]
    if len(there) != count - 1:
        raise FormatError(f"{header.file}: not all of its {count} parts are beside it", hint=AGAIN)
    return there


def _is_there(header: Header, name: str) -> bool:
    return header.file.with_name(name).is_file()


def _info(cursor: "_Cursor", index: int) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape (outputs first), type number and offset of a tensor."""
    name = cursor.name(f"tensor {index}")
    dimensions = cursor.count("<I", f"{name}: the number of dimensions", MAX_DIMENSIONS)
    shape = tuple(cursor.number("<Q", f"{name}: the shape") for _ in range(dimensions))
    return (
        name,
        shape[::-1],
        cursor.number("<I", f"{name}: the type"),
        cursor.number("<Q", f"{name}: the offset"),
    )


def _tensor(
    file: Path,
    name: str,
    shape: tuple[int, ...],
    kind_number: int,
    offset: int,
    alignment: int,
    data: int,
    size: int,
) -> Tensor:
    """Check a tensor against the file's size; `data` is where the data section begins."""
    if kind_number not in TYPES:
        kind = OTHER_TYPES.get(kind_number, f"number {kind_number}")
        raise UnsupportedError(
            f"{file}: {name} has weight type {kind}, which is not supported",
            hint=f"Take another file of the model; supported: {', '.join(t.name for t in TYPES.values())}.",
        )
    block = TYPES[kind_number]
    if 0 in shape or not shape:
        raise FormatError(f"{file}: {name}: shape {list(shape)} has no elements", hint=AGAIN)
    if shape[-1] % block.weights:
        raise FormatError(
            f"{file}: {name}: rows of {shape[-1]} do not consist of {block.name} blocks of {block.weights}",
            hint=AGAIN,
        )
    nbytes = math.prod(shape) // block.weights * block.nbytes
    if offset % alignment or data + offset + nbytes > size:
        raise FormatError(
            f"{file}: {name}: {nbytes} bytes at {offset} lie outside the file of {size} bytes", hint=AGAIN
        )
    return Tensor(file, block.name, shape, data + offset, nbytes)


class _Cursor:
    """Reads the header from front to back, a chunk at a time."""

    def __init__(self, files: Files, file: Path) -> None:
        self.file = file
        self.size = files.size(file)
        self._files = files
        self._start = 0
        self._at = 0
        self._items = 0
        self._chunk = b""

    @property
    def position(self) -> int:
        """Bytes consumed."""
        return self._start + self._at

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes.

        Raises:
            FormatError: the file has not as many.
        """
        if self._at + count > len(self._chunk):
            left = self.size - self.position
            if count > left:
                raise FormatError(f"{self.file} ends inside {what}", hint=AGAIN)
            if self.position > MAX_HEADER:
                raise FormatError(
                    f"{self.file}: the header is larger than {MAX_HEADER >> 20} MiB", hint=AGAIN
                )
            self._start, self._at = self.position, 0
            self._chunk = self._files.read(self.file, self._start, min(max(count, CHUNK), left), what)
        self._at += count
        return self._chunk[self._at - count : self._at]

    def number(self, letter: str, what: str) -> int:
        """The next integer of a struct type."""
        value: int = struct.unpack(letter, self.take(struct.calcsize(letter), what))[0]
        return value

    def count(self, letter: str, what: str, most: int) -> int:
        """The next integer, which may not exceed `most` or what the rest of the file can hold."""
        value = self.number(letter, what)
        if value > min(most, self.size - self.position):
            raise FormatError(f"{self.file}: {what} is {value}", hint=AGAIN)
        return value

    def string(self, what: str) -> bytes:
        """The next string."""
        return self.take(self.count("<Q", f"the length of {what}", MAX_STRING), what)

    def name(self, what: str) -> str:
        """The next string, which has to be a name."""
        try:
            name = self.string(what).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.file}: the name of {what} is not UTF-8", hint=AGAIN) from error
        check_names(self.file, [name])
        return name

    def value(self, kind: int, what: str) -> Any:
        """The next value of a type."""
        if kind == STRING:
            return self.string(what).decode(errors="replace")
        if kind == ARRAY:
            return self._array(what)
        if kind not in SCALARS:
            raise FormatError(f"{self.file}: {what} has the unknown type {kind}", hint=AGAIN)
        letter, size = SCALARS[kind]
        return struct.unpack(letter, self.take(size, what))[0]

    def _array(self, what: str) -> Any:
        kind = self.number("<I", what)
        count = self.count("<Q", f"the length of {what}", MAX_ITEMS - self._items)
        self._items += count
        if kind == STRING:
            return [self.string(what) for _ in range(count)]
        if kind not in SCALARS:
            raise FormatError(f"{self.file}: {what} is an array of the type {kind}", hint=AGAIN)
        letter, size = SCALARS[kind]
        return np.frombuffer(self.take(count * size, what), letter)
