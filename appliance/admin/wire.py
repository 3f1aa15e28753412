"""Framing of `messages`: one line of JSON each, ended by a newline."""

from asyncio import IncompleteReadError, LimitOverrunError, StreamReader

import msgspec

from appliance.admin.messages import Reply, Request

MAX_LINE = 1 << 20
"""Bytes of the longest message: all that a person may paste into a form fits; a broken peer does not."""

_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


class WireError(Exception):
    """The bytes are not a message; says why."""


def pack(message: Request | Reply) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


async def read_line(stream: StreamReader) -> bytes:
    """The next message's bytes. The stream's own limit must be `MAX_LINE`.

    Raises:
        WireError: the stream ended first, or the line is too long.
    """
    try:
        return await stream.readuntil(b"\n")
    except IncompleteReadError as error:
        raise WireError("the connection ended within a message") from error
    except LimitOverrunError as error:
        raise WireError(f"a message is longer than {MAX_LINE} bytes") from error


def parse_request(line: bytes) -> Request:
    """The request in a line.

    Raises:
        WireError: unknown message, missing, unknown or wrong field; names the field.
    """
    try:
        return _requests.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(str(error)) from error


def parse_reply(line: bytes) -> Reply:
    """The reply in a line; raises `WireError` as `parse_request` does."""
    try:
        return _replies.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(str(error)) from error
