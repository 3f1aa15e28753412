"""The service's side of the engine: starts the process, keeps it running, carries requests and replies."""

import asyncio
import contextlib
import logging
import math
import socket
import sys
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from appliance.engine import wire
from appliance.engine.base import Engine
from appliance.engine.messages import (
    AskStats,
    Cancel,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    ModelRef,
    Reply,
    Stats,
    Text,
    Tokens,
)
from appliance.errors import (
    ContextLengthError,
    DeviceError,
    EngineUnavailableError,
    HobError,
    InvalidRequestError,
    ModelLoadError,
)

log = logging.getLogger(__name__)

# Seconds: until a new process must have answered; that a request waits for a restart; from SIGTERM to
# SIGKILL, a little more than the process gives its own last step.
START_TIMEOUT = 30.0
READY_TIMEOUT = 10.0
STOP_TIMEOUT = 8.0

_ERRORS: dict[str, type[HobError]] = {
    error.code: error
    for error in (
        ContextLengthError,
        DeviceError,
        EngineUnavailableError,
        InvalidRequestError,
        ModelLoadError,
    )
}


@dataclass(slots=True)
class Backoff:
    """Seconds to wait before each restart: doubling from `first` to `ceiling`, anew after a `stable` run."""

    first: float = 0.25
    ceiling: float = 30.0
    stable: float = 60.0
    _next: float = 0.0

    def after(self, lived: float) -> float:
        """The pause after a process that lived so many seconds."""
        pause = self.first if lived >= self.stable or not self._next else self._next
        self._next = min(2 * pause, self.ceiling)
        return pause


class Link:
    """One connection to an engine process.

    Replies wait for their reader without bound of their own: a request has at most a context window of them.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._routes: dict[str, asyncio.Queue[Reply | None]] = {}
        self._open = True

    async def run(self) -> None:
        """Deliver replies until the connection ends, then end every open request."""
        try:
            while (body := await wire.read_frame(self._reader)) is not None:
                reply = wire.parse_reply(body)
                if queue := self._routes.get(reply.id):  # else it was closed early
                    queue.put_nowait(reply)
        except (wire.WireError, ConnectionError) as error:
            log.warning("connection to the engine: %s", error)
        finally:
            self.close()

    def close(self) -> None:
        """End the connection and every open request. May be called again."""
        self._open = False
        for queue in self._routes.values():
            queue.put_nowait(None)
        self._writer.transport.abort()

    def exchange(self, request: Load | Generate | AskStats) -> AsyncGenerator[Reply, None]:
        """Send a request now; iterate over the result for its replies, up to the one that ends it.

        Closing the iterator early cancels the request.

        Raises:
            EngineUnavailableError: the connection has ended, or ends before the last reply.
            InvalidRequestError: the id is in use, or the request too large to send.
            HobError: the engine answered `Failed`.
        """
        if not self._open:
            raise stopped()
        if request.id in self._routes:
            raise InvalidRequestError(f"request id {request.id!r} is in use", param="id")
        try:
            self._writer.write(wire.pack(request))
        except wire.WireError as error:
            raise InvalidRequestError(str(error)) from error
        queue = self._routes[request.id] = asyncio.Queue()
        return self._replies(request.id, queue)

    async def _replies(
        self, request_id: str, queue: asyncio.Queue[Reply | None]
    ) -> AsyncGenerator[Reply, None]:
        """What `exchange` gives."""
        ended = False
        try:
            while not ended:
                reply = await queue.get()
                ended = not isinstance(reply, Tokens | Text)
                if reply is None:
                    raise stopped()
                if isinstance(reply, Failed):
                    raise raised(reply)
                yield reply
        finally:
            del self._routes[request_id]
            if not ended and self._open:
                self._writer.write(wire.pack(Cancel(id=request_id)))

    async def ask(self, request: Load | AskStats) -> Reply:
        """The one reply to a request that has one; raises as `exchange` does."""
        async with aclosing(self.exchange(request)) as replies:
            return await anext(replies)


class EngineClient(Engine):
    """An engine process, spawned and kept running, or one that runs on its own.

    A spawned process ends with this one, however this one ends. When the process dies, every open request
    raises `EngineUnavailableError` at once; it is started again, after a pause that grows while it keeps
    dying, and the model that was loaded last is loaded again. Requests in the meantime wait a while.
    """

    def __init__(
        self,
        *,
        threads: int = 0,
        worker_command: Sequence[str] | None = None,
        address: Path | None = None,
    ) -> None:
        """Nothing happens before `start`.

        Args:
            threads: of the spawned process; 0 means one per physical core.
            worker_command: what to spawn instead of this Python's `appliance.engine.worker`; it is given
                `--fd` and `--threads`.
            address: socket file of a process that something else keeps running; nothing is spawned then.
        """
        self._address = address
        self._threads = threads
        self._command = worker_command or (sys.executable, "-m", "appliance.engine.worker")
        self._keeper: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._changed = asyncio.Event()  # set while there is a link, and for good by `close`
        self._closed = False
        self._next_try = 0.0
        self._model: ModelRef | None = None
        self._deaths: Counter[ModelRef] = Counter()

    async def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            EngineUnavailableError: it does not yet; trying goes on until `close`.
        """
        assert self._keeper is None
        if not self._closed:
            self._keeper = asyncio.create_task(self._keep(), name="engine")
            self._keeper.add_done_callback(_log_defect)
        await self._ready()

    async def load(self, model: ModelRef) -> None:
        """As `Engine.load`."""
        link = await self._ready()
        replies = link.exchange(Load(id=uuid.uuid4().hex, model=model))
        with self._watching(model):
            async with aclosing(replies):
                await anext(replies)

    async def unload(self) -> None:
        """As `Engine.unload`. A process that is started again loads nothing either."""
        link = await self._ready()
        await link.ask(Load(id=uuid.uuid4().hex, model=None))
        self._model = None

    async def generate(self, request: Generate) -> AsyncGenerator[Tokens | Text | Finished, None]:
        """As `Engine.generate`. `request.id` is unique among open requests.

        Raises:
            ContextLengthError, InvalidRequestError: the request does not suit the model.
        """
        link = await self._ready()
        replies = link.exchange(request)
        async with aclosing(replies):
            with self._watching(request.model):
                first = await anext(replies)
            assert isinstance(first, Tokens | Text | Finished)
            yield first
            async for reply in replies:
                assert isinstance(reply, Tokens | Text | Finished)
                yield reply

    async def stats(self) -> Stats:
        """As `Engine.stats`; raises `EngineUnavailableError` when the engine is down."""
        link = await self._ready()
        reply = await link.ask(AskStats(id=uuid.uuid4().hex))
        assert isinstance(reply, Stats)
        return reply

    async def close(self) -> None:
        """As `Engine.close`; the spawned process has ended when this returns."""
        self._closed = True
        self._changed.set()
        if self._keeper:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    @contextlib.contextmanager
    def _watching(self, model: ModelRef) -> Iterator[None]:
        """While a model may be loading: remember it when it works, and what happens when it does not.

        A driver's fault can end the process. Its death may also have had another cause, the first time.

        Raises:
            DeviceError: the process died for the second time in a row while this model was to be loaded on
                something other than the processor.
        """
        try:
            yield
        except EngineUnavailableError as error:
            if self._closed or model.target == "cpu" or self._model == model:
                raise
            self._deaths[model] += 1
            if self._deaths[model] < 2:
                raise
            raise DeviceError(f"the engine died twice while it loaded {model.directory}") from error
        self._deaths.pop(model, None)
        self._model = model

    async def _ready(self) -> Link:
        """The connection, waiting for a restart if it comes soon."""
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(0 if self._next_try - now > READY_TIMEOUT else READY_TIMEOUT):
                while self._link is None:
                    if self._closed or self._keeper is None:
                        raise EngineUnavailableError("the engine is switched off", retry_after=1)
                    await self._changed.wait()
        except TimeoutError:
            pause = max(1, math.ceil(self._next_try - asyncio.get_running_loop().time()))
            raise EngineUnavailableError(
                "the engine is not running", hint="Its messages are in the log.", retry_after=pause
            ) from None
        return self._link

    async def _keep(self) -> None:
        """Keep a process and a connection until cancelled."""
        clock = asyncio.get_running_loop().time
        backoff = Backoff()
        while True:
            began = clock()
            try:
                async with self._connection() as link:
                    await self._converse(link)
            except (HobError, OSError, TimeoutError) as error:
                log.warning("the engine does not start: %s", str(error) or type(error).__name__)
            pause = backoff.after(clock() - began)
            self._next_try = clock() + pause
            log.warning("the engine is gone; trying again in %.2f s", pause)
            await asyncio.sleep(pause)

    async def _converse(self, link: Link) -> None:
        """Offer a connection to requests until it ends."""
        tasks = [asyncio.create_task(link.run(), name="engine replies")]
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await link.ask(AskStats(id=uuid.uuid4().hex))
            if self._model:
                # Forgotten until it is loaded: a model that kills the engine must not do so for ever.
                model, self._model = self._model, None
                load = Load(id=uuid.uuid4().hex, model=model)
                tasks.append(asyncio.create_task(self._reload(model, link.exchange(load))))
            self._link = link
            self._changed.set()
            await tasks[0]
        finally:
            link.close()
            self._link = None
            if not self._closed:
                self._changed.clear()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _reload(self, model: ModelRef, replies: AsyncGenerator[Reply, None]) -> None:
        """Wait for the model that was loaded before the restart."""
        async with aclosing(replies):
            try:
                reply = await anext(replies)
            except HobError as error:
                log.warning("%s is not loaded again: %s", model.directory, error)
            else:
                assert isinstance(reply, Loaded)
                self._model = self._model or model

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Link]:
        """A connection, to a process that lasts as long as the context if it is ours to start."""
        if self._address:
            yield Link(*await asyncio.open_unix_connection(self._address))
            return
        ours, theirs = socket.socketpair()
        try:
            async with self._process(theirs):
                yield Link(*await asyncio.open_unix_connection(sock=ours))
        finally:
            ours.close()

    @contextlib.asynccontextmanager
    async def _process(self, theirs: socket.socket) -> AsyncIterator[None]:
        """The spawned process; ended, by force if need be, when the context ends."""
        with theirs:  # our copy must go, or the process's death would not end the stream
            fd = theirs.fileno()
            process = await asyncio.create_subprocess_exec(
                *(*self._command, "--fd", str(fd), "--threads", str(self._threads)),
                pass_fds=[fd],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal reaches the service alone, which then ends us
            )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            # Not `asyncio.timeout`: before Python 3.11.3 it does not fire in a task that is being cancelled.
            ending = asyncio.create_task(process.wait())
            await asyncio.wait([ending], timeout=STOP_TIMEOUT)
            if not ending.done():
                log.warning("the engine does not end; killing it")
                process.kill()
            await ending
            log.log(
                logging.INFO if self._closed else logging.WARNING,
                "the engine ended with status %d",  # negative: the signal's number
                process.returncode,
            )


def stopped() -> EngineUnavailableError:
    """What a request meets whose engine dies."""
    return EngineUnavailableError(
        "the engine stopped", hint="It starts again by itself; send the request again.", retry_after=1
    )


def raised(failed: Failed) -> HobError:
    """The error that `failed` stands for."""
    error = _ERRORS.get(failed.code, HobError)
    return error(failed.message, hint=failed.hint, code=failed.code)


def _log_defect(task: asyncio.Task[None]) -> None:
    """The keeper ends by being cancelled, or else by a defect that must be seen."""
    if not task.cancelled() and (error := task.exception()):
        log.critical("the engine is no longer watched", exc_info=error)
