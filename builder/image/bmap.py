"""Block maps: which blocks of an image hold data, with a checksum for each run of them.

The format is that of bmap-tools, version 2.0: an XML file of a few kilobytes beside the image. Blocks that
are not listed may hold anything on the medium, so writing skips them.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from builder.errors import FormatError, UnsupportedError

LARGEST = 64 * 2**20
"""Bytes of a block map that are read at most: enough for hundreds of thousands of runs."""

HASHES = ("sha256", "sha512")


@dataclass(frozen=True)
class Run:
    """Bytes `start` to `end` (exclusive) of the image, and their checksum as hexadecimal digits."""

    start: int
    end: int
    checksum: str


@dataclass(frozen=True)
class BlockMap:
    """A block map.

    Attributes:
        size: bytes of the unpacked image.
        hash: the checksums' algorithm, as hashlib names it.
        runs: ascending, without overlaps.
    """

    size: int
    hash: str
    runs: tuple[Run, ...]

    @property
    def mapped(self) -> int:
        """Bytes that the runs hold."""
        return sum(run.end - run.start for run in self.runs)


def read(path: Path) -> BlockMap:
    """Read a block map and check it against its own checksum.

    Raises:
        FormatError: not a block map, damaged, or contradicting itself.
        UnsupportedError: another version of the format, or a checksum Hob does not know.
    """
    if path.stat().st_size > LARGEST:
        raise FormatError(f"{path.name} is too large for a block map")
    text = path.read_bytes()
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  bounded above; expat itself stops entity expansion
    except ElementTree.ParseError as error:
        raise FormatError(f"{path.name} is not a block map: {error}") from error
    if root.tag != "bmap" or root.get("version") != "2.0":
        version = root.get("version", "none")
        raise UnsupportedError(
            f"{path.name} is <{root.tag}> of version {version}, not a block map of version 2.0",
            hint="Remove it to write the whole image without a map.",
        )
    algorithm = _text(root, "ChecksumType", path)
    if algorithm not in HASHES:
        raise UnsupportedError(
            f"{path.name}: checksums of kind {algorithm!r}", hint=f"Known: {', '.join(HASHES)}."
        )
    own = _text(root, "BmapFileChecksum", path)
    if not re.fullmatch(rf"[0-9a-f]{{{hashlib.new(algorithm).digest_size * 2}}}", own):
        raise FormatError(f"{path.name}: BmapFileChecksum is no {algorithm} checksum")
    # The file's checksum is taken with its own digits as zeros.
    blanked = text.replace(own.encode(), b"0" * len(own), 1)
    if hashlib.new(algorithm, blanked).hexdigest() != own:
        raise FormatError(f"{path.name} is damaged: it does not match its own checksum")
    return _checked(root, path, algorithm)


def _checked(root: ElementTree.Element, path: Path, algorithm: str) -> BlockMap:
    """The map's content, compared with its own counts."""
    size, block = _number(root, "ImageSize", path), _number(root, "BlockSize", path)
    blocks = _number(root, "BlocksCount", path)
    if block < 1 or -(-size // block) != blocks:
        raise FormatError(f"{path.name}: {blocks} blocks of {block} bytes are not an image of {size} bytes")
    runs: list[Run] = []
    mapped = 0
    for item in root.iterfind("BlockMap/Range"):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", item.text or "")
        if not match:
            raise FormatError(f"{path.name}: {item.text!r} is no range of blocks")
        first = int(match[1])
        last = int(match[2] or first)
        start = first * block
        if last < first or last >= blocks or (runs and start < runs[-1].end):
            raise FormatError(f"{path.name}: the range {item.text!r} is outside the image or out of order")
        mapped += last - first + 1
        runs.append(Run(start, min((last + 1) * block, size), item.get("chksum", "").lower()))
    if mapped != _number(root, "MappedBlocksCount", path):
        raise FormatError(f"{path.name}: its ranges have {mapped} blocks, its count says otherwise")
    if any(not run.checksum for run in runs):
        raise FormatError(f"{path.name}: a range has no checksum")
    return BlockMap(size, algorithm, tuple(runs))


def _text(root: ElementTree.Element, name: str, path: Path) -> str:
    found = (root.findtext(name) or "").strip()
    if not found:
        raise FormatError(f"{path.name}: {name} is missing")
    return found


def _number(root: ElementTree.Element, name: str, path: Path) -> int:
    text = _text(root, name, path)
    if not text.isdecimal():
        raise FormatError(f"{path.name}: {name} is {text!r}, not a number")
    return int(text)
