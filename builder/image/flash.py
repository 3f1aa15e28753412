"""Writes an image to a disk and proves that it is there.

The first mebibyte, with the partition table, is written last, and the end of the disk, where a copy of an old
table may lie, is cleared first: a disk that was not finished starts nothing, rather than half of something.
"""

import contextlib
import hashlib
import lzma
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from builder.errors import DriveError, FormatError, UnsupportedError
from builder.image import bmap, drives, first_boot, gpt, manifest
from builder.image.cache import file_digest
from builder.image.medium import PIECE, Medium
from builder.image.toolbox import Toolbox
from builder.image.verify import SIGNATURE, signed_at

HEAD = 2**20
"""Bytes that are written last. Partitions begin no earlier."""

SYNC_EVERY = 32 * 2**20
"""Bytes between two waits for the medium, so that progress is real and the page cache stays small."""

STRETCH = 64 * 2**20
"""Bytes verified at once where no block map says otherwise."""

PACKED = {b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}
XZ = b"\xfd7zXZ\0"

Tell = Callable[[str, str, float | None], None]
"""Progress: stage, what is being done, share of the stage that is done (None: not known)."""


@dataclass(frozen=True)
class Image:
    """An image file and what lies beside it.

    Attributes:
        path: `.img` or `.img.xz`.
        packed: whether it is an xz file.
        head: its first `HEAD` bytes, unpacked.
        table: its partitions; None where it has no GPT.
        map: which blocks matter; None: all.
        size: bytes unpacked; None where nothing tells.
        named: whether a manifest vouched for it.
    """

    path: Path
    packed: bool
    head: bytes
    table: gpt.Table | None
    map: bmap.BlockMap | None
    size: int | None
    named: bool

    @property
    def settings_partition(self) -> gpt.Partition | None:
        """Where `hob.toml` goes; None in an image that is not Hob's."""
        return self.table.find(first_boot.LABEL) if self.table else None


@dataclass(frozen=True)
class Stretch:
    """Bytes `start` to `end` as they were written, and their checksum."""

    start: int
    end: int
    digest: bytes


def inspect(path: Path, tell: Tell, keyring: Path | None = None) -> Image:
    """Look at an image and check it against the manifest and block map beside it, before any disk is touched.

    `hob-nuc-1.0.img.xz` has its map in `hob-nuc-1.0.img.bmap` and its manifest in
    `hob-nuc-1.0.manifest.json`; either may be missing. With a keyring it must be signed.

    Raises:
        FormatError: no image, damaged, other than its manifest says, or not signed by those who may.
        UnsupportedError: packed in another way than by xz.
    """
    name = path.name.removesuffix(".xz").removesuffix(".img")
    map_path, manifest_path = path.with_name(f"{name}.img.bmap"), path.with_name(f"{name}.manifest.json")
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        packed = magic == XZ
        for start, kind in PACKED.items():
            if magic.startswith(start):
                raise UnsupportedError(f"{path.name} is packed by {kind}", hint="Unpack it first.")
        described = manifest.read(manifest_path) if manifest_path.exists() else None
        if keyring is not None:
            if described is None:
                raise FormatError(
                    f"{path.name} has no signed manifest beside it",
                    hint=f"Put {manifest_path.name} and {manifest_path.name}{SIGNATURE} there.",
                )
            signed_at(manifest_path, keyring)
        if described:
            _vouch(described, path, packed, tell)
            if map_path.exists():
                _same(described, map_path)
        map_ = bmap.read(map_path) if map_path.exists() else None
        with _unpacked(path, packed) as source:
            head = source.read(HEAD)
    except OSError as error:
        raise FormatError(f"{path}: {os.strerror(error.errno or 0)}") from error
    if head[510:512] != b"\x55\xaa":
        raise FormatError(f"{path.name} is no disk image: its first sector has no boot signature")
    table = gpt.read(head)
    sizes = {
        "the file": None if packed else path.stat().st_size,
        "the block map": map_.size if map_ else None,
        "the manifest": described.image.size if described else None,
        "the partition table": table.disk if table else None,
    }
    known = {who: size for who, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{who} {size}" for who, size in known.items())
        raise FormatError(f"{path.name}: how large it is is told differently: {told}")
    return Image(path, packed, head, table, map_, next(iter(known.values()), None), described is not None)


def admit(device: Path, image: Image, *, confirmed: bool) -> str:
    """Describe the disk, if it may be overwritten with the image.

    Raises:
        DriveError: it may not; or only if `confirmed`.
    """
    device = device.resolve()
    if device.is_file():
        size = device.stat().st_size
        if size < (image.size or 0):
            raise DriveError(
                f"{device} has {size} bytes, the image {image.size}",
                hint=f"A file takes the place of a disk if it is large enough: truncate -s 8G {device}",
            )
        return f"{device}  {drives.human(size)}  file"
    if not device.is_block_device():
        what = "is not a disk" if device.exists() else "does not exist"
        raise DriveError(f"{device} {what}", hint="Leave the name out to see which disks there are.")
    drive = drives.present(device)[0]
    against = drives.objection(drive, image.size or 0)
    if against and (against.final or not confirmed):
        raise DriveError(against.text, hint=against.hint)
    return drive.describe()


def write(
    image: Image,
    device: Path,
    settings: first_boot.Settings | None,
    tell: Tell,
    toolbox: Toolbox | None = None,
) -> None:
    """Write the image, read all of it back, and leave the first settings for the device.

    If anything goes wrong, the disk is left without a partition table.

    Raises:
        DriveError: the disk is in use, fails, ends early, or gives back something else.
        FormatError: the image turns out to be damaged, or has no place for settings.
        ToolMissingError: settings are to be written, and there are no mtools.
    """
    partition = image.settings_partition
    if settings is not None:
        first_boot.require_mtools(toolbox)
        if partition is None:
            raise FormatError(
                f"{image.path.name} has no partition {first_boot.LABEL!r} for settings: it is not Hob's",
                hint="Flash it with --plain, which writes the image alone.",
            )
    device = device.resolve()
    with Medium(device) as medium:
        medium.clear(0, HEAD)
        medium.clear(max(HEAD, medium.size - HEAD), HEAD)
        medium.sync()
        medium.reread_table()  # so that nobody mounts what is about to change
        written = tuple(_copy(image, medium, tell))
        tell("write", "waiting for the disk", None)
        medium.sync()
        _verify(image, medium, written, tell)
        if settings is not None and partition is not None:
            tell("settings", f"writing {first_boot.FILE}", None)
            first_boot.write(device, partition, settings, toolbox)
        medium.write(0, image.head)
        medium.sync()
        if _read(medium, 0, len(image.head)) != image.head:
            medium.clear(0, HEAD)
            raise _unlike(medium, 0)
        medium.reread_table()


def _copy(image: Image, medium: Medium, tell: Tell) -> Iterator[Stretch]:
    """Everything but the head, and what it was."""
    total = image.map.mapped if image.map else image.size
    done = unsynced = 0
    with _unpacked(image.path, image.packed) as source:
        for run in image.map.runs if image.map else _stretches(image.size):
            source.seek(run.start)  # unpacks what lies between, where it is packed
            seen, at = hashlib.new(image.map.hash if image.map else "sha256"), run.start
            while at < run.end and (piece := source.read(min(PIECE, run.end - at))):
                seen.update(piece)
                medium.write(max(at, HEAD), memoryview(piece)[max(0, HEAD - at) :])
                at, done, unsynced = at + len(piece), done + len(piece), unsynced + len(piece)
                if unsynced >= SYNC_EVERY:
                    medium.sync()
                    unsynced = 0
                tell("write", f"writing {drives.human(done)}", done / total if total else None)
            if run.checksum and seen.hexdigest() != run.checksum:
                where = (
                    f"from byte {run.start} to {run.end}" if at == run.end else f"at byte {at}: it is cut off"
                )
                raise FormatError(
                    f"{image.path.name} is not what its block map says, {where}",
                    hint="Fetch or build it again.",
                )
            if at > run.start:
                yield Stretch(run.start, at, seen.digest())
            if at < run.end:
                if image.size is not None and at != image.size:
                    raise FormatError(
                        f"{image.path.name} ends at {at} of {image.size} bytes", hint="Fetch it again."
                    )
                return


def _verify(image: Image, medium: Medium, written: tuple[Stretch, ...], tell: Tell) -> None:
    """Read back what was written, from the medium and not from memory."""
    total, done = sum(stretch.end - max(stretch.start, HEAD) for stretch in written if stretch.end > HEAD), 0
    tell("verify", "reading back", 0.0)
    for stretch in written:
        seen = hashlib.new(image.map.hash if image.map else "sha256", image.head[stretch.start : stretch.end])
        for piece in medium.read_back(max(stretch.start, HEAD), stretch.end):
            seen.update(piece)
            done += len(piece)
            tell("verify", f"reading back {drives.human(done)}", done / total)
        if seen.digest() != stretch.digest:
            raise _unlike(medium, stretch.start)


def _read(medium: Medium, start: int, end: int) -> bytes:
    return b"".join(bytes(piece) for piece in medium.read_back(start, end))


def _unlike(medium: Medium, offset: int) -> DriveError:
    return DriveError(
        f"{medium.path} does not give back what was written to it, from {offset // 2**20} MiB on",
        hint="The medium is worn out, or smaller than it claims. It does not boot as it is; take another.",
    )


def _stretches(size: int | None) -> Iterator[bmap.Run]:
    """An image without a map, in stretches; without a known size they go on until it ends."""
    start = 0
    while size is None or start < size:
        end = start + STRETCH if size is None else min(start + STRETCH, size)
        yield bmap.Run(start, end, "")
        start = end


def _vouch(described: manifest.Manifest, path: Path, packed: bool, tell: Tell) -> None:
    """Compare the image with its manifest: packed it is one of its files, unpacked its image."""
    tell("check", f"checking {path.name}", None)
    if packed:
        _same(described, path)
    elif path.stat().st_size != described.image.size or file_digest(path) != described.image.sha256:
        raise _altered(path)


def _same(described: manifest.Manifest, path: Path) -> None:
    """Compare a file with the manifest's entry of its name."""
    entry = described.file(path.name)
    if entry is None:
        raise FormatError(
            f"{path.name} is not in its manifest", hint="Keep the files of an image together, unrenamed."
        )
    if path.stat().st_size != entry.size or file_digest(path) != entry.sha256:
        raise _altered(path)


def _altered(path: Path) -> FormatError:
    return FormatError(f"{path.name} is not the file its manifest describes", hint="Fetch or build it again.")


@contextlib.contextmanager
def _unpacked(path: Path, packed: bool) -> Iterator[BinaryIO]:
    """The image's bytes; damage in the packing becomes a `FormatError`."""
    try:
        with lzma.open(path) if packed else path.open("rb") as source:
            yield cast(BinaryIO, source)
    except (lzma.LZMAError, EOFError) as error:
        raise FormatError(f"{path.name} is damaged or cut off: {error}", hint="Fetch it again.") from error
