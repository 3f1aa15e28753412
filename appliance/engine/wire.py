"""Framing of `messages` on a byte stream: a 4-byte big-endian length, then that many bytes of MessagePack."""

from asyncio import IncompleteReadError, StreamReader
from struct import Struct as Layout

import msgspec
from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from appliance.engine.messages import Reply, Request

# The longest prompt any model takes (a million ids of five bytes) fits; a broken length does not.
MAX_FRAME = 8 * 2**20

_LENGTH = Layout(">I")
_encoder = Encoder()
_requests: Decoder[Request] = Decoder(Request)
_replies: Decoder[Reply] = Decoder(Reply)


class WireError(Exception):
    """The bytes are not a message. `id` is that of the request at fault, where it can still be read."""

    def __init__(self, message: str, *, id: str | None = None) -> None:
        super().__init__(message)
        self.id = id


class _Addressed(Struct):
    """The one field that every message has."""

    id: str


_addressed = Decoder(_Addressed)


def pack(message: Request | Reply) -> bytes:
    """One frame.

    Raises:
        WireError: the message is longer than `MAX_FRAME`, or holds an integer beyond 64 bits.
    """
    try:
        body = _encoder.encode(message)
    except OverflowError as error:
        raise WireError("an integer of the message is beyond 64 bits", id=message.id) from error
    if len(body) > MAX_FRAME:
        raise WireError(
            f"{type(message).__name__} has {len(body)} bytes of at most {MAX_FRAME}", id=message.id
        )
    return _LENGTH.pack(len(body)) + body


async def read_frame(stream: StreamReader) -> bytes | None:
    """The body of the next frame; None when the stream ends between two frames.

    Raises:
        WireError: the frame is too long or cut off; the stream cannot be read on.
    """
    try:
        (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
        if length > MAX_FRAME:
            raise WireError(f"a frame of {length} bytes is announced; at most {MAX_FRAME} are taken")
        return await stream.readexactly(length)
    except IncompleteReadError as error:
        if error.expected == _LENGTH.size and not error.partial:
            return None
        raise WireError("the stream ends within a frame") from error


def parse_request(body: bytes) -> Request:
    """The request in a frame's body.

    Raises:
        WireError: unknown type, missing or wrong field; has the request's id if one can be read.
    """
    try:
        return _requests.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"not a request: {error}", id=_sender(body)) from error


def parse_reply(body: bytes) -> Reply:
    """The reply in a frame's body; raises `WireError` as `parse_request` does."""
    try:
        return _replies.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"not a reply: {error}", id=_sender(body)) from error


def _sender(body: bytes) -> str | None:
    """The id in a message that is otherwise wrong."""
    try:
        return _addressed.decode(body).id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
