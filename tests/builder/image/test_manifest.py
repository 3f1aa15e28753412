"""Manifests of images: what is written, what is read, what is refused."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builder.errors import FormatError, UnsupportedError
from builder.image import manifest
from builder.image.manifest import File, Manifest, Model, Package, Partition, Slot

MIB = 2**20
SUM = "ab" * 32

EXAMPLE = Manifest(
    device="nuc",
    title="PC",
    version="1.2.3",
    compatible="hob-x86-64",
    architecture="amd64",
    built="2026-01-02T03:04:05Z",
    lock=SUM,
    image=File("hob-nuc-1.2.3.img", 8 * MIB, SUM),
    partitions=(
        Partition("HOB", "1", "2", MIB, MIB, MIB, SUM),
        Partition("root-a", "3", "4", 2 * MIB, MIB, 1000, SUM),
        Partition("root-b", "5", "4", 3 * MIB, MIB),
    ),
    slots=(
        Slot("a", "root-a", "HOB:EFI/Linux/hob-a.efi", True),
        Slot("b", "root-b", "HOB:EFI/Linux/hob-b.efi", False),
    ),
    files=(File("hob-nuc-1.2.3.img.xz", 5, SUM),),
    debian=(Package("libc6", "2.41-12", "amd64", SUM),),
    python=(Package("numpy", "2.5.5", licence="BSD-3-Clause"),),
    models=(Model("hob-guide", SUM, 10, "Apache-2.0"),),
    libraries=(File("x.so", 7, SUM),),
    imager={"name": "Hob"},
)


def part(label: str, start: int, size: int) -> dict[str, Any]:
    """An empty partition, as JSON."""
    return {"label": label, "uuid": "", "type": "", "start": start, "size": size}


def altered(path: Path, change: dict[str, Any]) -> Path:
    """The example with some of its keys changed, written to `path`."""
    data = json.loads(msgspec.json.encode(EXAMPLE)) | change
    path.write_text(json.dumps(data))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Nothing is lost, and the same content is the same bytes."""
    path = tmp_path / "a.manifest.json"
    manifest.write(EXAMPLE, path)
    assert manifest.read(path) == EXAMPLE
    before = path.read_bytes()
    manifest.write(manifest.read(path), path)
    assert path.read_bytes() == before
    assert before.startswith(b'{\n  "format": 1,\n  "device": "nuc",')


def test_things_are_found_by_name() -> None:
    """Files and partitions; None for what is not there."""
    assert EXAMPLE.file("hob-nuc-1.2.3.img.xz") == EXAMPLE.files[0]
    assert EXAMPLE.partition("root-b") == EXAMPLE.partitions[2]
    assert EXAMPLE.file("other") is None
    assert EXAMPLE.partition("other") is None


def test_a_key_of_later_does_no_harm(tmp_path: Path) -> None:
    """Readers pass over what they do not know."""
    assert manifest.read(altered(tmp_path / "a.manifest.json", {"later": [1]})) == EXAMPLE


def test_a_later_format_is_refused_as_such(tmp_path: Path) -> None:
    """Not as damage, even where nothing else can be understood."""
    path = tmp_path / "a.manifest.json"
    path.write_text('{"format": 2, "device": 7}')
    with pytest.raises(UnsupportedError, match="has format 2, and this Hob knows 1"):
        manifest.read(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": "1"}', '{"format": 1}', "\udcff", '{"format": 1, "device": null}'],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    """Cut off, of another kind, or not even text."""
    path = tmp_path / "a.manifest.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FormatError, match=r"a\.manifest\.json is not a manifest"):
        manifest.read(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": {"name": "../x.img", "size": 1, "sha256": SUM}}, "name"),
        ({"image": {"name": "x.img\n", "size": 1, "sha256": SUM}}, "name"),
        ({"image": {"name": "x.img", "size": -1, "sha256": SUM}}, "size"),
        ({"image": {"name": "x.img", "size": 1, "sha256": SUM[:-1]}}, "sha256"),
        ({"image": {"name": "x.img", "size": 1, "sha256": SUM + "\n"}}, "sha256"),
        ({"files": [{"name": ".hidden", "size": 1, "sha256": SUM}]}, "files"),
        ({"slots": [{"name": "c", "root": "root-a", "kernel": "", "filled": True}]}, "slots"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    """The complaint names the key. A file's name is never a path."""
    with pytest.raises(FormatError, match=told):
        manifest.read(altered(tmp_path / "a.manifest.json", change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"files": [{"name": "x", "size": 1, "sha256": SUM}] * 2}, "two files are called x"),
        (
            {"image": {"name": "x.img", "size": 3 * MIB, "sha256": SUM}},
            "root-b goes on after the image's end",
        ),
        (
            {"partitions": [part("HOB", MIB, MIB), part("root-a", 2 * MIB - 1, 5)]},
            "root-a begins within another",
        ),
        ({"slots": [{"name": "a", "root": "root-x", "kernel": "", "filled": True}]}, "and there is none"),
        (
            {"slots": [{"name": "b", "root": "root-b", "kernel": "", "filled": True}]},
            "slot b is said to be filled, and partition root-b is not",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    """By what is wrong with it."""
    with pytest.raises(FormatError, match=told):
        manifest.read(altered(tmp_path / "a.manifest.json", change))


def test_partitions_hold_no_more_than_their_size() -> None:
    """And have a checksum if, and only if, they hold something."""
    parts = (
        Partition("a", "", "", 0, 5, 6, SUM),
        Partition("b", "", "", 5, 5, 5),
        Partition("c", "", "", 10, 5, 0, SUM),
    )
    wrong = msgspec.structs.replace(EXAMPLE, partitions=parts, slots=())
    assert list(manifest.faults(wrong)) == [
        "partition a holds more than its size",
        "partition b has content without checksum, or a checksum of nothing",
        "partition c has content without checksum, or a checksum of nothing",
    ]


def test_an_endless_file_is_not_read(tmp_path: Path) -> None:
    """More than a manifest can have is no manifest."""
    path = tmp_path / "a.manifest.json"
    with path.open("wb") as file:
        file.truncate(manifest.LARGEST + 1)
    with pytest.raises(FormatError, match="too large"):
        manifest.read(path)
