"""Everything there is to know about a running Hob at one moment: machine, devices, engine, room, speed."""

import shutil
import time
from pathlib import Path
from typing import Final, Literal

from appliance import __version__
from appliance.config import Settings
from appliance.domain import Frozen, Hardware
from appliance.engine.base import Engine
from appliance.errors import HobError
from appliance.hardware.devices import Candidate
from appliance.hardware.memory import memory
from appliance.hardware.tier import Tier
from appliance.hardware.trials import Trials
from appliance.measuring import Measuring
from appliance.models import Models
from appliance.store import Speed, Store
from appliance.system import Health, Readiness

STARTED: Final = time.monotonic()

State = Literal["in use", "ready", "failed", "left out"]


class Device(Candidate):
    """A candidate and what became of it: `state`, and `reason` is the failure's where it failed."""

    state: State


class Failure(Frozen):
    """A model that did not run on a target since Hob started."""

    model: str
    target: str
    reason: str
    hint: str


class EngineState(Frozen):
    """What runs models: `kind` is the setting's word; `model` is loaded now, if any; `memory` in bytes."""

    kind: str
    status: Literal["ok", "starting", "failed"]
    reason: str
    model: str
    target: str
    memory: int
    running: int
    waiting: int


class Room(Frozen):
    """Bytes of memory or disk: `total`, and how much of it is `available`.

    `limited`: a container or unit, not the machine, sets the bound. `folder` is where the disk was looked at.
    """

    total: int
    available: int
    limited: bool = False
    folder: str = ""


class Speeds(Frozen):
    """What was measured, where it was, and when (Unix time); `problem` is why the last attempt failed.

    `bandwidth` in GB/s; `fluent` in billions of 4-bit weights at ten tokens a second; `prefill` and `decode`
    are tokens a second of `model`.
    """

    tier: Tier | None = None
    fluent: float | None = None
    date: float | None = None
    target: str = ""
    bandwidth: float | None = None
    model: str = ""
    prefill: float | None = None
    decode: float | None = None
    due: bool = False
    problem: str = ""


class Overview(Frozen):
    """The whole. `uptime` in seconds; `answers` are the speeds of the last real answers, by model."""

    version: str
    uptime: float
    hardware: Hardware
    engine: EngineState
    devices: tuple[Device, ...]
    failures: tuple[Failure, ...]
    memory: Room
    disk: Room
    speed: Speeds
    answers: tuple[Speed, ...]


class Observer:
    """Looks at the parts of a running service."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        engine: Engine,
        kind: str,
        readiness: Readiness,
        measuring: Measuring,
        store: Store,
    ) -> None:
        """`kind` of engine, in the setting's words."""
        self._settings = settings
        self._models = models
        self._trials = models.trials
        self._engine = engine
        self._kind = kind
        self._readiness = readiness
        self._measuring = measuring
        self._store = store

    async def look(self) -> Overview:
        """What there is now. Takes as long as the engine needs to answer, two seconds at most."""
        hardware = await self._trials.hardware()
        candidates = await self._trials.candidates()
        health = await self._readiness.health()
        room = memory()
        engine = await self._engine_state(health)
        return Overview(
            version=__version__,
            uptime=time.monotonic() - STARTED,
            hardware=hardware.model_copy(update={"memory": room.total, "available": room.available}),
            engine=engine,
            devices=tuple(judge(one, self._trials, engine) for one in candidates),
            failures=tuple(
                Failure(model=one.model, target=one.target, reason=one.reason, hint=one.hint)
                for one in self._trials.failures
            ),
            memory=Room(total=room.total, available=room.available, limited=room.limited),
            disk=disk(self._settings.data_dir),
            speed=speeds(self._measuring),
            answers=tuple(await self._store.run(self._store.speeds)),
        )

    async def _engine_state(self, health: Health) -> EngineState:
        """The engine's own words, as far as it has any."""
        directory, used = "", 0
        if health.status == "ok":
            try:
                stats = await self._engine.stats()
                directory, used = stats.model, stats.rss
            except HobError:  # it ended this moment; the next look will tell
                pass
        model = self._models.name_of(directory) if directory else ""
        return EngineState(
            kind=self._kind,
            status=health.status,
            reason=health.reason,
            model=model,
            target=self._trials.running.get(model, ""),
            memory=used,
            running=health.running,
            waiting=health.waiting,
        )


def judge(candidate: Candidate, trials: Trials, engine: EngineState) -> Device:
    """A candidate as the running service sees it: one that failed any model tells the last failure."""
    state: State = "ready" if candidate.usable else "left out"
    found = candidate
    failures = [failure for failure in trials.failures if failure.target == candidate.target]
    if engine.target and engine.target == candidate.target:
        state = "in use"
    elif failures:
        state = "failed"
        last = failures[-1]
        reason = f"does not run {last.model}: {last.reason}"
        found = candidate.model_copy(update={"reason": reason, "hint": last.hint})
    return Device(**found.model_dump(), state=state)


def disk(folder: Path) -> Room:
    """The disk under the data folder."""
    usage = shutil.disk_usage(folder)
    return Room(total=usage.total, available=usage.free, folder=str(folder))


def speeds(measuring: Measuring) -> Speeds:
    """What is known of this machine's speed."""
    known = measuring.latest
    if known is None:
        return Speeds(due=measuring.wanted, problem=measuring.problem)
    return Speeds(
        tier=known.tier,
        fluent=known.fluent,
        date=known.date,
        target=known.target,
        bandwidth=known.bandwidth,
        model=known.model,
        prefill=known.prefill,
        decode=known.decode,
        due=measuring.wanted,
        problem=measuring.problem,
    )
