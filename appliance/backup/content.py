"""What lies in a backup, inside encryption and compression: a tar of plain files, the list of them first.

    manifest.json     what it is, with the size and SHA-256 of every file; `Manifest`
    proof             HMAC-SHA-256 of manifest.json in hex, by the key of the passphrase; absent without one
    hob.db            the database: chats, owner, keys; no sessions, no jobs
    models.json       the models that were here, and where each came from; `Models`
    settings.json     what was set and belongs to the house rather than to the machine
    key.json          what backups are encrypted to, for those to come; never an identity

Any tar reads it. Hob reads it strictly, as `library.archive`: the files of the manifest in its order, each a
plain file under its own name. Anything else, such as links, paths or extended headers, ends the reading.
"""

import hashlib
import hmac
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec

from appliance.backup.header import Header
from appliance.backup.keys import Key, Opener, private, proof
from appliance.backup.sealing import AGAIN, Taker
from appliance.errors import BackupError
from appliance.library.manifest import SHA256, Origin

MANIFEST: Final = "manifest.json"
PROOF: Final = "proof"
DATABASE: Final = "hob.db"
MODELS: Final = "models.json"
SETTINGS: Final = "settings.json"
KEY: Final = "key.json"
KNOWN: Final = (DATABASE, MODELS, SETTINGS, KEY)

MAX_MANIFEST: Final = 2**20
MAX_SMALL: Final = 16 * 2**20
"""Bytes of any file but the database: lists and settings, which are read into memory."""

BLOCK: Final = tarfile.BLOCKSIZE
CHUNK: Final = 2**18

Count = Annotated[int, msgspec.Meta(ge=0, le=2**60)]


class File(msgspec.Struct, frozen=True):
    """A file in a backup: its name, bytes, SHA-256 in hex."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9._-]{0,40}\Z")]
    size: Count
    sha256: Annotated[str, msgspec.Meta(pattern=SHA256)]


class Counts(msgspec.Struct, frozen=True):
    """What people would miss, counted."""

    chats: Count = 0
    messages: Count = 0
    keys: Count = 0
    owner: bool = False


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup consists of.

    Attributes:
        header: as the first line of the file says it.
        line: SHA-256 of that line in hex, which anybody could change.
        counts: of the database.
        models: how many are listed.
        steps: the schema's migrations that had been applied.
        files: all files but the manifest and its proof, in the order in which they follow.
    """

    header: Header
    line: Annotated[str, msgspec.Meta(pattern=SHA256)]
    counts: Counts
    models: Count
    steps: tuple[Annotated[str, msgspec.Meta(max_length=200)], ...]
    files: Annotated[tuple[File, ...], msgspec.Meta(min_length=1, max_length=100)]


class Model(msgspec.Struct, frozen=True):
    """A model that was here: its name, version and size in bytes, where it came from."""

    name: Annotated[str, msgspec.Meta(max_length=200)]
    version: Annotated[str, msgspec.Meta(max_length=40)]
    size: Count
    origin: Origin
    licence: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class Models(msgspec.Struct, frozen=True):
    """The models that were here, and which answered when nobody chose; "" where nobody had chosen."""

    models: tuple[Model, ...] = ()
    default: Annotated[str, msgspec.Meta(max_length=400)] = ""


def pack(manifest: Manifest, key: Key, sources: Mapping[str, bytes | Path]) -> Iterator[bytes]:
    """The tar, piece by piece. `sources` has the content of every file that the manifest lists."""
    data = msgspec.json.encode(manifest)
    created = manifest.header.created
    yield from _member(MANIFEST, data, created)
    if key.proof:
        yield from _member(PROOF, key.prove(data).encode(), created)
    for file in manifest.files:
        source = sources[file.name]
        if isinstance(source, bytes):
            yield from _member(file.name, source, created)
            continue
        yield _header(file.name, file.size, created)
        with source.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
        yield bytes(-file.size % BLOCK)
    yield bytes(2 * BLOCK)


class Unpacking:
    """Reads the tar of a backup into a folder, or its manifest alone where there is no folder.

    Attributes:
        manifest: what is in it, once that was read.
        proven: whether the passphrase's own proof stands under it.
    """

    def __init__(self, where: str, line: bytes, opener: Opener, folder: Path | None) -> None:
        self._where = where
        self._line = hashlib.sha256(line).hexdigest()
        self._opener = opener
        self._folder = folder
        self.manifest: Manifest | None = None
        self.proven = False

    def taker(self) -> Taker:
        """Takes the tar's bytes.

        Raises (into whom sends):
            BackupError: anything is not exactly as the manifest says; names the member.
            OSError: the disk refuses.
        """
        name, size = self._next((yield BLOCK))
        if name != MANIFEST or size > MAX_MANIFEST:
            raise self._damaged("it does not begin with its manifest")
        data = yield size
        yield -size % BLOCK
        block = yield BLOCK
        name, size = self._next(block)
        if name == PROOF and size == 64:
            given = yield size
            yield -size % BLOCK
            if self._opener.proof and not hmac.compare_digest(
                given, proof(self._opener.proof, data).encode()
            ):
                raise self._damaged("it was made by somebody who does not know the passphrase")
            self.proven = bool(self._opener.proof)
            block = yield BLOCK
        elif self._opener.proof:
            raise self._damaged("it was made by somebody who does not know the passphrase")
        self.manifest = self._decoded(data)
        if self._folder is None:
            return
        for number, file in enumerate(self.manifest.files):
            if number:
                block = yield BLOCK
            if self._next(block) != (file.name, file.size):
                raise self._damaged(f"{file.name} is not where its manifest says")
            yield from self._write(self._folder / file.name, file)
            yield -file.size % BLOCK
        while rest := (yield CHUNK):
            if any(rest):
                raise self._damaged("it holds more than its manifest lists")

    def _write(self, path: Path, file: File) -> Taker:
        digest, left = hashlib.sha256(), file.size
        with open(path, "xb", opener=private) as out:
            while left:
                chunk = yield min(CHUNK, left)
                if not chunk:
                    raise self._damaged(f"it ends within {file.name}")
                out.write(chunk)
                digest.update(chunk)
                left -= len(chunk)
        if digest.hexdigest() != file.sha256:
            raise self._damaged(f"{file.name} has SHA-256 {digest.hexdigest()}, expected {file.sha256}")

    def _decoded(self, data: bytes) -> Manifest:
        try:
            manifest = msgspec.json.decode(data, type=Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._damaged(f"its manifest is not valid: {error}") from error
        names = [file.name for file in manifest.files]
        if len(set(names)) != len(names) or DATABASE not in names:
            raise self._damaged("its manifest lists no database, or a file twice")
        if any(file.size > MAX_SMALL for file in manifest.files if file.name != DATABASE):
            raise self._damaged("its manifest lists a file that is too large")
        if manifest.line != self._line:
            raise self._damaged("its first line was changed")
        return manifest

    def _next(self, block: bytes) -> tuple[str, int]:
        """Name and size in a header block, which must be a plain file's."""
        try:
            # One block and no more: no extended header is ever followed, however long it says it is.
            found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._damaged(f"a member has no header ({error})") from error
        if found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or found.size < 0:
            raise self._damaged(f"{found.name[:100]!r} is not a plain file")
        return found.name, found.size

    def _damaged(self, why: str) -> BackupError:
        return BackupError(f"{self._where} cannot be used: {why}", hint=AGAIN)


def _member(name: str, data: bytes, created: int) -> Iterator[bytes]:
    yield _header(name, len(data), created) + data + bytes(-len(data) % BLOCK)


def _header(name: str, size: int, created: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, created, 0o600
    # GNU's form is ustar's, but holds sizes of 8 GiB and more.
    return member.tobuf(tarfile.GNU_FORMAT)
