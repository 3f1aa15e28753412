"""Whether this Hob can answer right now."""

import asyncio
from dataclasses import dataclass, replace
from typing import Literal

from appliance.engine.base import Engine
from appliance.errors import DeviceError, EngineUnavailableError, HobError
from appliance.models import Installed, Models

STATS_TIMEOUT = 2.0
"""Seconds an engine may take to say how it is; it answers between two tokens."""


@dataclass(frozen=True, slots=True)
class Health:
    """`ok`: the engine has a model loaded. `starting`: it will soon. `failed`: somebody must act.

    `running` and `waiting` count the engine's requests.
    """

    status: Literal["ok", "starting", "failed"]
    model: str
    reason: str = ""
    running: int = 0
    waiting: int = 0


class Watcher:
    """Is told what happens while a service starts. This one keeps it to itself."""

    def progress(self, step: str, fraction: float) -> None:
        """The default model is being compiled; `fraction` of it, 0 to 1, is done."""

    def settled(self, health: Health) -> None:
        """Starting has ended, one way or the other, or goes on for longer ("starting"). May come again."""

    def named(self, host: str) -> None:
        """On the LAN Hob is called `host` (with .local) from now on; "" means no name."""


class Readiness:
    """Loads the default model and watches that the engine keeps one."""

    def __init__(self, models: Models, engine: Engine, watcher: Watcher) -> None:
        self._models = models
        self._engine = engine
        self._watcher = watcher
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
        return replace(self._health, running=stats.running, waiting=stats.waiting)

    async def close(self) -> None:
        """Stop loading."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait([self._preparing])

    async def _load(self, installed: Installed) -> None:
        """Load a model on the first device that runs it."""
        trials, name = self._models.trials, installed.card.name
        while True:
            reference = await self._models.reference(installed, self._watcher.progress)
            try:
                await self._engine.load(reference)
            except DeviceError as error:
                trials.failed(reference.target, name, error.message, error.hint)
            else:
                trials.works(reference.target, name)
                return

    async def _prepare(self) -> None:
        """Load the default model; keeps trying for as long as the engine says that trying helps."""
        name = self._models.default
        told = False
        while True:
            try:
                installed = self._models.get()
                self._health = Health("starting", name, f"{name} is being loaded")
                await self._load(installed)
            except EngineUnavailableError as error:
                self._health = Health("starting", name, error.message)
                if not told:
                    told = True
                    self._watcher.settled(self._health)
                await asyncio.sleep(error.retry_after or 1)
            except HobError as error:
                self._health = Health("failed", name, error.explanation)
                break
            else:
                self._health = Health("ok", name)
                break
        self._watcher.settled(self._health)
