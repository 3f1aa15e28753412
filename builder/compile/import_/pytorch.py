"""Read the headers of PyTorch checkpoints: zip archives of a pickle and one member for each storage.

Format: `torch.serialization` and PyTorch's `caffe2/serialize/inline_container.h`. Members are stored, not
compressed, so that a tensor is a place in the file.
"""

import io
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

from builder.compile.import_.checkpoint import AGAIN, MAX_DIMENSIONS, Files, Tensor, check_names
from builder.compile.import_.pickled import View, read_state_dict
from builder.errors import FormatError, UnsupportedError

PICKLE = "data.pkl"
MAX_PICKLE = 2**24  # a state dictionary takes about 200 bytes for a tensor
MAX_DIRECTORY = 2**26  # of the archive
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of files before PyTorch 1.6, pickled
SAVE_AGAIN = "Load it with PyTorch on another machine and save the model as safetensors."
ITEM_BYTES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


def looks_like_pytorch(head: bytes) -> bool:
    """Whether a file beginning with `head` is a PyTorch checkpoint, of the new or the legacy format."""
    if head.startswith(LEGACY):
        return True
    if head[:4] != b"PK\x03\x04" or len(head) < 30:
        return False
    (length,) = struct.unpack("<H", head[26:28])
    return head[30 : 30 + length].endswith(PICKLE.encode())


def read_pytorch(files: Files, file: Path) -> dict[str, Tensor]:
    """Return the tensors of one file.

    Raises:
        FormatError: damaged or contradictory; names file and tensor.
        UnsupportedError: the legacy format, compressed, big-endian, or more than a dictionary of tensors.
    """
    if files.read(file, 0, min(files.size(file), len(LEGACY)), "its beginning") == LEGACY:
        raise UnsupportedError(f"{file} is in PyTorch's legacy format", hint=SAVE_AGAIN)
    members, root = _members(files, file)
    views = read_state_dict(_content(files, file, members[root + PICKLE]), f"{file}: {PICKLE}")
    order = members.get(f"{root}byteorder")
    if order is not None and _content(files, file, order) != b"little":
        raise UnsupportedError(f"{file} is big-endian", hint=SAVE_AGAIN)
    check_names(file, views)
    starts: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for name, view in views.items():
        member = members.get(f"{root}data/{view.storage.key}")
        if member is None:
            raise FormatError(f"{file}: {name}: storage {view.storage.key[:80]!r} is missing", hint=AGAIN)
        item = ITEM_BYTES[view.storage.dtype]
        if view.storage.elements * item > member.file_size:
            raise FormatError(
                f"{file}: {name}: storage {view.storage.key[:80]!r} has {member.file_size} bytes,"
                f" not {view.storage.elements * item}",
                hint=AGAIN,
            )
        if member.filename not in starts:
            starts[member.filename] = _start(files, file, member)
        tensors[name] = _tensor(file, name, view, starts[member.filename])
    return tensors


def _members(files: Files, file: Path) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """The archive's members by name, all of them stored as they are, and the folder that the pickle is in."""
    try:
        with zipfile.ZipFile(_Window(files, file)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError) as error:
        raise FormatError(f"{file} is truncated or not a PyTorch checkpoint", hint=AGAIN) from error
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if info.filename in members:
            raise FormatError(f"{file} has {info.filename[:80]!r} twice", hint=AGAIN)
        members[info.filename] = info
    roots = [name.removesuffix(PICKLE) for name in members if name.rpartition("/")[2] == PICKLE]
    if len(roots) != 1:
        raise FormatError(f"{file} is not a PyTorch checkpoint: it has {len(roots)} {PICKLE}", hint=AGAIN)
    if f"{roots[0]}constants.pkl" in members:
        raise UnsupportedError(f"{file} is a TorchScript program", hint=SAVE_AGAIN)
    return members, roots[0]


def _start(files: Files, file: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise UnsupportedError(f"{file}: {info.filename[:80]!r} is compressed or encrypted", hint=SAVE_AGAIN)
    local = (
        files.read(file, info.header_offset, 30, repr(info.filename[:80])) if info.header_offset >= 0 else b""
    )
    if local[:4] != b"PK\x03\x04":
        raise FormatError(f"{file}: {info.filename[:80]!r} is not where the archive says", hint=AGAIN)
    name, extra = struct.unpack("<HH", local[26:30])
    start: int = info.header_offset + 30 + name + extra
    if start + info.file_size > files.size(file):
        raise FormatError(f"{file} ends inside {info.filename[:80]!r}", hint=AGAIN)
    return start


def _content(files: Files, file: Path, info: zipfile.ZipInfo) -> bytes:
    """A small member."""
    if info.file_size > MAX_PICKLE:
        raise FormatError(f"{file}: {info.filename[:80]!r} is larger than {MAX_PICKLE >> 20} MiB", hint=AGAIN)
    return files.read(file, _start(files, file, info), info.file_size, repr(info.filename[:80]))


def _tensor(file: Path, name: str, view: View, start: int) -> Tensor:
    """Check a view against its storage, which begins at `start`."""
    dtype = view.storage.dtype
    numbers = (view.offset, *_tuple(view.shape), *_tuple(view.strides))
    if (
        any(type(number) is not int or not 0 <= number < 2**63 for number in numbers)
        or not isinstance(view.shape, tuple)
        or not isinstance(view.strides, tuple)
        or len(view.shape) != len(view.strides)
        or len(view.shape) > MAX_DIMENSIONS
    ):
        raise FormatError(f"{file}: {name}: its shape or strides are malformed", hint=AGAIN)
    item, elements = ITEM_BYTES[dtype], math.prod(view.shape)
    span = (
        1 + sum((dim - 1) * step for dim, step in zip(view.shape, view.strides, strict=True))
        if elements
        else 0
    )
    # A view with more elements than it covers repeats them, as `expand` does; no weight is like that.
    if view.offset + span > view.storage.elements or elements > span:
        raise FormatError(
            f"{file}: {name}: shape {list(view.shape)} lies outside its storage of {view.storage.elements}",
            hint=AGAIN,
        )
    packed = all(
        step == math.prod(view.shape[axis + 1 :]) or view.shape[axis] == 1
        for axis, step in enumerate(view.strides)
    )
    return Tensor(
        file,
        dtype,
        view.shape,
        start + view.offset * item,
        span * item,
        None if packed or not elements else view.strides,
    )


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


class _Window(io.RawIOBase):
    """A file as `zipfile` wants it, which never reads more at once than an archive's directory may have."""

    def __init__(self, files: Files, file: Path) -> None:
        self._files, self._file, self._at, self._size = files, file, 0, files.size(file)

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("before the beginning")
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        size = left if size < 0 else min(size, left)
        if size > MAX_DIRECTORY:
            raise ValueError("the directory is too large")
        data = self._files.read(self._file, self._at, size, "the archive's directory")
        self._at += size
        return data
