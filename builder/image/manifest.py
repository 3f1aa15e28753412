"""What an image is, in one file beside it: `hob-DEVICE-VERSION.manifest.json`.

It names every file of the release with size and checksum, the partitions of the unpacked image with their
content, and the software that the image carries. A signature of this file thus vouches for all of them. The
same software as a bill of materials for other programs is made by `builder.image.sbom`.

`docs/image-format.md` describes the fields. A field added later does no harm to older readers; a change of
meaning raises `FORMAT`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from builder.errors import FormatError, UnsupportedError

FORMAT = 1

LARGEST = 16 * 2**20
"""Bytes of a manifest that are read at most; one of an image with a thousand packages has 200 kB."""

Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*\Z", max_length=200)]
"""A file's name: never a path, so that a manifest can only speak of what lies beside it."""


class File(msgspec.Struct, frozen=True):
    """A file by its name, without folders, its bytes and their SHA-256."""

    name: Name
    size: Size
    sha256: Digest


class Partition(msgspec.Struct, frozen=True):
    """A partition of the unpacked image.

    Attributes:
        label, uuid, type: as in the partition table, uuids in lower case.
        start, size: bytes.
        content: bytes from its start that hold something; the rest is zeros, in an empty slot all of it.
        sha256: of these bytes; "" where there are none.
    """

    label: str
    uuid: str
    type: str
    start: Size
    size: Size
    content: Size = 0
    sha256: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""


class Slot(msgspec.Struct, frozen=True):
    """One of the two places that a system can be in.

    Attributes:
        name: "a" or "b".
        root: label of the partition with the root file system.
        kernel: where its kernel lies: a file of the partition HOB, or the label of a partition of its own.
        filled: whether there is a system in it; the other one waits for the first update.
    """

    name: Literal["a", "b"]
    root: str
    kernel: str
    filled: bool


class Package(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Debian package, or a Python one.

    Attributes:
        architecture: Debian's name for it; "" for Python packages.
        sha256: of the archive it came from; "" where it is not known.
        licence: an SPDX expression; "" where the package names none.
    """

    name: str
    version: str
    architecture: str = ""
    sha256: str = ""
    licence: str = ""


class Model(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model that the image carries.

    Attributes:
        name: what the device calls it.
        sha256: over its list of files; its first twelve digits are the version that `hob model list` shows.
        size: bytes of all its files.
        licence: as its model card names it; "" where it names none.
    """

    name: str
    sha256: Digest
    size: Size
    licence: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of an image.

    Attributes:
        format: `FORMAT`.
        device: the recipe's name: "nuc".
        title: the recipe's name for people.
        version: of Hob.
        compatible: what an update must name to be meant for this device.
        architecture: Debian's name for it.
        built: day of the package lock, ISO 8601; an image holds no later time.
        lock: SHA-256 of the package lock.
        image: the unpacked image.
        files: what the release consists of, apart from the manifest and its signature.
        debian, python, models: software in the image. Hob itself is among the Python packages.
        libraries: the models' compiled libraries.
        imager: the image's entry in Raspberry Pi Imager's list, with the file's name for a URL.
    """

    format: int = FORMAT
    device: str
    title: str
    version: str
    compatible: str
    architecture: str
    built: str
    lock: Digest
    image: File
    partitions: tuple[Partition, ...]
    slots: tuple[Slot, ...]
    files: tuple[File, ...]
    debian: tuple[Package, ...] = ()
    python: tuple[Package, ...] = ()
    models: tuple[Model, ...] = ()
    libraries: tuple[File, ...] = ()
    imager: dict[str, Any] = {}

    def file(self, name: str) -> File | None:
        """The file of the release that has this name."""
        return next((each for each in self.files if each.name == name), None)

    def partition(self, label: str) -> Partition | None:
        """The partition with this label."""
        return next((each for each in self.partitions if each.label == label), None)


def read(path: Path) -> Manifest:
    """Read a manifest and check that it does not contradict itself.

    Raises:
        FormatError: no manifest, damaged, or contradicting itself.
        UnsupportedError: of a format that is newer than this builder.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise FormatError(f"{path}: {os.strerror(error.errno or 0)}") from error
    if len(text) > LARGEST:
        raise FormatError(f"{path.name} is too large for a manifest")
    try:
        kind = msgspec.json.decode(text, type=_Format).format
        if kind > FORMAT:
            raise UnsupportedError(
                f"{path.name} has format {kind}, and this Hob knows {FORMAT}",
                hint="Use a newer Hob for this image.",
            )
        found = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path.name} is not a manifest: {error}", hint="Fetch it again.") from error
    for fault in faults(found):
        raise FormatError(
            f"{path.name} contradicts itself: {fault}", hint="Fetch it again, or build it anew."
        )
    return found


def write(manifest: Manifest, path: Path) -> None:
    """Write a manifest: the same bytes for the same content."""
    assert not list(faults(manifest))
    path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def faults(manifest: Manifest) -> Iterator[str]:
    """What in a manifest cannot be true, one sentence each."""
    for kind, names in (
        ("files", [each.name for each in manifest.files]),
        ("partitions", [each.label for each in manifest.partitions]),
        ("slots", [str(each.name) for each in manifest.slots]),
    ):
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"two {kind} are called {name}"
    end = 0
    for part in sorted(manifest.partitions, key=lambda part: part.start):
        if part.start < end:
            yield f"partition {part.label} begins within another"
        end = part.start + part.size
        if end > manifest.image.size:
            yield f"partition {part.label} goes on after the image's end"
        if part.content > part.size:
            yield f"partition {part.label} holds more than its size"
        if bool(part.content) != bool(part.sha256):
            yield f"partition {part.label} has content without checksum, or a checksum of nothing"
    for slot in manifest.slots:
        root = manifest.partition(slot.root)
        if root is None:
            yield f"slot {slot.name} is in a partition {slot.root}, and there is none"
        elif bool(root.content) != slot.filled:
            said = "filled" if slot.filled else "empty"
            yield f"slot {slot.name} is said to be {said}, and partition {slot.root} is not"


class _Format(msgspec.Struct):
    """What is read first, to tell a newer format from damage."""

    format: int
