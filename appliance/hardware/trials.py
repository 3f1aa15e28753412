"""Which device a model runs on: the first one that has not failed it since the service started."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from appliance.domain import Hardware
from appliance.errors import ModelLoadError
from appliance.hardware.describe import detect
from appliance.hardware.devices import Candidate, candidates

log = logging.getLogger(__name__)

Policy = Literal["next", "refuse"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A model that did not run on a target: the reason in words, and the next step."""

    target: str
    model: str
    reason: str
    hint: str = ""


class Trials:
    """Candidates in their order, and what became of them.

    A device that fails is not tried again with the same model until the service starts anew: a fault found at
    every question would cost every question its time.

    Attributes:
        failures: all so far, oldest first.
        running: target by model, as far as models have been loaded.
    """

    def __init__(
        self, wanted: Sequence[str] = (), policy: Policy = "next", look: Callable[[], Hardware] = detect
    ) -> None:
        """`wanted`, `policy`: the settings `devices`, `device_fallback`. `look` describes the machine."""
        self._wanted = tuple(wanted)
        self._policy = policy
        self._look = look
        self._looking = asyncio.Lock()
        self._hardware: Hardware | None = None
        self.failures: list[Failure] = []
        self.running: dict[str, str] = {}

    async def hardware(self) -> Hardware:
        """The machine; looked at once, on first use, because drivers' tools take their time."""
        async with self._looking:
            if self._hardware is None:
                self._hardware = await asyncio.to_thread(self._look)
        return self._hardware

    async def candidates(self) -> tuple[Candidate, ...]:
        """Every kind of device with its verdict, those to be tried first."""
        return candidates(await self.hardware(), self._wanted)

    async def choose(self, model: str) -> Candidate:
        """The device to try next with a model.

        Raises:
            ModelLoadError: none is left, or the first one failed and the setting `device_fallback` refuses
                the others; the message has every reason.
        """
        failed = {failure.target: failure for failure in self.failures if failure.model == model}
        everyone = await self.candidates()
        usable = [candidate for candidate in everyone if candidate.usable]
        for candidate in usable:
            if candidate.target not in failed:
                return candidate
            if self._policy == "refuse":
                failure = failed[candidate.target]
                raise ModelLoadError(
                    f"{model} does not run on {candidate.target}: {failure.reason}",
                    hint=failure.hint
                    or 'device_fallback = "next" in the settings lets another device answer.',
                )
        reasons = [f"{one.target}: {failed[one.target].reason}" for one in usable]
        reasons += [f"{one.target}: {one.reason}" for one in everyone if not one.usable]
        raise ModelLoadError(
            f"no device runs {model}: {'; '.join(reasons)}",
            hint="`hob doctor` says what this machine has; the setting `devices` what is tried.",
        )

    def failed(self, target: str, model: str, reason: str, hint: str = "") -> None:
        """Remember that a device cannot run a model, and say so in the log."""
        if self.running.get(model) == target:
            del self.running[model]
        self.failures.append(Failure(target, model, reason, hint))
        log.warning("%s does not run on %s: %s", model, target, reason)

    def forget(self, model: str) -> None:
        """Try every device anew with a model whose files have changed."""
        self.failures = [failure for failure in self.failures if failure.model != model]
        self.running.pop(model, None)

    def works(self, target: str, model: str) -> None:
        """Remember that a model was loaded on a device and passed its test."""
        if self.running.get(model) != target:
            log.info("%s runs on %s", model, target)
        self.running[model] = target
