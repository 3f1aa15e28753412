"""Whether this Hob can answer right now."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from appliance.engine.base import Engine
from appliance.errors import EngineUnavailableError, HobError
from appliance.models import Models, Progress

STATS_TIMEOUT = 2.0
"""Seconds an engine may take to say how it is; it answers between two tokens."""


@dataclass(frozen=True, slots=True)
class Health:
    """`ok`: the engine has a model loaded. `starting`: it will soon. `failed`: somebody must act."""

    status: Literal["ok", "starting", "failed"]
    model: str
    reason: str = ""


class Readiness:
    """Loads the default model and watches that the engine keeps one."""

    def __init__(
        self,
        models: Models,
        engine: Engine,
        progress: Progress | None = None,
        settled: Callable[[Health], None] | None = None,
    ) -> None:
        """`progress` is told how compiling goes, `settled` when starting has ended, one way or the other."""
        self._models = models
        self._engine = engine
        self._progress = progress
        self._settled = settled
        self._preparing: asyncio.Task[None] | None = None
        self._health = Health("starting", models.default, "the engine is starting")

    def start(self) -> None:
        """Begin to load the default model, unless that is under way."""
        if self._preparing is None or self._preparing.done():
            self._preparing = asyncio.create_task(self._prepare())

    async def health(self) -> Health:
        """The state of things. Finds an engine that lost its model, and has it loaded again."""
        if self._health.status != "ok":
            return self._health
        try:
            async with asyncio.timeout(STATS_TIMEOUT):
                stats = await self._engine.stats()
        except EngineUnavailableError as error:
            return Health("starting", self._models.default, error.message)
        except TimeoutError:
            return Health("failed", self._models.default, "the engine does not answer")
        if not stats.model:
            self._health = Health("starting", self._models.default, "the engine has started anew")
            self.start()
        return self._health

    async def close(self) -> None:
        """Stop loading."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait([self._preparing])

    async def _prepare(self) -> None:
        """Load the default model; keeps trying for as long as the engine says that trying helps."""
        name = self._models.default
        while True:
            try:
                installed = self._models.get()
                self._health = Health("starting", name, f"{name} is being loaded")
                await self._engine.load(await self._models.reference(installed, self._progress))
            except EngineUnavailableError as error:
                self._health = Health("starting", name, error.message)
                await asyncio.sleep(error.retry_after or 1)
            except HobError as error:
                self._health = Health("failed", name, f"{error.message}. {error.hint}".rstrip())
                break
            else:
                self._health = Health("ok", name)
                break
        if self._settled is not None:
            self._settled(self._health)
