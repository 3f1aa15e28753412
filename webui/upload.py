"""A file that comes with a form, taken to the disk piece by piece: never in memory, never in /tmp."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from appliance.errors import InvalidRequestError
from appliance.library import space

PREFIX: Final = ".uploaded-"
MAX_FIELDS: Final = 10
MAX_FIELD: Final = 8 * 1024
MAX_HEADER: Final = 4 * 1024


@dataclass
class Upload:
    """What a form brought: its text fields, and the file. `path` is where it lies until the block ends.

    `name` is the file's as the browser says it, for people only; `size` 0 where no file was chosen.
    """

    path: Path
    name: str = ""
    size: int = 0
    fields: dict[str, str] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def received(request: Request, folder: Path) -> AsyncIterator[Upload]:
    """The form of a request (multipart/form-data, RFC 7578) with one file, which goes to `folder`.

    Raises:
        InvalidRequestError: that is no such form, or it has too many or too long fields, or a second file.
        DiskFullError, LibraryError: no room.
        TooLargeError, RequestTimeoutError: as for every body.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequestError("the form brings no file", hint="Send it from Hob's own page.")
    stated = request.headers.get("content-length", "")
    with space.writing(folder):
        await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        space.ensure(folder, int(stated) if stated.isdigit() else 0, space.RESERVE)
        upload = Upload(folder / f"{PREFIX}{secrets.token_hex(8)}")
        try:
            descriptor = os.open(upload.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as out:
                parts = _Parts(upload, out)
                parser = MultipartParser(options[b"boundary"], parts.callbacks())  # type: ignore[arg-type]  # a dict
                try:
                    async for piece in request.stream():
                        await asyncio.to_thread(parser.write, piece)
                    parser.finalize()
                except FormParserError as error:
                    raise InvalidRequestError(f"the form is damaged: {error}") from error
                if not parts.ended:
                    raise InvalidRequestError("the form was cut off", hint="Send it again.")
            yield upload
        finally:
            upload.path.unlink(missing_ok=True)


class _Parts:
    """Takes the events of the parser: text into fields, the file to the disk."""

    def __init__(self, upload: Upload, out: BinaryIO) -> None:
        self._upload = upload
        self._out = out
        self._header = bytearray()
        self._value = bytearray()
        self._held = bytearray()
        self._name = ""
        self._file = False
        self._files = 0
        self.ended = False

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_end": self._done,
        }

    def _begin(self) -> None:
        self._header.clear()
        self._value.clear()
        self._held.clear()
        self._name, self._file = "", False

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._limit(self._header, MAX_HEADER)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._limit(self._value, MAX_HEADER)

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            if b"filename" in options:
                self._file = True
                self._files += 1
                if self._files > 1:
                    raise InvalidRequestError("the form brings more than one file")
                self._upload.name = options[b"filename"].decode("utf-8", "replace")[:200]
        self._header.clear()
        self._value.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if not self._file:
            self._held += data[start:end]
            self._limit(self._held, MAX_FIELD)
            return
        view = memoryview(data)[start:end]
        while view:
            view = view[self._out.write(view) :]
        self._upload.size += end - start

    def _end(self) -> None:
        if not self._file:
            self._upload.fields[self._name] = self._held.decode("utf-8", "replace")
            if len(self._upload.fields) > MAX_FIELDS:
                raise InvalidRequestError("the form has too many fields")

    def _done(self) -> None:
        self.ended = True

    def _limit(self, held: bytearray, limit: int) -> None:
        if len(held) > limit:
            raise InvalidRequestError("a field of the form is too long")
