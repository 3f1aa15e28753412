"""Keeps what is known of this machine's speed up to date, and never at the cost of an answer.

Measuring happens in a process of its own that runs only when nothing else wants the processor, and that is
ended as soon as a request arrives; what it had found until then would be wrong anyway.
"""

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from appliance import __version__
from appliance.domain import Hardware
from appliance.engine.base import Engine
from appliance.engine.messages import ModelRef
from appliance.errors import HobError, ModelLoadError
from appliance.hardware import tier
from appliance.hardware.tier import Measurement
from appliance.models import Models
from appliance.shipped import GUIDE

log = logging.getLogger(__name__)

CALM: Final = 60.0
"""Seconds without a request before Hob measures by itself: nobody is in the middle of a conversation then."""

ASKED: Final = 1.0
"""The same when somebody asked for it."""

LOOK: Final = 0.05
"""Seconds between two looks, while measuring, whether a request has come."""

RETRY: Final = 1800.0
"""Seconds until the next attempt on a machine that was too busy."""

LIMIT: Final = 120.0
"""Seconds after which a machine counts as too busy to be measured."""


class TooBusyError(HobError):
    """The machine had no spare time to be measured."""

    status = 503
    code = "too_busy"


async def measure(machine: Hardware, reference: ModelRef | None, threads: int) -> Measurement:
    """Measure this machine's memory, and with a model how fast it reads and writes.

    Takes a second of time that nobody else wants. Cancelling ends the process.

    Raises:
        ModelLoadError: the model does not run on the device that it is compiled for.
        TooBusyError: other programs leave no time.
    """
    # An engine that compiles by itself also chooses by itself what computes; the processor is measured then.
    target = reference.target if reference and reference.library else "cpu"
    command = [
        sys.executable,
        "-m",
        "appliance.engine.measure",
        "--threads",
        str(threads),
        "--target",
        target,
    ]
    if reference and reference.library:
        command += ["--directory", reference.directory, "--library", reference.library]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LIMIT):
            out, complaints = await process.communicate()
    except TimeoutError:
        raise TooBusyError(
            "other programs leave no time to measure", hint="Measure when this machine has less to do."
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        log.error("measuring failed:\n%s", complaints.decode(errors="replace").strip())
        raise ModelLoadError(
            f"measuring failed with exit status {process.returncode}", hint="Its messages are in the log."
        )
    found: dict[str, Any] = json.loads(out)
    if problem := next((text for text in found["errors"] if text.startswith("busy: ")), ""):
        raise TooBusyError(problem.removeprefix("busy: "), hint="Measure when this machine has less to do.")
    if problem := next((text for text in found["errors"] if text.startswith("model: ")), ""):
        raise ModelLoadError(problem.removeprefix("model: "))
    for problem in found["errors"]:
        log.warning("not measured: %s", problem)
    return Measurement(
        machine=tier.fingerprint(machine, target, __version__),
        date=time.time(),
        target=target,
        bandwidth=found.get("bandwidth"),
        model=GUIDE if "decode" in found else "",
        prefill=found.get("prefill"),
        decode=found.get("decode"),
    )


Measure = Callable[[Hardware, ModelRef | None, int], Awaitable[Measurement]]


class Measuring:
    """The measurement of this machine, made when there is none for it and when somebody asks.

    Attributes:
        latest: the last one made on this machine as it is now, or None.
        problem: why the last attempt gave none; empty when it did.
        wanted: whether one is due.
    """

    def __init__(
        self, models: Models, engine: Engine, data_dir: Path, threads: int, measure: Measure = measure
    ) -> None:
        """`threads`: of the engine, 0 means one per physical core."""
        self._measure = measure
        self._models = models
        self._engine = engine
        self._data_dir = data_dir
        self._threads = threads
        self._patience = CALM
        self._asked = asyncio.Event()
        self.latest: Measurement | None = None
        self.problem = ""
        self.wanted = False

    def ask(self) -> None:
        """Measure anew at the next quiet moment."""
        self.wanted = True
        self._patience = ASKED
        self._asked.set()

    async def run(self) -> None:
        """Measure whenever it is due, until cancelled."""
        known = tier.read(self._data_dir)
        machine = await self._models.trials.hardware()
        if known and known.machine == tier.fingerprint(machine, known.target, __version__):
            self.latest = known
        else:
            self.wanted = True
            self._asked.set()
        while True:
            await self._asked.wait()
            await self._quiet()
            try:
                found = await self._undisturbed(machine)
            except (HobError, OSError) as error:
                self.problem = str(error)
                log.warning("this machine is not measured: %s", error)
                if isinstance(error, TooBusyError):
                    await self._later()
                    continue
            else:
                if found is None:
                    continue  # a request came; once more, later
                self.latest, self.problem = found, ""
                tier.write(self._data_dir, found)
            self.wanted = False
            self._patience = CALM
            self._asked.clear()

    async def _idle(self) -> float:
        """Seconds since the engine's last request; 0 when it is busy, starting, or does not say."""
        try:
            async with asyncio.timeout(1):
                return (await self._engine.stats()).idle
        except (HobError, TimeoutError):
            return 0.0

    async def _quiet(self) -> None:
        """Wait for a moment that may be disturbed."""
        while await self._idle() < self._patience:  # noqa: ASYNC110 - see below
            await asyncio.sleep(min(self._patience, 1.0))  # the engine is another process: nothing to await

    async def _later(self) -> None:
        """Wait for a better time, or until somebody asks again."""
        self._patience = CALM
        self._asked.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY):
                await self._asked.wait()
        self._asked.set()

    async def _undisturbed(self, machine: Hardware) -> Measurement | None:
        """Measure, or None when a request came in between."""
        reference = await self._guide()
        begun = time.monotonic()
        measuring = asyncio.ensure_future(self._measure(machine, reference, self._threads))
        try:
            while not measuring.done():
                await asyncio.wait([measuring], timeout=LOOK)
                if await self._idle() < time.monotonic() - begun:
                    return None
            return measuring.result()
        finally:
            measuring.cancel()
            await asyncio.wait([measuring])

    async def _guide(self) -> ModelRef | None:
        """The built-in model, where it has run already: to compile it now would disturb."""
        if GUIDE not in self._models.trials.running:
            return None
        with contextlib.suppress(HobError):
            return await self._models.reference(self._models.get(GUIDE))
        return None
