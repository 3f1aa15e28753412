"""How long a model stays in memory: until nobody has needed it for a while, or until memory is short.

A pinned model stays in any case. Requests under way are never cut: the engine frees a model in its turn.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from appliance.errors import EngineUnavailableError
from appliance.hardware.memory import Memory, memory
from appliance.store import Store

log = logging.getLogger(__name__)

CHECK: Final = 5.0
"""Seconds between two looks."""

CALM: Final = 60.0
"""Seconds without a request before a shortage may free the model: somebody may be reading its answer."""

SCARCE: Final = 0.05
"""Share of all memory below which what is free counts as short."""

STALLED: Final = 10.0
"""Percent of the last ten seconds that programs waited for memory, from which on it counts as short."""

PRESSURE: Final = Path("/proc/pressure/memory")


@dataclass(frozen=True, slots=True)
class Look:
    """The engine and the machine at one moment.

    Attributes:
        idle: seconds since the last request; 0 while there is one.
        pinned: the loaded model is to stay.
        memory: what there is.
        stalled: percent of the last ten seconds that some program waited for memory; 0 where unknown.
    """

    idle: float
    pinned: bool
    memory: Memory
    stalled: float = 0.0


def why_free(look: Look, unload_after: float) -> str:
    """Why the model should leave memory now, in words for the log; "" when it should stay.

    `unload_after` are seconds without a request; 0 means that time alone is no reason.
    """
    if look.pinned or look.idle == 0:
        return ""
    if unload_after and look.idle >= unload_after:
        return f"nobody has used it for {look.idle:.0f} s"
    if look.idle >= CALM and look.memory.available < SCARCE * look.memory.total:
        return f"only {look.memory.available / 2**20:.0f} MiB of memory are free"
    if look.idle >= CALM and look.stalled >= STALLED:
        return f"programs wait for memory {look.stalled:.0f} % of the time"
    return ""


def parse_pressure(text: str) -> float:
    """The ten-second average of Linux's pressure stall information (Documentation/accounting/psi.rst):
    percent of the time that at least one task waited.
    """
    for line in text.splitlines():
        kind, *fields = line.split()
        if kind == "some":
            values = dict(field.partition("=")[::2] for field in fields)
            return float(values.get("avg10", 0))
    return 0.0


def stalled(file: Path = PRESSURE) -> float:
    """What `parse_pressure` finds on this machine; 0 where the kernel does not tell."""
    try:
        return parse_pressure(file.read_text())
    except (OSError, ValueError):
        return 0.0


class Pins:
    """Names of the models that are to stay in memory, kept in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._names: set[str] = set()

    async def load(self) -> None:
        """Read them; before that there are none."""
        self._names = await self._store.run(self._store.pins)

    async def set(self, name: str, pinned: bool) -> None:
        """Pin a model, or no longer."""
        await self._store.run(self._store.pin if pinned else self._store.unpin, name)
        await self.load()

    def __contains__(self, name: str) -> bool:
        return name in self._names


class Resident(Protocol):
    """Whoever knows the loaded model; `system.Readiness` does."""

    async def idle(self) -> tuple[str, float]:
        """Name of the loaded model ("" if none), and seconds since it was last used.

        Raises:
            EngineUnavailableError, TimeoutError: the engine does not say.
        """
        ...

    async def rest(self) -> None:
        """Free the loaded model; it is not missed until the next request.

        Raises:
            EngineUnavailableError: the engine is down.
        """
        ...


async def keep(resident: Resident, pinned: Callable[[str], bool], unload_after: float) -> None:
    """Watch until cancelled, and free the model when there is a reason."""
    while True:
        await asyncio.sleep(CHECK)
        try:
            name, idle = await resident.idle()
            if not name:
                continue
            why = why_free(Look(idle, pinned(name), memory(), stalled()), unload_after)
            if why:
                await resident.rest()
                log.info("%s leaves memory: %s", name, why)
        except (EngineUnavailableError, TimeoutError):
            continue  # nothing is loaded, or much is going on
