"""Write MLC model directories: weights into shards, whole directories at once or not at all."""

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.compile.bfloat16 import narrow_bfloat16
from builder.compile.mlc import ITEM_BYTES, TENSOR_CACHES
from builder.errors import BuildError

SHARD_CAP = 32 * 2**20


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `out`; afterwards it becomes `out`, complete and on disk.

    Missing parents are made. Should the body raise, or the disk be full, nothing is left behind and `out` is
    not there. What a killed process left is removed by the next attempt.

    Raises:
        BuildError: `out` exists or writing fails.
    """
    if out.exists():
        raise BuildError(f"{out} already exists", hint="Choose another name, or remove it first.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise BuildError(
            f"cannot write in {out.parent}: {error.strerror}",
            hint="Choose a place that you may write to.",
        ) from error
    held = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # tells others that this one is in use
        yield aside
        aside.chmod(0o755)  # mkdtemp makes it private
        for file in aside.iterdir():
            file.chmod(0o644)  # for the engine, which may run as another user
            _sync(file)
        _sync(aside)
        aside.rename(out)
        _sync(out.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise BuildError(
            f"cannot write {out}: {error.strerror}",
            hint="Free some space, or choose another disk."
            if full
            else "Look at the disk and its permissions.",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(held)


def _sweep(out: Path) -> None:
    """Remove what earlier attempts at `out` left when they were killed or the power failed."""
    for stale in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        held = os.open(stale, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(stale)
        except BlockingIOError:
            pass  # somebody is writing it right now
        finally:
            os.close(held)


def _sync(path: Path) -> None:
    """Force a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Record:
    """A tensor's line in `tensor-cache.json`; field names and their order are the format's."""

    name: str
    shape: list[int]
    dtype: str
    format: str
    nbytes: int
    byteOffset: int


class ShardWriter:
    """Streams tensors into `params_shard_<i>.bin` by MLC-LLM's rules, so that equal input gives equal files.

    Tensors follow each other without padding in an open shard of less than 32 MiB, kept in memory. One that
    would fill it goes, if it is 16 MiB or larger, to a shard of its own while the open shard stays open;
    otherwise the open shard is written first. Shards are numbered in the order they are written.
    """

    def __init__(self, directory: Path, cap: int = SHARD_CAP) -> None:
        """Write into `directory`; shards of less than `cap` bytes, except those of one large tensor."""
        self._directory = directory
        self._cap = cap
        self._shards: list[dict[str, Any]] = []
        self._open: list[_Record] = []
        self._data = bytearray()
        self._bytes = 0

    def add(
        self, name: str, dtype: str, shape: Sequence[int], blocks: Iterable[npt.NDArray[np.generic]]
    ) -> None:
        """Append a tensor given as consecutive blocks of rows.

        Args:
            dtype: what the model library expects; float32 is stored as bfloat16.
            blocks: arrays of `dtype` (of float32 for bfloat16) that together have `shape`.

        Raises:
            OSError: the disk is full or broken.
        """
        stored = ITEM_BYTES["bfloat16" if dtype == "float32" else dtype]
        record = _Record(name, list(shape), dtype, "f32-to-bf16", math.prod(shape) * stored, 0)
        self._bytes += math.prod(shape) * ITEM_BYTES[dtype]
        pieces = (_stored(block, dtype) for block in blocks)
        if len(self._data) + record.nbytes >= self._cap:
            if record.nbytes * 2 >= self._cap:
                self._write([record], pieces)
                return
            self._flush()
        record.byteOffset = len(self._data)
        self._open.append(record)
        for piece in pieces:
            self._data += piece
        assert len(self._data) == record.byteOffset + record.nbytes, (
            f"{name}: blocks do not make up its shape"
        )

    def close(self, parameters: int) -> None:
        """Write the open shard and the tensor cache; `parameters` counts weights before quantising."""
        self._flush()
        tensors = sum(len(shard["records"]) for shard in self._shards)
        metadata = {
            "ParamSize": tensors,
            "ParamBytes": float(self._bytes),
            "BitsPerParam": self._bytes * 8 / parameters,
        }
        _dump(self._directory / TENSOR_CACHES[0], metadata, self._shards)
        # For browsers, which cannot widen: the same bytes under the label bfloat16.
        floats = False
        for shard in self._shards:
            for record in shard["records"]:
                if record["dtype"] == "float32":
                    record |= {"dtype": "bfloat16", "format": "raw"}
                    floats = True
        if floats:
            _dump(self._directory / "tensor-cache-b16.json", metadata, self._shards)

    def _flush(self) -> None:
        if self._open:
            self._write(self._open, [self._data])
            self._open = []
            self._data = bytearray()

    def _write(self, records: Sequence[_Record], pieces: Iterable[Any]) -> None:
        name = f"params_shard_{len(self._shards)}.bin"
        digest = hashlib.md5(usedforsecurity=False)  # the format's checksum
        written = 0
        with (self._directory / name).open("wb") as stream:
            for piece in pieces:
                stream.write(piece)
                digest.update(piece)
                written += len(piece)
        assert written == sum(record.nbytes for record in records), (
            f"{records[0].name}: wrong number of bytes"
        )
        self._shards.append(
            {
                "dataPath": name,
                "format": "raw-shard",
                "nbytes": written,
                "records": [asdict(record) for record in records],
                "md5sum": digest.hexdigest(),
            }
        )


def _stored(block: npt.NDArray[Any], dtype: str) -> memoryview:
    """Bytes of a block as they go to the file."""
    narrow = dtype in ("float32", "bfloat16")
    assert block.dtype == ("float32" if narrow else dtype), f"{block.dtype} given for {dtype}"
    if narrow:
        block = narrow_bfloat16(block)
    little = np.ascontiguousarray(block, block.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def _dump(file: Path, metadata: dict[str, Any], shards: list[dict[str, Any]]) -> None:
    file.write_text(json.dumps({"metadata": metadata, "records": shards}, indent=4), encoding="utf-8")
