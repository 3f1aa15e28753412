"""Headers of GGUF files, built by hand: what cannot be is refused by key or tensor."""

import struct
from pathlib import Path

import pytest

from builder.compile.import_.checkpoint import Files
from builder.compile.import_.gguf.header import Header, read_gguf
from builder.errors import BuildError, FormatError


def text(value: str | bytes) -> bytes:
    """A string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    """A key with its value."""
    return text(name) + struct.pack("<I", kind) + value


def info(
    name: str | bytes, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0, dims: int | None = None
) -> bytes:
    """A tensor's description; the shape in GGML's order."""
    count = len(shape) if dims is None else dims
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


ARCH = key("general.architecture", 8, text("llama"))


def write(
    place: Path,
    keys: list[bytes],
    infos: list[bytes],
    *,
    data: int = 4096,
    counts: tuple[int, int] | None = None,
    magic: bytes = b"GGUF",
    version: bytes = b"\3\0\0\0",
) -> Path:
    """A file of these keys and tensors."""
    tensors, pairs = counts or (len(infos), len(keys))
    head = magic + version + struct.pack("<QQ", tensors, pairs) + b"".join(keys + infos)
    file = place / "model.gguf"
    file.write_bytes(head + bytes(-len(head) % 32) + bytes(data))
    return file


def read(file: Path) -> Header:
    """The header of a file."""
    files = Files()
    try:
        return read_gguf(files, file)
    finally:
        files.close()


def test_values(tmp_path: Path) -> None:
    """Values of every type are read, and tensors with Hugging Face's order of dimensions."""
    keys = [
        ARCH,
        key("a.int", 5, struct.pack("<i", -3)),
        key("a.float", 6, struct.pack("<f", 0.5)),
        key("a.bool", 7, b"\1"),
        key("a.long", 10, struct.pack("<Q", 2**63)),
        key("a.texts", 9, struct.pack("<IQ", 8, 2) + text("x") + text(b"\xff")),
        key("a.numbers", 9, struct.pack("<IQ3h", 3, 3, 1, -1, 7)),
        key("a.broken", 8, text(b"a\xffb")),
        key("general.alignment", 4, struct.pack("<I", 64)),
    ]
    header = read(write(tmp_path, keys, [info("t", (32, 5), 2, 64)]))
    assert header.architecture == "llama"
    values = header.metadata
    assert (values["a.int"], values["a.float"], values["a.bool"], values["a.long"]) == (-3, 0.5, True, 2**63)
    assert values["a.texts"] == [b"x", b"\xff"]
    assert values["a.numbers"].tolist() == [1, -1, 7]
    assert values["a.broken"] == "a\ufffdb"
    tensor = header.tensors["t"]
    assert (tensor.shape, tensor.dtype, tensor.nbytes, tensor.start % 64) == ((5, 32), "Q4_0", 90, 0)


def test_version_2(tmp_path: Path) -> None:
    """Version 2 differs in nothing that is read here."""
    assert list(read(write(tmp_path, [ARCH], [info("t")], version=b"\2\0\0\0")).tensors) == ["t"]


@pytest.mark.parametrize(
    ("version", "message"),
    [(b"\1\0\0\0", "version 1"), (b"\0\0\0\3", "big-endian"), (b"\x09\0\0\0", "version 9")],
)
def test_other_versions(version: bytes, message: str, tmp_path: Path) -> None:
    """Old, future and big-endian files are named as such."""
    with pytest.raises(BuildError, match=f"{message} GGUF files are not supported"):
        read(write(tmp_path, [ARCH], [info("t")], version=version))


ALIGNMENT = "general.alignment: .* is not a power of two"


@pytest.mark.parametrize(
    ("keys", "infos", "message"),
    [
        ([ARCH, ARCH], [], "general.architecture is given twice"),
        ([key("k", 13, b"")], [], "k has the unknown type 13"),
        ([key("k", 9, struct.pack("<IQ", 9, 1))], [], "k is an array of the type 9"),
        ([key("k", 9, struct.pack("<IQ", 4, 2**61))], [], "the length of k is"),
        ([key("k", 9, struct.pack("<IQ", 10, 4000))], [], "ends inside k"),
        ([key("k", 8, struct.pack("<Q", 2**63))], [], "the length of k is"),
        (
            [key("k", 8, struct.pack("<Q", 4090))],
            [info("t")],
            "ends inside|has the unknown type|is not a tensor",
        ),
        ([key(b"\xff\xfe", 7, b"\0")], [], "the name of key 0 is not UTF-8"),
        ([key("a\nb", 7, b"\0")], [], r"'a\\nb' is not a tensor name"),
        ([key("", 7, b"\0")], [], "'' is not a tensor name"),
        ([key("general.alignment", 4, struct.pack("<I", 0))], [], ALIGNMENT),
        ([key("general.alignment", 4, struct.pack("<I", 48))], [], ALIGNMENT),
        ([key("general.alignment", 4, struct.pack("<I", 2**31))], [], ALIGNMENT),
        ([key("general.alignment", 8, text("32"))], [], ALIGNMENT),
        ([ARCH], [info("t"), info("t", offset=128)], "tensor t is listed twice"),
        ([ARCH], [info("t"), info("u", offset=96)], "t and u overlap"),
        ([ARCH], [info("t", (32, 32)), info("u", offset=32)], "t and u overlap"),
        ([ARCH], [info("t", offset=5)], "t: 128 bytes at 5 lie outside"),
        ([ARCH], [info("t", offset=2**63)], "lie outside the file"),
        ([ARCH], [info("t", (2**40, 2**40))], "lie outside the file"),
        ([ARCH], [info("t", (2**63, 2**63, 2**63, 2**63))], "lie outside the file"),
        ([ARCH], [info("t", (0, 4))], r"t: shape \[4, 0\] has no elements"),
        ([ARCH], [info("t", ())], "has no elements"),
        ([ARCH], [info("t", dims=200)], "t: the number of dimensions is 200"),
        ([ARCH], [info("t", (33,), 2)], "t: rows of 33 do not consist of Q4_0 blocks of 32"),
        ([ARCH], [info("t", kind=16)], "t has weight type IQ2_XXS, which is not supported"),
        ([ARCH], [info("t", kind=4)], "t has weight type number 4"),
        ([ARCH], [info(b"\xc3(")], "the name of tensor 0 is not UTF-8"),
        ([ARCH], [info("t" * 600)], "is not a tensor name"),
    ],
)
def test_refused(keys: list[bytes], infos: list[bytes], message: str, tmp_path: Path) -> None:
    """Contradictions, absurd numbers and broken names give an error that names file and key or tensor."""
    with pytest.raises(BuildError, match=message) as caught:
        read(write(tmp_path, keys, infos))
    assert "model.gguf" in str(caught.value)


@pytest.mark.parametrize("counts", [(2**64 - 1, 1), (1, 2**64 - 1), (2**40, 1), (70_000, 1), (1, 5000)])
def test_counts(counts: tuple[int, int], tmp_path: Path) -> None:
    """Counts that the file cannot hold are refused before anything is made of them."""
    with pytest.raises(FormatError, match=r"the number of|is not a tensor name"):
        read(write(tmp_path, [ARCH], [info("t")], counts=counts))


def test_split_numbers(tmp_path: Path) -> None:
    """A part's number is below the number of parts."""
    header = read(write(tmp_path, [ARCH, key("split.no", 2, b"\7\0"), key("split.count", 2, b"\3\0")], []))
    with pytest.raises(FormatError, match=r"split\.no 7 of split\.count 3"):
        _ = header.split


def test_arrays_together(tmp_path: Path) -> None:
    """Many arrays may not have more items than a model needs, however small each is in the file."""
    many = struct.pack("<IQ", 0, 2**21) + bytes(2**21)
    keys = [key(f"k{number}", 9, many) for number in range(3)]
    with pytest.raises(FormatError, match="the length of k2 is 2097152"):
        read(write(tmp_path, keys, [info("t")]))
