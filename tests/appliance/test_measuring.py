"""Measuring in the background: when it happens, what ends it, and what is kept."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from appliance import __version__, measuring
from appliance.config import load_settings
from appliance.domain import Hardware
from appliance.engine.messages import Finished, Generate, ModelRef, Stats, Tokens
from appliance.errors import ModelLoadError
from appliance.hardware import tier
from appliance.hardware.describe import describe
from appliance.hardware.tier import Measurement, fingerprint
from appliance.hardware.trials import Trials
from appliance.measuring import Measuring, TooBusyError
from appliance.models import Models
from tests.appliance.hardware.machines import recording, room

pytestmark = pytest.mark.anyio

PI = describe(recording("pi5"), room("pi5"))


class RestingEngine:
    """An engine that only says for how long it has had nothing to do."""

    idle = 3600.0

    async def load(self, model: ModelRef) -> None:
        """Nothing is loaded."""

    async def unload(self) -> None:
        """Nothing is."""

    async def generate(self, request: Generate) -> AsyncGenerator[Tokens | Finished, None]:
        """Nothing is generated."""
        raise NotImplementedError
        yield

    async def stats(self) -> Stats:
        """How long it has rested."""
        return Stats(id="1", model="", waiting=0, running=0, rss=0, idle=self.idle)

    async def close(self) -> None:
        """Nothing to close."""


def found(machine: Hardware, bandwidth: float = 10.0, release: str = __version__) -> Measurement:
    """A measurement of a machine."""
    return Measurement(
        machine=fingerprint(machine, "cpu", release), date=1.0, target="cpu", bandwidth=bandwidth
    )


class Work:
    """Stands for the measuring: counts attempts, ends when it is let, notes when it is cut short."""

    def __init__(self, *outcomes: Measurement | Exception) -> None:
        self.outcomes = list(outcomes)
        self.begun = 0
        self.cut = 0
        self.go = asyncio.Event()

    async def __call__(self, machine: Hardware, reference: ModelRef | None, threads: int) -> Measurement:
        """One attempt."""
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cut += 1
            raise
        outcome = self.outcomes.pop(0) if self.outcomes else found(machine)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@asynccontextmanager
async def running(folder: Path, engine: RestingEngine, work: Work) -> AsyncIterator[Measuring]:
    """The background task on a Raspberry Pi."""
    models = Models(load_settings(data_dir=folder))
    models.trials = Trials(look=lambda: PI)
    made = Measuring(models, engine, folder, 1, work)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def until(happened: Callable[[], bool]) -> None:
    """Wait for something, not for ever."""
    async with asyncio.timeout(20):
        while not happened():  # noqa: ASYNC110 - the state of another task, which tells nobody
            await asyncio.sleep(0.01)


async def test_the_first_time(tmp_path: Path) -> None:
    """Without a measurement one is made in a quiet moment, and kept."""
    work = Work()
    work.go.set()
    async with running(tmp_path, RestingEngine(), work) as made:
        await until(lambda: made.latest is not None)
        assert not made.wanted
    assert tier.read(tmp_path) == found(PI)


async def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    """The file of an earlier run counts, if machine and release are the same."""
    tier.write(tmp_path, found(PI))
    work = Work()
    async with running(tmp_path, RestingEngine(), work) as made:
        await until(lambda: made.latest is not None)
        assert not made.wanted
        assert work.begun == 0


@pytest.mark.parametrize("change", ["machine", "release"])
async def test_other_hardware_is_measured_anew(tmp_path: Path, change: str) -> None:
    """A card moved into another board, or a new release, makes the old figures worthless."""
    other = describe(recording("pi4"), room("pi4")) if change == "machine" else PI
    tier.write(tmp_path, found(other, 99.0, "0.0.1" if change == "release" else __version__))
    work = Work()
    work.go.set()
    async with running(tmp_path, RestingEngine(), work) as made:
        await until(lambda: made.latest is not None)
    assert tier.read(tmp_path) == found(PI)


async def test_a_busy_engine_is_left_alone(tmp_path: Path) -> None:
    """While there are requests, nothing is measured, not even when somebody asks for it."""
    engine, work = RestingEngine(), Work()
    engine.idle = 0.0
    async with running(tmp_path, engine, work) as made:
        made.ask()
        await asyncio.sleep(1.5)
        assert work.begun == 0
        engine.idle = 3600.0
        await until(lambda: work.begun == 1)


async def test_a_request_ends_it(tmp_path: Path) -> None:
    """A request that comes meanwhile ends the measuring at once; it begins anew in the next quiet moment."""
    engine, work = RestingEngine(), Work()
    async with running(tmp_path, engine, work) as made:
        await until(lambda: work.begun == 1)
        engine.idle = 0.0
        await until(lambda: work.cut == 1)
        assert made.latest is None
        assert made.wanted
        work.go.set()
        engine.idle = 3600.0
        await until(lambda: made.latest is not None)
    assert work.begun == 2


async def test_a_request_between_two_looks_ends_it_too(tmp_path: Path) -> None:
    """An answer that was over before anybody looked has made the figures wrong all the same."""
    engine, work = RestingEngine(), Work()
    async with running(tmp_path, engine, work):
        await until(lambda: work.begun == 1)
        engine.idle = 0.001
        await until(lambda: work.cut == 1)


async def test_asking_measures_again(tmp_path: Path) -> None:
    """What is known stays until the new figures are there."""
    tier.write(tmp_path, found(PI, 5.0))
    work = Work()
    async with running(tmp_path, RestingEngine(), work) as made:
        await until(lambda: made.latest is not None)
        made.ask()
        assert made.wanted
        await until(lambda: work.begun == 1)
        assert made.latest == found(PI, 5.0)
        work.go.set()
        await until(lambda: made.latest == found(PI))


async def test_failures_are_told_and_not_repeated(tmp_path: Path) -> None:
    """A measurement that fails leaves its reason; the next one that somebody asks for clears it."""
    work = Work(ModelLoadError("no such device"))
    work.go.set()
    async with running(tmp_path, RestingEngine(), work) as made:
        await until(lambda: made.problem != "")
        assert made.problem == "no such device"
        await asyncio.sleep(0.2)
        assert work.begun == 1
        made.ask()
        await until(lambda: made.latest is not None)
        assert made.problem == ""


async def test_a_machine_without_spare_time_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other programs spoiled is due until it succeeds."""
    monkeypatch.setattr(measuring, "RETRY", 0.1)
    work = Work(TooBusyError("others took 90%"))
    work.go.set()
    async with running(tmp_path, RestingEngine(), work) as made:
        await until(lambda: made.problem != "")
        assert made.wanted
        await until(lambda: made.latest is not None)
    assert work.begun == 2


async def test_the_real_process() -> None:
    """The process measures this machine's memory, or says that others leave it no time."""
    (outcome,) = await asyncio.gather(measuring.measure(PI, None, 1), return_exceptions=True)
    if isinstance(outcome, TooBusyError):
        assert "other programs" in outcome.message
    else:
        assert isinstance(outcome, Measurement)
        assert outcome.tier is not None
        assert outcome.model == ""


async def test_giving_up_ends_the_process() -> None:
    """Cancelling leaves no process behind."""
    before = set(psutil.Process().children())
    task = asyncio.create_task(measuring.measure(PI, None, 1))
    await until(lambda: bool(set(psutil.Process().children()) - before))
    task.cancel()
    await asyncio.wait([task])
    assert set(psutil.Process().children()) <= before
