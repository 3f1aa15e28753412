"""Compression by gzip and encryption by age, piece by piece: neither side is ever whole in memory."""

import zlib
from collections.abc import Generator, Iterator
from typing import BinaryIO, Final

import pyrage
from pyrage import x25519

from appliance.backup.keys import Opener
from appliance.errors import BackupError, PassphraseError

Taker = Generator[int, bytes, None]
"""Takes bytes apart: yields how many it wants next and is sent exactly these, or fewer at the end."""

LEVEL: Final = 3
"""Of compression, 1 to 9: chats shrink to a quarter, at a rate that an SD card does not keep up with."""
GZIP: Final = 31  # zlib's window bits for a gzip header
CHUNK: Final = 2**18

AGAIN: Final = "It was cut off or changed since it was made: take another copy, or an older backup."


def seal(pieces: Iterator[bytes], out: BinaryIO, recipients: tuple[str, ...]) -> None:
    """Compress `pieces` and encrypt them into `out`, for all of the recipients.

    Raises:
        OSError: `out` refuses; whatever `pieces` raises.
    """
    reader, writer = _Pieces(compressed(pieces)), _Out(out)
    try:
        pyrage.encrypt_io(reader, writer, [x25519.Recipient.from_str(one) for one in recipients])
    except (pyrage.EncryptError, OSError):
        if not (reader.error or writer.error):
            raise
    # Looked at in any case: what fails in its last write, pyrage does not tell.
    if error := reader.error or writer.error:
        raise error


def unseal(stream: BinaryIO, taker: Taker, opener: Opener, where: str) -> None:
    """Decrypt the age file that `stream` stands before, decompress it, and have it taken apart.

    Every 64 KiB are checked before they are handed on, and that the end is the end. A taker that ends early
    ends the work.

    Raises:
        PassphraseError: this does not open it.
        BackupError: it was changed or cut off.
        OSError: it cannot be read; whatever the taker raises.
    """
    reader, writer = _In(stream), _Taken(taker, where)
    try:
        pyrage.decrypt_io(reader, writer, [x25519.Identity.from_str(opener.identity)])
    except pyrage.DecryptError as error:
        if "matching" in str(error):
            raise PassphraseError(
                f"{where}: it was not made for this passphrase or identity", hint="Try an older one."
            ) from error
        raise reader.error or BackupError(
            f"{where} is damaged: {str(error).splitlines()[0]}", hint=AGAIN
        ) from error
    except OSError as error:
        if not writer.done:
            raise reader.error or BackupError(f"{where} is damaged", hint=AGAIN) from error
    writer.finish()


def compressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """`pieces` as one gzip file, the same bytes for the same pieces."""
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
    for piece in pieces:
        if packed := deflate.compress(piece):
            yield packed
    yield deflate.flush()


class _Pieces:
    """An iterator of bytes as a file to read. Keeps what went wrong, of which pyrage keeps the text alone."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            while not self._rest:
                self._rest = next(self._pieces)
        except StopIteration:
            return b""
        except BaseException as error:
            self.error = error
            raise
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


class _In:
    """A file to read that keeps what went wrong."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except OSError as error:
            self.error = error
            raise


class _Out:
    """A file to write that keeps what went wrong, and writes nothing after it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._out.write(data)
            except BaseException as error:
                self.error = error
                raise
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here."""


class _Taken:
    """A file to write whose data is decompressed and taken apart; exceptions are kept as above.

    However much a piece becomes by decompression, no more than a chunk of it is in memory.
    """

    def __init__(self, taker: Taker, where: str) -> None:
        self._taker = taker
        self._where = where
        self._inflate = zlib.decompressobj(GZIP)
        self._held = bytearray()
        self.done = False
        self.error: BaseException | None = None
        self._wanted = next(taker)

    def write(self, data: bytes) -> int:
        if self.done:
            raise OSError("enough")
        try:
            rest = bytes(data)
            while piece := self._inflate.decompress(rest, CHUNK):
                self._take(piece)
                rest = self._inflate.unconsumed_tail
            if self._inflate.unused_data:
                raise BackupError(f"{self._where} holds more than a backup", hint=AGAIN)
        except BaseException as error:
            if not self.done:
                self.done, self.error = True, error
            raise
        return len(data)

    def finish(self) -> None:
        """The data has ended.

        Raises:
            BackupError: too early; whatever the taker raised.
        """
        if self.error is None and not self.done:
            try:
                if not self._inflate.eof:
                    raise BackupError(f"{self._where} ends too early", hint=AGAIN)
                while True:
                    piece = bytes(self._held)
                    self._held.clear()
                    self._wanted = self._taker.send(piece)
            except StopIteration:
                self.done = True
        if isinstance(self.error, zlib.error):
            raise BackupError(f"{self._where} is damaged: {self.error}", hint=AGAIN) from self.error
        if self.error is not None:
            raise self.error

    def flush(self) -> None:
        """Nothing is held back here."""

    def _take(self, piece: bytes) -> None:
        self._held += piece
        while len(self._held) >= self._wanted:
            wanted = bytes(self._held[: self._wanted])
            del self._held[: self._wanted]
            try:
                self._wanted = self._taker.send(wanted)
            except StopIteration:
                self.done = True
                raise OSError("enough") from None
