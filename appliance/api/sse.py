"""Server-sent events (HTML Living Standard, section 9.2); `event` makes OpenAI's, of data lines only."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import anyio
import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

COMMENT = b":\n\n"
"""Ignored by every client; keeps proxies and phones from hanging up while the first token is awaited."""


def event(data: Any) -> bytes:
    """One event: `data` as JSON, or as it is if it is a string."""
    return b"data: " + (data.encode() if isinstance(data, str) else msgspec.json.encode(data)) + b"\n\n"


async def heartbeat(source: AsyncGenerator[T, None], every: float) -> AsyncGenerator[T | None, None]:
    """Pass on what `source` yields, and None whenever it was silent for `every` seconds.

    Closing closes `source` as well, in the middle of its work if need be.
    """
    waiting: asyncio.Task[T] | None = None

    async def next_item() -> T:
        return await anext(source)

    try:
        while True:
            waiting = waiting or asyncio.create_task(next_item())
            await asyncio.wait([waiting], timeout=every)
            if not waiting.done():
                yield None
                continue
            done, waiting = waiting, None
            try:
                item = done.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await waiting
        await source.aclose()


class EventStream(StreamingResponse):
    """Streams `events`. Closes them and then `sources`, what they are made from, however the connection ends.

    The server cancels a response whose client is gone. A generator that is not running at that moment would
    learn of it only when it is collected, so it is closed here.
    """

    def __init__(
        self, events: AsyncGenerator[bytes | str, None], *sources: AsyncGenerator[Any, None]
    ) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            # nginx buffers responses unless told otherwise.
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
        self._sources = (events, *sources)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                for source in self._sources:
                    await source.aclose()
