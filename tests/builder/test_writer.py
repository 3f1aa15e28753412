"""Writing MLC directories: where tensors go, and that a directory appears whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest

from builder.compile.writer import ShardWriter, new_directory
from builder.errors import BuildError


def shards(directory: Path) -> list[tuple[str, int, list[str]]]:
    """Each shard's file, size and tensors, as the tensor cache tells."""
    records = json.loads((directory / "tensor-cache.json").read_text())["records"]
    return [(s["dataPath"], s["nbytes"], [t["name"] for t in s["records"]]) for s in records]


def test_where_tensors_go(tmp_path: Path) -> None:
    """Small tensors share a shard until the next would fill it; a large one that would gets its own."""
    writer = ShardWriter(tmp_path, cap=64)
    for name, size in (("a", 20), ("b", 20), ("c", 20), ("d", 10), ("e", 40), ("f", 32), ("g", 13), ("h", 1)):
        writer.add(name, "uint8", (size,), [np.full(size, ord(name), np.uint8)])
    writer.close(parameters=156)
    assert shards(tmp_path) == [
        ("params_shard_0.bin", 60, ["a", "b", "c"]),  # d would make 70
        ("params_shard_1.bin", 32, ["f"]),  # would make 82, and is half a shard itself
        ("params_shard_2.bin", 63, ["d", "e", "g"]),  # stayed open; h would make 64
        ("params_shard_3.bin", 1, ["h"]),
    ]
    assert (tmp_path / "params_shard_2.bin").read_bytes() == b"d" * 10 + b"e" * 40 + b"g" * 13


def test_metadata_counts_float32_in_full(tmp_path: Path) -> None:
    """ParamBytes counts four bytes for a float32 that takes two in the file; blocks are joined."""
    writer = ShardWriter(tmp_path)
    writer.add("w", "float32", (3, 2), [np.ones((1, 2), np.float32), np.ones((2, 2), np.float32)])
    writer.add("h", "float16", (2,), [np.ones(2, np.float16)])
    writer.close(parameters=8)
    metadata = json.loads((tmp_path / "tensor-cache.json").read_text())["metadata"]
    assert metadata == {"ParamSize": 2, "ParamBytes": 28.0, "BitsPerParam": 28.0}
    assert (tmp_path / "params_shard_0.bin").read_bytes() == b"\x80\x3f" * 6 + b"\x00\x3c" * 2


def test_directory_appears_when_complete(tmp_path: Path) -> None:
    """While the body runs there is no directory of that name; afterwards it is there with everything."""
    out = tmp_path / "model"
    with new_directory(out) as aside:
        (aside / "file").write_text("x")
        assert not out.exists()
    assert (out / "file").read_text() == "x"
    assert out.stat().st_mode & 0o777 == 0o755
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_of_a_failure(error: type[BaseException], tmp_path: Path) -> None:
    """Whatever ends the body, the interrupt of a person included, nothing stays behind."""

    def fail() -> None:
        with new_directory(tmp_path / "model") as aside:
            (aside / "file").write_text("x")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_somebody_was_quicker(tmp_path: Path) -> None:
    """A directory that appears meanwhile is kept, and ours is not half-merged into it."""
    out = tmp_path / "model"

    def late() -> None:
        with new_directory(out) as aside:
            (aside / "file").write_text("x")
            out.mkdir()
            (out / "theirs").write_text("y")

    with pytest.raises(BuildError, match="cannot write"):
        late()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "theirs"]
