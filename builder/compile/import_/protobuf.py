"""Walk a protocol buffer in a file without reading what is skipped.

Wire format: https://protobuf.dev/programming-guides/encoding/. A model's file has gigabytes of weights
between a few thousand small fields; `onnx.load` reads all of it into memory, and needs a package of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from builder.compile.import_.checkpoint import AGAIN, Files
from builder.errors import FormatError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_FIELDS = 5_000_000
MAX_TEXT = 2**11  # of one string
MAX_TEXTS = 2**26  # of all of them
CHUNK = 2**16


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message.

    Attributes:
        number: which.
        wire: its wire type.
        value: of a varint; else 0.
        start, end: where its content is in the file.
    """

    number: int
    wire: int
    value: int
    start: int
    end: int


class Message:
    """A file that holds one message. Counts the fields read, and the text: no file keeps it busy for ever."""

    def __init__(self, files: Files, file: Path) -> None:
        self.file = file
        self.size = files.size(file)
        self._files = files
        self._fields = 0
        self._texts = 0
        self._chunk, self._at = b"", 0

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message in bytes [start, end).

        Raises:
            FormatError: malformed, or longer than it may be.
        """
        at = start
        while at < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise FormatError(f"{self.file} has more than {MAX_FIELDS} fields", hint=AGAIN)
            key, at = self._varint(at, end)
            number, wire, value, begin = key >> 3, key & 7, 0, at
            if wire == VARINT:
                value, at = self._varint(at, end)
            elif wire == BYTES:
                length, begin = self._varint(at, end)
                at = begin + length
            elif wire in (FIXED64, FIXED32):
                at += 8 if wire == FIXED64 else 4
            else:
                raise FormatError(f"{self.file}: byte {at} has no protocol buffer field", hint=AGAIN)
            if at > end or number == 0:
                raise FormatError(
                    f"{self.file}: the field at byte {begin} is cut off or malformed", hint=AGAIN
                )
            yield Field(number, wire, value, begin, at)

    def text(self, field: Field) -> str:
        """The string in a field.

        Raises:
            FormatError: too long, not UTF-8, or no string.
        """
        if field.wire != BYTES or field.end - field.start > MAX_TEXT:
            raise FormatError(f"{self.file}: byte {field.start} has no short string", hint=AGAIN)
        self._texts += field.end - field.start
        if self._texts > MAX_TEXTS:
            raise FormatError(f"{self.file} has more than {MAX_TEXTS >> 20} MiB of names", hint=AGAIN)
        try:
            return self._bytes(field.start, field.end).decode()
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{self.file}: the name at byte {field.start} is not UTF-8", hint=AGAIN
            ) from error

    def integers(self, field: Field) -> list[int]:
        """The varints in a field, packed or single."""
        if field.wire == VARINT:
            return [field.value]
        if field.wire != BYTES or field.end - field.start > MAX_TEXT:
            raise FormatError(f"{self.file}: byte {field.start} has no short list of integers", hint=AGAIN)
        values, at = [], field.start
        while at < field.end:
            value, at = self._varint(at, field.end)
            values.append(value)
        return values

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for index, byte in enumerate(self._bytes(at, min(at + 10, end))):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value & (2**64 - 1), at + index + 1
        raise FormatError(f"{self.file}: the number at byte {at} is cut off or malformed", hint=AGAIN)

    def _bytes(self, start: int, end: int) -> bytes:
        """Bytes [start, end), from a chunk that is read ahead."""
        if not self._at <= start <= end <= self._at + len(self._chunk):
            self._at = start
            count = min(max(end - start, CHUNK), self.size - start)
            self._chunk = self._files.read(self.file, start, max(count, 0), f"byte {start}")
            if end - start > len(self._chunk):
                raise FormatError(f"{self.file} ends at byte {self.size}", hint=AGAIN)
        return self._chunk[start - self._at : end - self._at]
