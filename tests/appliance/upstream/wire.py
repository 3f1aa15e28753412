"""A server that does exactly what a test says, byte for byte."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

MODELS = {"object": "list", "data": [{"id": "small", "object": "model"}]}


@dataclass(frozen=True)
class Request:
    """What a client sent; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Wire:
    """A listening server. `chat` and `models` may be exchanged at any time.

    Attributes:
        chats: the questions that came, in order.
        looks: how often the list of models was asked for.
        left: set when a client hung up in the middle of an answer.
        tasks: one per open connection.
    """

    chat: Behaviour
    models: Behaviour
    url: str = ""
    chats: list[Request] = field(default_factory=list)
    looks: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request on one connection."""
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        try:
            request = await _read(reader)
            if request.path.endswith("/models"):
                self.looks += 1
                await self.models(request, writer)
            else:
                self.chats.append(request)
                await self.chat(request, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            self.tasks.remove(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def wire(chat: Behaviour | None = None, models: Behaviour | None = None) -> AsyncIterator[Wire]:
    """A server on a free port; by default it has one model and says "Hi"."""
    it = Wire(chat or says("Hi"), models or reply(200, MODELS))
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0, limit=2**22)
    it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield it
    finally:
        server.close()
        for task in it.tasks:
            task.cancel()
        await asyncio.gather(*it.tasks)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


def head(status: int, kind: str, **headers: str) -> bytes:
    """The beginning of a response whose end is that of the connection."""
    lines = [f"HTTP/1.1 {status} Whatever", f"content-type: {kind}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def reply(status: int, body: Any, kind: str = "application/json", **headers: str) -> Behaviour:
    """A whole response."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        writer.write(head(status, kind, content_length=str(len(content)), **headers) + content)

    return behave


def chunk(text: str = "", **others: Any) -> dict[str, Any]:
    """A piece of an answer."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **others}]}


END = (chunk(finish_reason="stop"), {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


def events(*chunks: Any) -> bytes:
    """Chunks as server-sent events; text is sent as it is."""
    data = (one if isinstance(one, str) else json.dumps(one) for one in chunks)
    return b"".join(f"data: {one}\n\n".encode() for one in data)


def says(*texts: str) -> Behaviour:
    """A complete answer."""
    return streams(events(*(chunk(text) for text in texts), *END, "[DONE]"))


def streams(*parts: bytes) -> Behaviour:
    """A stream of these bytes, written one after the other."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream"))
        for part in parts:
            writer.write(part)
            await writer.drain()

    return behave
