"""A request body is small and arrives in good time, or it does not reach the application."""

from collections.abc import Mapping

import anyio
from starlette.types import Message, Receive

from appliance.errors import InvalidRequestError, RequestTimeoutError, TooLargeError

# Longest pause between two pieces of a body. A phone on bad Wi-Fi stalls for seconds, not for this long.
STALL_SECONDS = 20.0


def announced_length(headers: Mapping[str, str]) -> int | None:
    """The Content-Length a request states, or None.

    Raises:
        InvalidRequestError: it is not a number.
    """
    stated = headers.get("content-length")
    if stated is None:
        return None
    if not (stated.isascii() and stated.isdigit()) or len(stated) > 15:
        raise InvalidRequestError("Content-Length is not a number.")
    return int(stated)


def check_length(length: int | None, limit: int) -> None:
    """Refuse a body that states it is over `limit` bytes.

    Raises:
        TooLargeError: it does; the message has both numbers.
    """
    if length is not None and length > limit:
        raise TooLargeError(f"The request body has {length} bytes; the limit is {limit}.")


def limited(receive: Receive, limit: int, stall: float = STALL_SECONDS) -> Receive:
    """`receive` that raises once more than `limit` body bytes came, or none for `stall` seconds.

    After the last piece it waits without a limit of time: then it only reports that the client went away.

    Raises (when called):
        TooLargeError, RequestTimeoutError.
    """
    received = 0
    complete = False

    async def receive_limited() -> Message:
        nonlocal received, complete
        if complete:
            return await receive()
        try:
            with anyio.fail_after(stall):
                message = await receive()
        except TimeoutError:
            raise RequestTimeoutError(f"No byte of the request body came for {stall:g} seconds.") from None
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limit:
                raise TooLargeError(f"The request body has more than {limit} bytes, which is the limit.")
        return message

    return receive_limited
