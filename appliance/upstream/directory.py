"""All other servers together: which models they have, which address answers, what if one does not."""

import asyncio
import contextlib
import math
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx

from appliance import __version__
from appliance.chat.stops import StopStrings
from appliance.domain import Delta, Message, ModelCard
from appliance.engine.messages import Wishes
from appliance.errors import (
    EngineUnavailableError,
    HobError,
    RateLimitError,
    SettingsError,
    UnknownModelError,
)
from appliance.upstream.protocol import VIA, Failure, Listed, request_body
from appliance.upstream.server import LOOK_TIMEOUT, Server
from appliance.upstream.settings import Upstream

REFRESH = 30.0
"""Seconds between two looks at a server that answers."""

RETRY = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds between looks at one that does not."""

PATIENCE = 5.0
"""Seconds that are waited for a server that asks to be left alone, instead of passing that on."""


@dataclass(frozen=True, slots=True)
class State:
    """How one address is: `problem` is empty when it answers; `models` are counted as of its last list.

    `hint` is the next step after some problems.
    """

    upstream: str
    url: str
    models: int
    problem: str
    hint: str


class Group:
    """The addresses of one entry of the settings, which stand in for each other."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.client = _client(upstream)
        self.servers = [Server(upstream, url, self.client) for url in upstream.urls]

    def models(self) -> dict[str, Listed]:
        """Every model that one of them lists, the preferred one's first."""
        merged: dict[str, Listed] = {}
        for server in self.servers:
            merged = {**(server.models or {}), **merged}
        return merged

    def may_have(self, model: str) -> bool:
        """Whether it is worth asking for this model."""
        return any(server.may_have(model) for server in self.servers)

    def candidates(self, model: str) -> list[Server]:
        """Whom to ask, in order: those that answered last time first, then by the settings."""
        able = [server for server in self.servers if server.may_have(model) and not server.rest]
        return sorted(able, key=lambda server: bool(server.problem))

    def rest(self, model: str) -> float:
        """Seconds until the first one may be asked that wants to be left alone; 0 when none does."""
        return min(
            (server.rest for server in self.servers if server.rest and server.may_have(model)), default=0
        )

    def problem(self, model: str) -> str:
        """Why none of them answers for a model; empty when one does, as far as is known."""
        able = [server for server in self.servers if server.may_have(model)]
        if any(not server.problem for server in able):
            return ""
        return (
            f"{self.upstream.name}: {able[0].problem}"
            if able
            else f"{self.upstream.name} lists no such model"
        )

    def card(self, model: str) -> ModelCard:
        """A model as people and programs see it."""
        name = self.upstream.name
        listed = self.models().get(model) or Listed(model, 0, 0)
        asked = [server for server in self.servers if server.may_have(model)] or self.servers
        hosts = ", ".join(dict.fromkeys(urlsplit(server.url).netloc for server in asked))
        note = f"{name} answers, not this machine: what you write goes to {hosts}."
        if problem := self.problem(model):
            note += f" At present it does not ({problem})."
        return ModelCard(
            name=f"{model}@{name}",
            family="",
            quantization="",
            parameters=None,
            bytes=0,
            context=listed.context,
            created=listed.created,
            upstream=name,
            note=note,
        )


@dataclass(frozen=True, slots=True)
class UpstreamModel:
    """A model of another server, as `ChatModel`."""

    group: Group
    model: str

    @property
    def card(self) -> ModelCard:
        """As `ChatModel.card`."""
        return self.group.card(self.model)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """As `ChatModel.defaults`: only the server knows them."""
        return {}

    async def answer(
        self, messages: Sequence[Message], wishes: Wishes, max_tokens: int | None, stops: Sequence[str]
    ) -> AsyncGenerator[Delta, None]:
        """As `ChatModel.answer`.

        When an address does not answer, the next one is asked; not any more once there is text, which the
        next one would not go on with.
        """
        body = request_body(self.model, messages, wishes, max_tokens, stops)
        failures: dict[str, Failure] = {}
        for last_try in (False, True):
            for server in self.group.candidates(self.model):
                begun = False
                try:
                    async with contextlib.aclosing(_until_stop(server.answer(body), stops)) as deltas:
                        async for delta in deltas:
                            begun = True
                            yield delta
                    return
                except Failure as failure:
                    server.failed(failure)
                    if begun:
                        raise self._error(failure.error, f"{server.url} broke off: ") from failure
                    if failure.final:
                        raise self._error(failure.error) from failure
                    failures[server.url] = failure
            pause = self.group.rest(self.model)
            if last_try or not 0 < pause <= PATIENCE:
                break
            await asyncio.sleep(pause)
        raise self._summary(failures)

    def _error(self, error: HobError, where: str = "") -> HobError:
        """A server's error with its name before it."""
        return type(error)(
            f"{self.group.upstream.name}: {where}{error.message}",
            hint=error.hint,
            param=error.param,
            retry_after=error.retry_after,
        )

    def _summary(self, failures: Mapping[str, Failure]) -> HobError:
        """One error for all addresses: none of them answers."""
        name = self.group.upstream.name
        errors = [failure.error for failure in failures.values()]
        rests = [math.ceil(server.rest) for server in self.group.servers if server.rest]
        if not errors:
            if not rests:
                return UnknownModelError(f"{name} has no model {self.model!r}", param="model")
            return RateLimitError(f"{name} asks to be left alone for a while", retry_after=min(rests))
        waits = [error.retry_after for error in errors if error.retry_after] or [5]
        kind = type(errors[0])
        if any(type(error) is not kind for error in errors):
            kind = EngineUnavailableError
        told = "; ".join(f"{url}: {failure.error.message}" for url, failure in failures.items())
        hint = next((error.hint for error in errors if error.hint), "")
        return kind(f"{name} does not answer: {told}", hint=hint, retry_after=min([*rests, *waits]))


async def _until_stop(
    deltas: AsyncGenerator[Delta, None], stops: Sequence[str]
) -> AsyncGenerator[Delta, None]:
    """An answer without what follows a stop string, whether the server knows these or not."""
    watch = StopStrings(stops)
    async with contextlib.aclosing(deltas):
        async for delta in deltas:
            text, stopped = watch.push(delta.text)
            if stopped:
                yield delta.model_copy(update={"text": text, "finish": "stop"})
                return
            if delta.finish:
                text += watch.flush()
            if text or delta.logprobs or delta.finish:
                yield delta.model_copy(update={"text": text})


class Upstreams:
    """The models of all other servers, as `ChatModels`. `start` begins to look at them, `close` ends it.

    Lists are kept and refreshed in the background, so a page never waits for a server, dead or alive.
    """

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        """Nothing is sent before `start`.

        Raises:
            SettingsError: certificates that the settings name cannot be read.
        """
        self._groups = {upstream.name: Group(upstream) for upstream in upstreams}
        self._servers = [server for group in self._groups.values() for server in group.servers]
        self._watching: list[asyncio.Task[None]] = []
        self._curious = asyncio.Event()

    def start(self) -> None:
        """Begin to look at all servers."""
        self._watching = [asyncio.create_task(self._watch(server)) for server in self._servers]

    async def close(self) -> None:
        """Stop looking, and close all connections."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for group in self._groups.values():
            await group.client.aclose()

    def cards(self) -> list[ModelCard]:
        """As `ChatModels.cards`: in the order of the settings; those of a dead server as it last told."""
        return [group.card(model) for group in self._groups.values() for model in group.models()]

    def states(self) -> list[State]:
        """How each address is."""
        return [
            State(server.upstream.name, server.url, len(server.models or ()), server.problem, server.hint)
            for server in self._servers
        ]

    async def find(self, name: str) -> UpstreamModel | None:
        """The model called "model@server", or "model" where any server lists it, the first one winning.

        Waits for the first look at servers that have just been set up, for `LOOK_TIMEOUT` at most.
        """
        if found := self._find(name):
            return found
        if all(server.looked.is_set() for server in self._servers):
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_TIMEOUT):
                for server in self._servers:
                    await server.looked.wait()
        return self._find(name)

    def _find(self, name: str) -> UpstreamModel | None:
        model, _, server = name.rpartition("@")
        group = self._groups.get(server)
        if model and group and group.may_have(model):
            return UpstreamModel(group, model)
        return next(
            (UpstreamModel(group, name) for group in self._groups.values() if name in group.models()), None
        )

    async def problem(self, name: str) -> str | None:
        """As `system.Elsewhere.problem`."""
        found = await self.find(name)
        return None if found is None else found.group.problem(found.model)

    async def _watch(self, server: Server) -> None:
        """Look at a server again and again."""
        failures = 0
        while True:
            await server.look()
            failures = failures + 1 if server.problem else 0
            pause = RETRY[min(failures, len(RETRY)) - 1] if failures else REFRESH
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await server.doubted.wait()


async def examine(upstreams: Sequence[Upstream]) -> list[State]:
    """Look at every address once, all at the same time.

    Raises:
        SettingsError: certificates that the settings name cannot be read.
    """
    directory = Upstreams(upstreams)
    try:
        await asyncio.gather(*(server.look() for server in directory._servers))
        return directory.states()
    finally:
        await directory.close()


def _client(upstream: Upstream) -> httpx.AsyncClient:
    """A client that goes where it is told: no proxy or key of the environment, no redirects."""
    try:
        verify: ssl.SSLContext | bool = True
        if upstream.ca_file:
            verify = ssl.create_default_context(cafile=upstream.ca_file)
    except OSError as error:  # covers ssl.SSLError
        raise SettingsError(
            f"setting 'upstreams': the certificates in {upstream.ca_file} cannot be read: {error.strerror}"
        ) from error
    return httpx.AsyncClient(
        verify=verify,
        trust_env=False,
        follow_redirects=False,
        # The reading side has deadlines of its own.
        timeout=httpx.Timeout(upstream.connect_timeout, read=None),
        # A question sent on an old connection is lost when the server closes that at the same moment.
        limits=httpx.Limits(max_keepalive_connections=0),
        headers={"user-agent": f"hob/{__version__}", "via": VIA, "accept-encoding": "identity"},
    )
