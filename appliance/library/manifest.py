"""A model's manifest: every file with its size and SHA-256, and where the model came from.

It lies as `hob-model.json` in the model's own directory, so that a model and its manifest appear and vanish
together. A version is named after its content: the same files are the same version on every Hob.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from appliance.errors import DamagedError, InvalidRequestError
from builder.compile.mlc import CONFIG

MANIFEST = "hob-model.json"
FORMAT = 1

MAX_BYTES = 4 * 2**20
"""Largest manifest read: ten thousand files take 1.5 MB."""
MAX_FILES = 10_000
CHUNK = 2**20

# One or two plain components that are no path tricks, on any file system.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
# \Z and not $, which a line's end may follow.
FILE = r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,98}\Z"
SHA256 = r"^[0-9a-f]{64}\Z"

Size = Annotated[int, msgspec.Meta(ge=0, le=2**50)]
Text = Annotated[str, msgspec.Meta(max_length=1000)]


class File(msgspec.Struct, frozen=True, order=True):
    """One file of a model: its name in the directory, bytes, SHA-256 in hex."""

    name: Annotated[str, msgspec.Meta(pattern=FILE)]
    size: Size
    sha256: Annotated[str, msgspec.Meta(pattern=SHA256)]


class Origin(msgspec.Struct, frozen=True):
    """Where a model came from.

    Attributes:
        kind: "hub" (Hugging Face or a mirror), "url", "hob" (another Hob), "file" (a folder or file here),
            "archive" (a .hobmodel file).
        source: repository id, address, or name@host; of a file or folder its name alone, as manifests travel.
        revision: the commit of a repository; "" elsewhere.
        file: the one file of the source that was taken, as from a repository of many GGUF files.
    """

    kind: Literal["hub", "url", "hob", "file", "archive"]
    source: Text
    revision: Annotated[str, msgspec.Meta(max_length=200)] = ""
    file: Text = ""


class Manifest(msgspec.Struct, frozen=True):
    """What a model consists of. Field order is the order in the file.

    Attributes:
        format: of this file; `FORMAT`.
        name: what people call the model, without its version.
        added: Unix time in seconds; of two versions the one added later is meant by the bare name.
        origin: where it came from first. Copies keep it.
        licence: as its publisher names it ("apache-2.0"); "" when unknown.
        files: all files but the manifest, by name.
    """

    format: Literal[1]
    name: Annotated[str, msgspec.Meta(pattern=rf"^{NAME.pattern}\Z", max_length=200)]
    added: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    origin: Origin
    licence: Text
    files: Annotated[tuple[File, ...], msgspec.Meta(min_length=1, max_length=MAX_FILES)]

    @property
    def version(self) -> str:
        """Twelve hex digits of the SHA-256 of the list of files: name, size and checksum of each."""
        lines = "".join(f"{file.sha256} {file.size} {file.name}\n" for file in sorted(self.files))
        return hashlib.sha256(lines.encode()).hexdigest()[:12]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def is_meant_by(self, wanted: str) -> bool:
        """Whether what follows a name's @, version or revision and maybe cut short, means this one."""
        return len(wanted) >= 4 and (
            self.version.startswith(wanted) or self.origin.revision.startswith(wanted)
        )

    def file(self, name: str) -> File | None:
        """The file of this name."""
        return next((file for file in self.files if file.name == name), None)


def encode(manifest: Manifest) -> bytes:
    """The manifest as it is stored and sent: JSON, indented, with a line's end."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode(data: bytes, where: str) -> Manifest:
    """Read a manifest, from whomever it comes.

    Raises:
        DamagedError: too large, not JSON, a field is missing or has a value it cannot have, a file is listed
            twice, or there is no model among the files; the message starts with `where`.
    """
    if len(data) > MAX_BYTES:
        raise DamagedError(f"{where}: the manifest is larger than {MAX_BYTES >> 20} MiB")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(f"{where}: the manifest is not valid: {error}") from error
    # Two names that differ in case alone are one file on many USB sticks.
    names = [file.name.lower() for file in manifest.files]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DamagedError(f"{where}: the manifest lists {twice} twice")
    if MANIFEST in names or CONFIG not in names:
        raise DamagedError(f"{where}: the manifest does not list a model's files")
    return manifest


def read(directory: Path) -> Manifest | None:
    """The manifest in a model's directory; None where there is none, as in a directory copied by hand.

    Raises:
        DamagedError: it is there and cannot be used.
    """
    file = directory / MANIFEST
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"{file} cannot be read: {error.strerror}") from error
    return decode(data, str(file))


def checked_name(name: str) -> str:
    """`name` where it can be a model's name.

    Raises:
        InvalidRequestError: it cannot.
    """
    if not NAME.fullmatch(name) or name.endswith(".partial"):
        raise InvalidRequestError(
            f"{name[:200]!r} cannot be a model's name",
            param="name",
            hint="Names have letters, digits, '.', '_' and '-', with one '/' at the most: --name NAME.",
        )
    return name


def digest(path: Path) -> File:
    """Name, size and SHA-256 of a file as it is now.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        return File(path.name, stream.tell(), checksum)


def named(files: Iterable[File]) -> tuple[File, ...]:
    """Files in the order that manifests have."""
    return tuple(sorted(files))
