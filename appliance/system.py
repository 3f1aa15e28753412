"""Whether this Hob can answer right now."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from appliance.engine.base import Engine
from appliance.errors import DeviceError, EngineUnavailableError, HobError, UnknownModelError
from appliance.models import Installed, Models

STATS_TIMEOUT = 2.0
"""Seconds an engine may take to say how it is; it answers between two tokens."""

SECOND_LOOK = 2.0
"""Seconds between two looks whether what made the default model fail has changed."""


@dataclass(frozen=True, slots=True)
class Health:
    """`ok`: the engine answers. `starting`: it will soon. `failed`: somebody must act.

    `loaded` is false for a model that left memory while nobody used it: the next request brings it back.
    `running` and `waiting` count the engine's requests.
    """

    status: Literal["ok", "starting", "failed"]
    model: str
    reason: str = ""
    loaded: bool = True
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


class Elsewhere(Protocol):
    """Where a default model may be that is not on this machine."""

    async def problem(self, name: str) -> str | None:
        """Why the model of this name cannot answer now; empty when it can, None when nobody has it."""
        ...


class Readiness:
    """Loads the default model and watches that the engine keeps one."""

    def __init__(
        self, models: Models, engine: Engine, watcher: Watcher, elsewhere: Elsewhere | None = None
    ) -> None:
        """`elsewhere`: the other servers, if there are any."""
        self._models = models
        self._engine = engine
        self._watcher = watcher
        self._others = elsewhere
        self._preparing: asyncio.Task[None] | None = None
        self._health = Health("starting", models.default, "the engine is starting")
        self._resting = False
        self._failed: tuple[float, object] = 0.0, None  # when the state was last compared, and the state

    def start(self) -> None:
        """Begin to load the default model, unless that is under way."""
        if self._preparing is None or self._preparing.done():
            self._preparing = asyncio.create_task(self._prepare())

    async def health(self) -> Health:
        """The state of things. Finds an engine that lost its model, and has it loaded again.

        A default model that failed is tried again when its files, or the choice of it, have changed.
        """
        if health := await self._elsewhere():
            return health
        if self._health.status == "failed" and self._changed():
            self._health = Health("starting", self._models.default, "trying again")
            self.start()
        if self._health.status != "ok":
            return self._health
        try:
            async with asyncio.timeout(STATS_TIMEOUT):
                stats = await self._engine.stats()
        except EngineUnavailableError as error:
            return Health("starting", self._models.default, error.message)
        except TimeoutError:
            return Health("failed", self._models.default, "the engine does not answer")
        if stats.model:
            self._resting = False
        elif not self._resting:
            self._health = Health("starting", self._models.default, "the engine has started anew")
            self.start()
            return self._health
        return replace(self._health, loaded=bool(stats.model), running=stats.running, waiting=stats.waiting)

    async def idle(self) -> tuple[str, float]:
        """As `residency.Resident.idle`."""
        async with asyncio.timeout(STATS_TIMEOUT):
            stats = await self._engine.stats()
        return self._models.name_of(stats.model), stats.idle

    async def held(self) -> int:
        """Resident bytes of the engine: what another model finds free once the loaded one gives way.

        Raises:
            EngineUnavailableError, TimeoutError: the engine does not say.
        """
        async with asyncio.timeout(STATS_TIMEOUT):
            return (await self._engine.stats()).rss

    async def rest(self) -> None:
        """As `residency.Resident.rest`."""
        self._resting = True
        await self._engine.unload()

    def _changed(self) -> bool:
        """Whether the default model is another, or other files, than when it failed."""
        now = time.monotonic()
        when, state = self._failed
        if now - when < SECOND_LOOK:
            return False
        self._failed = now, state
        return self._models.signature() != state

    async def close(self) -> None:
        """Stop loading."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait([self._preparing])

    async def _elsewhere(self) -> Health | None:
        """The state of a default model that only another server has; None for any other default model."""
        name = self._models.default
        if self._others is None:
            return None
        try:
            self._models.get(name)
        except UnknownModelError:
            problem = await self._others.problem(name)
            return None if problem is None else Health("failed" if problem else "ok", name, problem)
        except HobError:  # it is here, and damaged
            pass
        return None

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
            signature = self._models.signature()
            if health := await self._elsewhere():
                self._health = health
                break
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
                self._failed = time.monotonic(), signature
                self._health = Health("failed", name, error.explanation)
                break
            else:
                self._health = Health("ok", name)
                break
        self._watcher.settled(self._health)
