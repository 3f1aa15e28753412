"""Server-sent events: shapes, heartbeats, and sources that are closed whatever happens."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from appliance.api.sse import EventStream, event, heartbeat

pytestmark = pytest.mark.anyio


class Source:
    """A generator that notes whether it was closed."""

    def __init__(self, *items: int, error: Exception | None = None, silent: bool = False) -> None:
        self.closed = False
        self._items = items
        self._error = error
        self._silent = silent

    async def items(self) -> AsyncGenerator[int, None]:
        """The items, then the error or silence."""
        try:
            for item in self._items:
                yield item
            if self._error is not None:
                raise self._error
            if self._silent:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def test_events_are_data_lines() -> None:
    """JSON on one line, characters as themselves; strings as they are."""
    assert event({"a": "é\n"}) == 'data: {"a":"é\\n"}\n\n'.encode()
    assert event("[DONE]") == b"data: [DONE]\n\n"


async def test_heartbeat_passes_everything_on() -> None:
    """Items arrive in order, errors too, and the source is closed."""
    source = Source(1, 2, 3)
    assert [item async for item in heartbeat(source.items(), 10)] == [1, 2, 3]
    assert source.closed
    failing = heartbeat(Source(1, error=ValueError("broken")).items(), 10)
    assert await anext(failing) == 1
    with pytest.raises(ValueError, match="broken"):
        await anext(failing)


async def test_heartbeat_fills_silence() -> None:
    """While the source is silent there are beats; closing ends the source in the middle of its work."""
    source = Source(1, silent=True)
    async with contextlib.aclosing(heartbeat(source.items(), 0.001)) as beats:
        while await anext(beats) != 1:
            pass
        assert [await anext(beats) for _ in range(3)] == [None, None, None]
        assert not source.closed
    assert source.closed


@pytest.mark.parametrize("started", [False, True])
async def test_stream_closes_its_source_when_the_client_leaves(started: bool) -> None:
    """Whether or not the first event was sent, a client that hangs up ends the work behind the stream."""
    source = Source(1, silent=True)
    items = source.items()
    assert await anext(items) == 1

    async def events() -> AsyncGenerator[bytes, None]:
        if started:
            yield event(1)
        async for item in items:
            yield event(item)

    sent = asyncio.Event()

    async def receive() -> Message:
        if started:
            await sent.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sent.set()

    scope = {"type": "http", "method": "GET", "asgi": {"spec_version": "2.3"}}
    async with asyncio.timeout(10):
        await EventStream(events(), items)(scope, receive, send)
    assert source.closed
