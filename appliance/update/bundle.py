"""What is in an update file: asked of RAUC, which checks its signature, and held against its hash tree.

The tree is dm-verity's, version 1, SHA-256 (docs.kernel.org/admin-guide/device-mapper/verity.html). A file is
its data in blocks of 4096 bytes, the tree with its levels from the top, a signature, and eight bytes with the
signature's length. The kernel checks each block when an installation reads it; here all are checked before:
a damaged file is not to cost the slot that it would have been written to.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from appliance.errors import UpdateError

BLOCK: Final = 4096
AT_ONCE: Final = 256
"""Blocks read at a time."""


class Image(msgspec.Struct, frozen=True, rename="kebab"):
    """A part of a bundle: the kind of slot it is for, and its size in bytes."""

    slot_class: str
    size: int


class Facts(msgspec.Struct, frozen=True):
    """Which devices a bundle is for, and what it makes of them."""

    compatible: str
    version: str


class Tree(msgspec.Struct, frozen=True, rename="kebab"):
    """The hash tree; hex digits, and the size of the tree in bytes."""

    format: str
    verity_size: int
    verity_salt: str
    verity_hash: str


class Bundle(msgspec.Struct, frozen=True):
    """What RAUC tells of a file whose signature it found right (`rauc info --output-format=json-2`)."""

    update: Facts
    images: list[Image]
    bundle: Tree

    @property
    def version(self) -> str:
        """The version that it installs."""
        return self.update.version

    @property
    def compatible(self) -> str:
        """What devices it is for call themselves."""
        return self.update.compatible


def parse(text: str) -> Bundle:
    """What RAUC printed.

    Raises:
        UpdateError: the file is of a kind that this system does not install.
    """
    try:
        found = msgspec.json.decode(text, type=Bundle)
    except msgspec.MsgspecError as error:
        raise UpdateError(
            f"this file is no update that this system understands: {error}",
            hint="Was it made for a later Hob? An update between the two may be needed.",
        ) from error
    if found.bundle.format != "verity" or not found.update.version:
        raise UpdateError("this file is no update of Hob's", hint="Hob's have the ending .raucb.")
    return found


def refusal(complaint: str, file: str) -> UpdateError:
    """What RAUC's last line means to a person."""
    lower = complaint.lower()
    if "invalid bundle format" in lower or "invalid bundle" in lower or "is too small" in lower:
        return UpdateError(
            f"the file {file} is no update, or only a part of one",
            hint="Copy or download it again, to its end.",
        )
    if "certificate has expired" in lower or "not yet valid" in lower:
        return UpdateError(
            f"the file {file} was signed outside the time for which its certificate is valid",
            hint="Whoever makes the updates must renew the certificate and sign again.",
        )
    if "verify error" in lower or "signer certificate" in lower or "issuer" in lower:
        return UpdateError(
            f"the file {file} is not signed by somebody whom this device trusts",
            hint="A device takes updates only from whoever holds the keys it was built with.",
        )
    if "signature" in lower:
        return UpdateError(
            f"the file {file} is not as it was signed: it is damaged, or was tampered with",
            hint="Fetch it again.",
        )
    if "keyring" in lower:
        return UpdateError(
            "this device trusts nobody's updates: it was built without keys",
            hint="Flash an image that was built with --keys.",
        )
    return UpdateError(f"the file {file} cannot be read as an update: {complaint}")


def check_content(path: Path, tree: Tree, tell: Callable[[float], None] = lambda share: None) -> None:
    """Compare every byte of the file's data with its hash tree; `tell` hears the share that is done.

    Raises:
        UpdateError: something in it differs, or is missing.
    """
    wrong = UpdateError(
        f"the file {path.name} is damaged: its content is not what was signed",
        hint="Copy or download it again.",
    )
    try:
        salt, root = bytes.fromhex(tree.verity_salt), bytes.fromhex(tree.verity_hash)
        with path.open("rb") as file:
            length = file.seek(-8, 2)
            signature = int.from_bytes(file.read(8))
            size = length - signature - tree.verity_size
            if size <= 0 or size % BLOCK:
                raise wrong
            file.seek(0)
            levels = [_leaves(file, size, salt, tell)]
            while len(levels[-1]) > BLOCK:
                levels.append(_hashes(levels[-1], salt))
            if b"".join(reversed(levels)) != file.read(tree.verity_size):
                raise wrong
    except (OSError, ValueError) as error:
        raise UpdateError(
            f"the file {path.name} cannot be read: {error}", hint="Was the stick removed?"
        ) from error
    if _hash(levels[-1], salt) != root:
        raise wrong


def _leaves(file: BinaryIO, size: int, salt: bytes, tell: Callable[[float], None]) -> bytes:
    """The lowest level: a hash for each block of the next `size` bytes."""
    level, done = bytearray(), 0
    while done < size:
        piece = file.read(min(AT_ONCE * BLOCK, size - done))
        if not piece:
            raise ValueError("it ended early")
        level += b"".join(_hash(piece[at : at + BLOCK], salt) for at in range(0, len(piece), BLOCK))
        done += len(piece)
        tell(done / size)
    return _filled(bytes(level))


def _hashes(level: bytes, salt: bytes) -> bytes:
    """The level above."""
    return _filled(b"".join(_hash(level[at : at + BLOCK], salt) for at in range(0, len(level), BLOCK)))


def _hash(block: bytes, salt: bytes) -> bytes:
    return hashlib.sha256(salt + block).digest()


def _filled(level: bytes) -> bytes:
    """A level up to the end of its last block."""
    return level + bytes(-len(level) % BLOCK)
