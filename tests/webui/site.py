"""The real service in this process, with an engine whose answers wait for the test."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import msgspec
import uvicorn

from appliance.app import create_app
from appliance.config import load_settings
from appliance.engine.client import EngineClient
from appliance.engine.messages import Finished, Generate, ModelRef, Stats, Text, Tokens
from appliance.errors import EngineUnavailableError
from appliance.store import Store
from tests.service import GOLDEN, MODEL, START_SECONDS, TINY


class PacedEngine:
    """The real engine, read by the test's leave: an answer waits at `allowed` tokens until more are allowed.

    `failing` makes answers break off there instead. Answers that begin while they are held back always have
    the same 80 tokens, so that no model's whim ends one before the test has looked at it.
    """

    def __init__(self) -> None:
        self._engine = EngineClient(threads=1)
        self._started = False
        self.allowed = 0
        self.failing = False

    def hold(self, tokens: int) -> None:
        """From now on, answers wait after so many tokens."""
        self.allowed, self.failing = tokens, False

    def release(self) -> None:
        """Let all answers run to their end."""
        self.allowed, self.failing = 1_000_000, False

    def fail(self) -> None:
        """Break off all answers that wait."""
        self.failing = True

    async def load(self, model: ModelRef) -> None:
        """As the engine, which starts with the first call, in the loop that uses it."""
        if not self._started:
            self._started = True
            await self._engine.start()
        await self._engine.load(model)

    async def unload(self) -> None:
        """As the engine."""
        await self._engine.unload()

    async def generate(self, request: Generate) -> AsyncGenerator[Tokens | Text | Finished, None]:
        """As the engine, token by token."""
        if self.allowed < request.max_tokens:
            sampling = msgspec.structs.replace(request.sampling, seed=7)
            request = msgspec.structs.replace(request, stop_token_ids=[], max_tokens=80, sampling=sampling)
        given = 0
        async with aclosing(self._engine.generate(request)) as replies:
            async for reply in replies:
                if not isinstance(reply, Tokens):
                    yield reply
                    continue
                for token in reply.tokens:
                    while given >= self.allowed:
                        if self.failing:
                            raise EngineUnavailableError(
                                "The engine has stopped", hint="Ask again.", retry_after=1
                            )
                        await asyncio.sleep(0.01)
                    given += 1
                    yield Tokens(id=reply.id, tokens=[token])

    async def stats(self) -> Stats:
        """As the engine."""
        return await self._engine.stats()

    async def close(self) -> None:
        """As the engine."""
        await self._engine.close()


@dataclass
class Site:
    """A running service: address, database, pace of its answers, code for its first owner, data folder."""

    url: str
    store: Store
    engine: PacedEngine
    code: str
    folder: Path

    def chat(self, question: str, answer: str) -> str:
        """Write a finished conversation into the database; its address."""
        asked, row = self.store.ask(None, question, MODEL, {})
        self.store.finish(row.id, state="done", content=answer, finish="stop")
        return f"{self.url}/chats/{asked.chat_id}"


@contextmanager
def serve(folder: Path, libraries: Path, model: str | None = MODEL) -> Iterator[Site]:
    """A service on an empty folder, with the compiled `libraries`, in a thread of its own.

    `model` None leaves the default model to the service.
    """
    (folder / "models").mkdir()
    (folder / "models" / TINY).symlink_to(GOLDEN / "llama3rope" / "q4f16_1")
    (folder / "libraries").symlink_to(libraries)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = load_settings(data_dir=folder, port=port, model=model)
    engine = PacedEngine()
    app = create_app(settings, engine)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, proxy_headers=False, timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="page service", daemon=True
    )
    # A second connection to the same file, as SQLite allows: the service's own belongs to its thread.
    store = Store(folder / "hob.db")
    thread.start()
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url)
        yield Site(url, store, engine, app.state.gate.owner.setup_code, folder)
    finally:
        engine.release()
        server.should_exit = True
        thread.join(30)
        store.close()
        listener.close()
    assert not thread.is_alive()


def _wait_until_ready(url: str) -> None:
    """Return once the service's model is loaded."""
    deadline = time.monotonic() + START_SECONDS
    while httpx2.get(f"{url}/healthz").status_code != 200:
        assert time.monotonic() < deadline, "the service did not become ready"
        time.sleep(0.05)
