"""What people and programs do with models: one place behind the models page and its API.

What takes long becomes a job; the rest happens at once.
"""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.config import Settings
from appliance.domain import ModelCard
from appliance.errors import ConflictError, EngineUnavailableError, InvalidRequestError
from appliance.hardware.memory import Fit
from appliance.jobs import Jobs
from appliance.library import default
from appliance.library.fit import judge, sentence
from appliance.library.manifest import Manifest, Origin
from appliance.library.shelf import Entry, describe
from appliance.library.source import Local, Peer, parse
from appliance.models import Models
from appliance.residency import Pins
from appliance.shipped import GUIDE
from appliance.store import Job
from appliance.system import Readiness
from builder.compile.mlc import MLCDirectory

if TYPE_CHECKING:
    from appliance.library.add import Plan

QUANTISATION: Final = "q4f16_1"

LOOK_TIMEOUT: Final = 60.0
"""Seconds that looking at a source may take; a hub asks several times."""


@dataclass(frozen=True, slots=True)
class Model:
    """An installed model with everything that decides what can be done with it.

    Attributes:
        card: what it is.
        entry: how it lies on the shelf; None for the built-in one.
        default: it answers when nobody chooses.
        loaded: it is in memory now.
        pinned: it stays there.
    """

    card: ModelCard
    entry: Entry | None
    default: bool
    loaded: bool
    pinned: bool


class Workshop:
    """Works on the models of one service.

    Raises (everywhere):
        UnknownModelError: no model has this name.
        ConflictError: the same is under way already.
    """

    def __init__(
        self, settings: Settings, models: Models, jobs: Jobs, pins: Pins, readiness: Readiness
    ) -> None:
        self._settings = settings
        self._models = models
        self._jobs = jobs
        self._pins = pins
        self._readiness = readiness

    async def models(self) -> list[Model]:
        """All of them, the built-in one first."""
        try:
            loaded, _ = await self._readiness.idle()
        except (EngineUnavailableError, TimeoutError):
            loaded = ""
        cards = await asyncio.to_thread(self._models.list)
        entries = {entry.reference: entry for entry in await asyncio.to_thread(self._models.shelf.entries)}
        chosen = self._models.default
        return [
            Model(
                card=card,
                entry=entries.get(card.name),
                default=card.name == chosen,
                loaded=card.name == loaded,
                pinned=card.name in self._pins,
            )
            for card in cards
        ]

    async def fit(self, name: str) -> Fit:
        """Whether an installed model fits, were the loaded one to give way.

        Raises:
            ModelLoadError: it is damaged.
        """
        return with_spare(await asyncio.to_thread(self._fit, name), await self.spare())

    async def spare(self) -> int:
        """Bytes that the engine holds and gives back for another model; 0 where it does not say."""
        try:
            return await self._readiness.held()
        except (EngineUnavailableError, TimeoutError):
            return 0

    def _fit(self, name: str) -> Fit:
        directory = MLCDirectory.open(self._models.get(name).directory)
        return judge(directory.nbytes, directory.config, self._settings.context)

    async def packed(self, name: str) -> tuple[Manifest, Path]:
        """The manifest and the directory of a model that is to leave as one file.

        Raises:
            ModelLoadError: it is damaged.
        """
        self._models.get(name)
        entry = await asyncio.to_thread(self._models.entry, name)
        if entry.manifest is not None:
            return entry.manifest, entry.path
        origin = Origin("file", entry.path.name)
        return await asyncio.to_thread(describe, entry.path, entry.name, origin, ""), entry.path

    async def look(self, source: str, key: str = "") -> "Plan":
        """Say what adding a source would mean, before anything is fetched.

        Raises:
            HobError, BuildError: there is no model, or none for this Hob; says why.
        """
        async with asyncio.timeout(LOOK_TIMEOUT):
            plan = await asyncio.to_thread(self._look, source, key)
        fit = with_spare(plan.fit, await self.spare())
        return replace(plan, fit=fit, note=sentence(fit))

    def _look(self, source: str, key: str) -> "Plan":
        # An HTTP client: 16 MB that most homes need once in a while, or never.
        from appliance.library.add import plan
        from appliance.library.offer import find
        from appliance.library.remote import session

        with session() as client:
            offer = find(parse(source), client, key)
        return plan(offer, name="", quantization=QUANTISATION, context=self._settings.context)

    async def add(
        self,
        source: str,
        key: str = "",
        *,
        name: str = "",
        quantization: str = QUANTISATION,
        force: bool = False,
    ) -> Job:
        """Add a model from wherever it is; see `hob model add`. `name` "" makes one of the source.

        Raises:
            InvalidRequestError: that is no source.
        """
        source = source.strip()
        parsed = parse(source)
        if isinstance(parsed, Local) and not Path(source).is_absolute():
            raise InvalidRequestError(
                f"{source} is not a full path",
                param="source",
                hint="Give a path that begins with /, an address, or owner/name on Hugging Face.",
            )
        options = ["--force"] if force else []
        if isinstance(parsed, Peer):
            options += [f"--as={name}"] if name else []
            arguments = [f"--from={parsed.host}", *options, "--", parsed.model]
            return await self._jobs.add("copy", source, arguments, key)
        options += [f"--name={name}"] if name else []
        arguments = [f"--quantization={quantization}", *options, "--", source]
        return await self._jobs.add("add", source, arguments, key)

    async def verify(self, name: str) -> Job:
        """Compare a model's files with their checksums."""
        return await self._jobs.add("verify", self._known(name), ["--", name])

    async def compile(self, name: str) -> Job:
        """Compile a model for this machine, so that its first answer does not wait for that."""
        return await self._jobs.add("compile", self._known(name), ["--", name])

    async def export(self, name: str, folder: str) -> Job:
        """Write a model to a .hobmodel file in a folder of this machine, such as a stick's.

        Raises:
            InvalidRequestError: there is no such folder.
        """
        path = Path(folder)
        if not path.is_absolute() or not await asyncio.to_thread(path.is_dir):
            raise InvalidRequestError(
                f"{folder} is not a folder of this machine", param="folder", hint="Is the stick plugged in?"
            )
        return await self._jobs.add("export", self._known(name), ["--", name, folder])

    async def remove(self, name: str) -> None:
        """Remove a model, or one version of it. One that is loaded leaves memory first.

        Raises:
            InvalidRequestError: it came with the system.
            ConflictError: it is answering, or being copied or compiled.
        """
        entry = await asyncio.to_thread(self._models.entry, name)
        if entry.path in self._models.shipped.directories().values():
            raise InvalidRequestError(f"{name} is built in and stays", param="model")
        loaded, idle = await self._readiness.idle()
        if loaded == entry.reference:
            if idle == 0:
                raise ConflictError(f"{name} is answering", hint="Wait for the answer, or stop it.")
            await self._readiness.rest()
        await asyncio.to_thread(self._models.remove, entry)
        await self._pins.set(name, False)

    async def choose(self, name: str) -> None:
        """Let a model answer when nobody chooses, and load it.

        Raises:
            ConflictError: the settings name another, and come first.
        """
        card = self._models.get(name).card
        await asyncio.to_thread(
            default.write, self._settings.data_dir, "" if card.name == GUIDE else card.name
        )
        if self._models.default != card.name:
            raise ConflictError(
                f"the setting `model` says {self._models.default}, and comes before a choice made here",
                hint="Take `model` out of hob.toml, HOB_MODEL and the command line.",
            )
        self._readiness.start()

    async def pin(self, name: str, pinned: bool) -> None:
        """Keep a model in memory once it is there, or no longer."""
        await self._pins.set(self._known(name), pinned)

    def _known(self, name: str) -> str:
        """The name, if a model has it, damaged or not."""
        if name not in self._models.directories():
            self._models.get(name)
        return name


def with_spare(fit: Fit, spare: int) -> Fit:
    """A verdict with so many bytes more at hand."""
    return replace(fit, available=min(fit.total, fit.available + spare))
