"""One file for a whole model, `NAME.hobmodel`: an uncompressed tar whose first member is the manifest.

Any tar reads it. Hob reads it strictly: after the manifest come exactly the files that it lists, in its
order, each a plain file of the size it says (ustar, POSIX.1-1988). Anything else, links, folders, devices,
names with a path, extended headers, is refused where it is met, before it can mean anything.
"""

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from appliance.errors import ConflictError, DamagedError
from appliance.library import manifest, space
from appliance.library.manifest import MANIFEST, MAX_BYTES, Manifest
from appliance.library.shelf import put

SUFFIX = ".hobmodel"
BLOCK = tarfile.BLOCKSIZE
CHUNK = 2**20
AGAIN = "Export it again where it came from."

Written = Callable[[int], None]
"""Told, again and again, how many bytes of the model's files are done."""


def size(kept: Manifest) -> int:
    """Bytes of the archive of a model: every member has a header block and is padded to whole blocks."""
    members = [len(manifest.encode(kept)), *(file.size for file in kept.files)]
    return sum(BLOCK + -(-member // BLOCK) * BLOCK for member in members) + 2 * BLOCK


def stream(kept: Manifest, directory: Path) -> Iterator[bytes]:
    """The archive of a model, piece by piece; every file is compared with its checksum on the way.

    Raises:
        DamagedError: a file of the model is damaged; names it.
    """
    data = manifest.encode(kept)
    yield _header(MANIFEST, len(data), kept.added) + data + _padding(len(data))
    for file in kept.files:
        yield _header(file.name, file.size, kept.added)
        yield from _content(directory / file.name, file)
        yield _padding(file.size)
    yield bytes(2 * BLOCK)


def write(kept: Manifest, directory: Path, target: Path, written: Written, *, replace: bool = False) -> None:
    """Write a model to a file, all of it or nothing; every file is compared with its checksum on the way.

    Raises:
        ConflictError: `target` exists, and not `replace`.
        DamagedError: a file of the model is damaged; names it.
        DiskFullError, LibraryError: no room, a stick that is gone or that holds no file of this size.
    """
    if target.exists() and not replace:
        raise ConflictError(f"{target} already exists", hint="Choose another file, or --force.")
    with space.writing(target.parent):
        space.ensure(target.parent, size(kept), reserve=0)
        partial = target.with_name(f".{target.name}.part")
        try:
            with partial.open("wb") as out:
                done = 0
                for piece in stream(kept, directory):
                    out.write(piece)
                    done += len(piece)
                    written(min(done, kept.size))
            put(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def looks_like(path: Path) -> bool:
    """Whether a file begins as a .hobmodel file does."""
    with path.open("rb") as stream:
        head = stream.read(BLOCK)
    return head.startswith(MANIFEST.encode() + b"\0") and head[257:262] == b"ustar"


def peek(path: Path) -> Manifest:
    """The manifest of an archive, held against the length of the file.

    Raises:
        DamagedError: it is not one, or was cut off.
        LibraryError: it cannot be read.
    """
    with space.writing(path), path.open("rb") as stream:
        kept = _manifest(stream, path)
        if (there := os.fstat(stream.fileno()).st_size) < size(kept) - 2 * BLOCK:
            raise DamagedError(
                f"{path} has {there} bytes, {size(kept)} are needed: it was cut off", hint=AGAIN
            )
    return kept


def unpack(path: Path, directory: Path, written: Written) -> Manifest:
    """Write the files of an archive into an empty directory, each compared with its checksum.

    Raises:
        DamagedError: anything in it is not exactly as its manifest says; names the member.
        DiskFullError, LibraryError: the disk refuses, or the stick is gone.
    """
    with space.writing(path), path.open("rb") as stream:
        kept = _manifest(stream, path)
        done = 0
        for file in kept.files:
            name, length = _member(stream, path)
            if (name, length) != (file.name, file.size):
                raise DamagedError(
                    f"{path}: {name[:200]!r} of {length} bytes where the manifest has {file.name!r}"
                    f" of {file.size}",
                    hint=AGAIN,
                )
            digest, left = hashlib.sha256(), file.size
            with (directory / file.name).open("xb") as out:
                while left:
                    chunk = stream.read(min(CHUNK, left))
                    if not chunk:
                        raise DamagedError(f"{path} ends within {file.name}: it was cut off", hint=AGAIN)
                    out.write(chunk)
                    digest.update(chunk)
                    left -= len(chunk)
                    written(done + file.size - left)
            if digest.hexdigest() != file.sha256:
                raise DamagedError(
                    f"{path}: {file.name} is damaged: SHA-256 {digest.hexdigest()}, expected {file.sha256}",
                    hint=AGAIN,
                )
            _skip(stream, file.size, path)
            done += file.size
        if any(stream.read(BLOCK)):
            raise DamagedError(f"{path} holds more than its manifest lists", hint=AGAIN)
    return kept


def _manifest(stream: BinaryIO, path: Path) -> Manifest:
    name, length = _member(stream, path)
    if name != MANIFEST or length > MAX_BYTES:
        raise DamagedError(f"{path} does not begin with a model's manifest", hint="It is no .hobmodel file.")
    data = stream.read(length)
    _skip(stream, length, path)
    return manifest.decode(data, str(path))


def _member(stream: BinaryIO, path: Path) -> tuple[str, int]:
    """Name and size in the next header block, which must be a plain file's."""
    block = stream.read(BLOCK)
    try:
        # One block and no more: no extended header is ever followed, however long it says it is.
        found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DamagedError(f"{path} is damaged or cut off: {error}", hint=AGAIN) from error
    if found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or found.size < 0:
        raise DamagedError(f"{path}: {found.name[:200]!r} is not a plain file", hint=AGAIN)
    return found.name, found.size


def _header(name: str, length: int, added: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = length, added, 0o644
    # GNU's form is ustar's, but holds sizes of 8 GiB and more.
    return member.tobuf(tarfile.GNU_FORMAT)


def _padding(length: int) -> bytes:
    return bytes(-length % BLOCK)


def _skip(stream: BinaryIO, length: int, path: Path) -> None:
    """Read past the padding of a member."""
    if len(stream.read(-length % BLOCK)) != -length % BLOCK:
        raise DamagedError(f"{path} was cut off", hint=AGAIN)


def _content(file: Path, wanted: manifest.File) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            yield chunk
    if digest.hexdigest() != wanted.sha256:
        raise DamagedError(
            f"{file} is damaged: SHA-256 {digest.hexdigest()}, expected {wanted.sha256}",
            hint="Add the model again before you export it.",
        )
