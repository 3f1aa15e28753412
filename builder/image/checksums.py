"""Checksums of an image and of parts of it, in one pass over its bytes."""

import contextlib
import hashlib
import lzma
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.errors import FormatError

PIECE = 1 << 20
XZ = b"\xfd7zXZ\0"


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `end`, exclusive, and the algorithm to hash them by, as hashlib names it."""

    start: int
    end: int
    hash: str = "sha256"


@dataclass(frozen=True)
class Sums:
    """What was found.

    Attributes:
        size: bytes that were read.
        sha256: of all of them.
        spans: the checksum of each span that was asked for; of less than that where the bytes end early.
        head: the first mebibyte.
    """

    size: int
    sha256: str
    spans: tuple[str, ...]
    head: bytes


def measure(path: Path, spans: Sequence[Span] = (), tell: Callable[[int], None] = lambda _done: None) -> Sums:
    """Read an image, unpacking it if it is an xz file, and hash it.

    Spans may overlap; they are given in any order. `tell` is told how many bytes have been read.

    Raises:
        FormatError: it cannot be read or unpacked to its end.
    """
    waiting = sorted(range(len(spans)), key=lambda number: spans[number].start, reverse=True)
    open_: list[int] = []
    hashes = [hashlib.new(span.hash) for span in spans]
    whole = hashlib.sha256()
    size, head = 0, b""
    for piece in pieces(path):
        view, end = memoryview(piece), size + len(piece)
        whole.update(view)
        if len(head) < PIECE:
            head += piece[: PIECE - len(head)]
        while waiting and spans[waiting[-1]].start < end:
            open_.append(waiting.pop())
        for number in open_:
            span = spans[number]
            hashes[number].update(view[max(0, span.start - size) : max(0, span.end - size)])
        open_ = [number for number in open_ if spans[number].end > end]
        size = end
        tell(size)
    return Sums(size, whole.hexdigest(), tuple(each.hexdigest() for each in hashes), head)


def pieces(path: Path) -> Iterator[bytes]:
    """The bytes of an image file, unpacked, a mebibyte at a time."""
    try:
        with path.open("rb") as file, contextlib.ExitStack() as stack:
            packed = file.read(len(XZ)) == XZ
            file.seek(0)
            source = stack.enter_context(lzma.open(file)) if packed else file
            while piece := source.read(PIECE):
                yield piece
    except (EOFError, lzma.LZMAError) as error:
        told = "it ends early" if isinstance(error, EOFError) else str(error)
        raise FormatError(f"{path.name} cannot be unpacked: {told}", hint="Fetch it again.") from error
    except OSError as error:
        raise FormatError(f"{path}: {os.strerror(error.errno or 0)}") from error
