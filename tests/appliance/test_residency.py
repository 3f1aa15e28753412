"""How long a model stays in memory."""

import asyncio
from dataclasses import dataclass, field

import pytest

from appliance import residency
from appliance.errors import EngineUnavailableError
from appliance.hardware.memory import Memory
from appliance.residency import CALM, STALLED, Look, keep, parse_pressure, stalled, why_free

PLENTY = Memory(total=8 * 2**30, available=4 * 2**30)
SHORT = Memory(total=8 * 2**30, available=2**28)


@pytest.mark.parametrize(
    ("look", "unload_after", "reason"),
    [
        (Look(1799, False, PLENTY), 1800, ""),
        (Look(1800, False, PLENTY), 1800, "nobody has used it for 1800 s"),
        (Look(1e6, False, PLENTY), 0, ""),
        (Look(1e6, True, SHORT, 90), 1800, ""),
        (Look(0, False, SHORT, 90), 1800, ""),
        (Look(CALM - 1, False, SHORT, 90), 1800, ""),
        (Look(CALM, False, SHORT), 1800, "only 256 MiB of memory are free"),
        (Look(CALM, False, PLENTY, STALLED), 0, "programs wait for memory 10 % of the time"),
        (Look(CALM, False, PLENTY, STALLED - 1), 0, ""),
    ],
)
def test_when_a_model_leaves(look: Look, unload_after: float, reason: str) -> None:
    """After the time that is set, or soon where memory is short; never while pinned or in use."""
    assert why_free(look, unload_after) == reason


def test_pressure_as_linux_writes_it() -> None:
    """The share of time that some task waited; a kernel without the file, or garbage in it, tells nothing."""
    text = "some avg10=3.25 avg60=1.00 avg300=0.10 total=12\nfull avg10=9.00 avg60=0 avg300=0 total=1\n"
    assert parse_pressure(text) == 3.25
    assert parse_pressure("") == 0
    assert stalled() >= 0


@dataclass
class Resident:
    """A loaded model; `troubles` are raised one after the other by `idle`, before it tells."""

    name: str
    seconds: float
    troubles: list[Exception] = field(default_factory=list)
    rested: asyncio.Event = field(default_factory=asyncio.Event)

    async def idle(self) -> tuple[str, float]:
        """As set."""
        if self.troubles:
            raise self.troubles.pop()
        return self.name, self.seconds

    async def rest(self) -> None:
        """Leave."""
        self.name = ""
        self.rested.set()


@pytest.mark.anyio
async def test_the_watch_goes_on_whatever_the_engine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is down or slow is asked again; a model that has left is not sent away twice."""
    monkeypatch.setattr(residency, "CHECK", 0.001)
    idle = Resident("one", 2000, [EngineUnavailableError("down"), TimeoutError()])
    pinned = Resident("two", 2000)
    tasks = [asyncio.create_task(keep(each, {"two"}.__contains__, 1800)) for each in (idle, pinned)]
    async with asyncio.timeout(30):
        await idle.rested.wait()
    idle.rested.clear()
    await asyncio.sleep(0.05)
    assert not idle.rested.is_set()
    assert not pinned.rested.is_set()
    for task in tasks:
        assert not task.done()
        task.cancel()
