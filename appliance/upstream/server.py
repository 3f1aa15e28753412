"""One address of another server: looked at now and then, and asked for answers."""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import cast

import httpx2 as httpx

from appliance.domain import Delta, FinishReason, Timings, Usage
from appliance.errors import SettingsError
from appliance.upstream.key import read_key
from appliance.upstream.protocol import (
    Failure,
    Listed,
    Piece,
    one_line,
    parse_event,
    parse_models,
    refusal,
)
from appliance.upstream.settings import Upstream

log = logging.getLogger(__name__)

LOOK_TIMEOUT = 5.0
"""Seconds that a list of models may take."""

MAX_LIST = 8 * 2**20  # bytes of a list of models
MAX_COMPLAINT = 2**16  # bytes of a refusal that are read
MAX_EVENT = 2**20  # bytes of one event
MAX_STREAM = 2**26  # characters of all events of one answer, so that what collects it stays bounded
TRAILER = 5.0  # seconds that the token counts may come after the last token


class Server:
    """One address, what is known about it, and how to ask it.

    Attributes:
        models: its models by name, as of the last successful look; None while it has never told.
        problem, hint: why it cannot be asked, and the next step; empty when it can, as far as is known.
        looked: set once the first look has ended, one way or the other.
        doubted: set when it failed since the last look.
    """

    def __init__(self, upstream: Upstream, url: str, client: httpx.AsyncClient) -> None:
        self.upstream = upstream
        self.url = url
        self.models: Mapping[str, Listed] | None = None
        self.problem = self.hint = ""
        self.looked = asyncio.Event()
        self.doubted = asyncio.Event()
        self._client = client
        self._rests_until = 0.0

    @property
    def rest(self) -> float:
        """Seconds for which it has asked to be left alone; 0 when it may be asked."""
        return max(0.0, self._rests_until - time.monotonic())

    def may_have(self, model: str) -> bool:
        """Whether it has this model, or has never told which ones it has."""
        return self.models is None or model in self.models

    async def look(self) -> None:
        """Ask for its models: that tells whether it is there, takes the key, and is such a server at all."""
        self.doubted.clear()
        try:
            async with asyncio.timeout(LOOK_TIMEOUT), self._opened("GET", "/models") as response:
                self.models = parse_models(await self._body(response))
            self._note("")
        except TimeoutError:
            self._note(f"it did not list its models within {LOOK_TIMEOUT:g} seconds")
        except ValueError as error:
            self._note(f"what it sends is no list of models: {one_line(str(error))}")
        except Failure as failure:
            self._rests_until = time.monotonic() + failure.rest
            self._note(failure.error.message, failure.error.hint)
        finally:
            self.looked.set()

    def failed(self, failure: Failure) -> None:
        """Remember what an answer failed of."""
        self._rests_until = time.monotonic() + failure.rest
        if failure.down:
            self._note(failure.down, failure.error.hint)
            self.doubted.set()

    async def answer(self, body: bytes) -> AsyncGenerator[Delta, None]:
        """Send a request and pass on its answer. Closing the generator closes the connection.

        Raises:
            Failure: it did not answer, or not to the end.
        """
        began = time.monotonic()
        deadline, first = began + self.upstream.first_token_timeout, 0.0
        finish: FinishReason | None = None
        usage: Usage | None = None
        size = 0
        async with self._events(body, deadline) as events:
            while True:
                try:
                    data = await self._next(events, deadline)
                except Failure:
                    if finish:  # all that could still come were the token counts
                        break
                    raise
                if data is None:
                    break
                size += len(data)
                piece = self._read(data, size)
                now = time.monotonic()
                if piece.alive:
                    first, deadline = first or now, now + self.upstream.token_timeout
                if piece.text or piece.logprobs:
                    yield Delta(text=piece.text, logprobs=piece.logprobs)
                if piece.finish:
                    finish, deadline = piece.finish, now + TRAILER
                usage = piece.usage or usage
        if finish is None:
            raise Failure.broken("it ended the stream before the answer was complete")
        now = time.monotonic()
        first = first or now
        timings = Timings(queue=0.0, prefill=first - began, decode=now - first)
        yield Delta(finish=finish, usage=usage, timings=timings)

    def _read(self, data: str, size: int) -> Piece:
        """What an event says; `size` is that of all events so far."""
        if size > MAX_STREAM:
            raise Failure.broken(f"its answer is longer than {MAX_STREAM} characters")
        try:
            return parse_event(data)
        except ValueError as error:
            raise Failure.broken(f"it sends what is no part of an answer: {one_line(str(error))}") from error

    @contextlib.asynccontextmanager
    async def _events(
        self, body: bytes, deadline: float
    ) -> AsyncIterator[AsyncGenerator[httpx.ServerSentEvent, None]]:
        """The events that answer a request; the headers must have come by `deadline`."""
        async with contextlib.AsyncExitStack() as stack:
            opened = self._opened("POST", "/chat/completions", body)
            # Not a block around the whole: every piece may be read by another task.
            async with _by(deadline, "it did not begin to answer"):
                response = await stack.enter_async_context(opened)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "text/event-stream":
                raise Failure.broken(
                    f"it answers with {one_line(kind) or 'nothing'} instead of a stream of events"
                )
            source = httpx.EventSource(response, max_event_size=MAX_EVENT)
            events = cast("AsyncGenerator[httpx.ServerSentEvent, None]", aiter(source))  # which it is
            yield await stack.enter_async_context(contextlib.aclosing(events))

    async def _next(self, events: AsyncGenerator[httpx.ServerSentEvent, None], deadline: float) -> str | None:
        """The data of the next event; None at the end of the stream, or of the answer."""
        with _transport():
            async with _by(deadline, "it stopped sending tokens"):
                event = await anext(events, None)
        return None if event is None or event.data == "[DONE]" else event.data

    @contextlib.asynccontextmanager
    async def _opened(
        self, method: str, path: str, body: bytes | None = None
    ) -> AsyncIterator[httpx.Response]:
        """A response with status 200, of which nothing but the headers is read yet."""
        async with contextlib.AsyncExitStack() as stack:
            with _transport():
                response = await stack.enter_async_context(
                    self._client.stream(method, self.url + path, content=body, headers=self._headers())
                )
                if response.status_code != 200:
                    raise await self._refused(response)
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise Failure.broken("it compresses its answer, although it was asked not to")
            yield response

    def _headers(self) -> dict[str, str]:
        """Of every request: FastAPI's servers take no body that is not called JSON."""
        headers = {"content-type": "application/json"}
        if self.upstream.key_file is None:
            return headers
        try:
            return {**headers, "authorization": f"Bearer {read_key(self.upstream.key_file)}"}
        except SettingsError as error:
            raise Failure.broken(error.message, error.hint, retry_after=60) from error

    async def _refused(self, response: httpx.Response) -> Failure:
        """What a response means that is no answer."""
        status, key_file = response.status_code, self.upstream.key_file
        if status in (401, 403):
            told = f"it refuses the key in {key_file}" if key_file else "it wants a key"
            hint = (
                "Correct the key in that file." if key_file else "Put the key into a file and set key_file."
            )
            return Failure.broken(told, hint, retry_after=60)
        if 300 <= status < 400:
            # Followed, it would take the question, and the key, to an address the owner did not choose.
            target = one_line(response.headers.get("location", "nowhere"))
            hint = "If you trust that address, set it in the settings."
            return Failure.broken(f"it sends us on to {target}", hint, retry_after=60)
        told_wait = response.headers.get("retry-after")
        return refusal(status, await self._body(response, MAX_COMPLAINT, cut=True), told_wait)

    async def _body(self, response: httpx.Response, most: int = MAX_LIST, *, cut: bool = False) -> bytes:
        """The body as it came over the wire, `most` bytes of it at most; more are an error unless `cut`."""
        body = b""
        with _transport():
            async with contextlib.aclosing(response.aiter_raw(2**16)) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > most:
                        if cut:
                            break
                        raise Failure.broken(f"it sends more than {most} bytes")
        return body[:most]

    def _note(self, problem: str, hint: str = "") -> None:
        """Remember how it is, and log changes."""
        if problem and problem != self.problem:
            log.warning("%s: %s", self.url, problem)
        elif self.problem and not problem:
            log.info("%s answers again", self.url)
        self.problem, self.hint = problem, hint


@contextlib.asynccontextmanager
async def _by(deadline: float, late: str) -> AsyncIterator[None]:
    """Fail when the block has not ended at `deadline`, on the monotonic clock."""
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            yield
    except TimeoutError as error:
        raise Failure.broken(f"{late} in time") from error


@contextlib.contextmanager
def _transport() -> Iterator[None]:
    """Turn what goes wrong on the way into failures that a person understands."""
    try:
        yield
    except httpx.HTTPError as error:
        if distrust := _distrust(error):
            hint = "If you made the certificate yourself, name it with ca_file."
            told = f"its certificate is not trusted: {one_line(distrust.verify_message)}"
            raise Failure.broken(told, hint, retry_after=60) from error
        kinds = {
            httpx.ConnectTimeout: "it cannot be reached in time",
            httpx.ConnectError: "it cannot be reached",
            httpx.ReadError: "the connection broke",
            httpx.RemoteProtocolError: "the connection broke",
        }
        told = next(
            (text for kind, text in kinds.items() if isinstance(error, kind)), "it does not answer well"
        )
        detail = one_line(str(error))
        raise Failure.broken(f"{told} ({detail})" if detail else told) from error


def _distrust(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """The certificate's fault among an error's causes, if it is one."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None
