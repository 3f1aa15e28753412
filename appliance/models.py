"""The models on this machine: what is installed, what is wrong with it, the library compiled for it.

A model is an MLC directory: one that came with Hob or its system (`appliance.shipped`), or anything in
`<data_dir>/models` (`appliance.library.shelf` says how versions lie there). Libraries that did not come with
the system lie in `<data_dir>/libraries/`, made by a compiler that runs as a process of its own, so that its
300 MB never enter the service.
"""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from appliance.compiler import compile_library
from appliance.config import Settings
from appliance.domain import ModelCard
from appliance.engine.choice import engine_kind
from appliance.engine.messages import ModelRef, Sampling
from appliance.errors import DeviceError, ModelLoadError, UnknownModelError
from appliance.hardware.trials import Trials
from appliance.library import default
from appliance.library.shelf import Entry, Shelf
from appliance.shipped import GUIDE, GUIDE_DIRECTORY, Shipped
from builder.compile.mlc import CONFIG, TENSOR_CACHES, MLCDirectory
from builder.errors import BuildError, FormatError

log = logging.getLogger(__name__)

GUIDE_NOTE = (
    "A small guide to Hob itself, not a general model, and sometimes wrong. "
    "To talk about anything else, add a model."
)

SAMPLING_FIELDS = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "repetition_penalty")

Progress = Callable[[str, float], None]
"""Called with the step's name and the fraction done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A sound model: its card, its directory, and how it wants to be sampled when nobody says otherwise."""

    card: ModelCard
    directory: Path
    defaults: Sampling


class Models:
    """The models of one data directory. Directories may come and go while the service runs.

    `compiling` tells how far the models are that are being compiled now: a fraction by name.
    """

    def __init__(self, settings: Settings) -> None:
        self.shipped = Shipped(settings.system_dir)
        self.shelf = Shelf(settings.data_dir / "models", frozenset({GUIDE, *self.shipped.directories()}))
        self._data_dir = settings.data_dir
        # A setting that somebody made comes before the choice that `hob model default` keeps.
        self._set = settings.model if "model" in settings.model_fields_set else ""
        self._preset = settings.model
        self._cache = settings.data_dir / "libraries"
        self._context = settings.context
        self._kernels = settings.kernels
        self._engine = engine_kind(settings)
        self._known: dict[str, tuple[object, Installed | ModelCard]] = {}
        self._verified = Verified(settings.data_dir / "verified.json")
        self._libraries: dict[tuple[str, str], tuple[Installed, Path]] = {}
        self._tried: dict[str, Installed] = {}
        self.trials = Trials(settings.devices, settings.device_fallback)
        self.compiling: dict[str, float] = {}
        self._compiling: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def default(self) -> str:
        """The model that answers when nobody chooses: as set, else as chosen last, else the built-in one."""
        return self._set or default.read(self._data_dir) or self._preset

    def remove(self, entry: Entry, *, force: bool = False) -> bool:
        """Take a model off the shelf; whether it was the default, which the built-in one is then.

        Raises:
            ConflictError: it is in use, and not `force`.
        """
        self.shelf.remove(entry, force=force)
        chosen = default.read(self._data_dir)
        if chosen != entry.reference and (chosen != entry.name or self.shelf.versions(entry.name)):
            return False
        default.write(self._data_dir, "")
        return True

    def list(self) -> tuple[ModelCard, ...]:
        """Cards of all models: the guide, what else came with the system, the others, by name.

        Damaged ones say so in `problem`.
        """
        found = (self._look(name, path) for name, path in self.directories().items())
        cards = (entry.card if isinstance(entry, Installed) else entry for entry in found)
        return tuple(sorted(cards, key=lambda card: (card.name != GUIDE, not card.builtin, card.name)))

    def get(self, name: str = "") -> Installed:
        """The model of this name; "" means the default model.

        Raises:
            UnknownModelError: none has this name.
            ModelLoadError: its directory is damaged; the message says how.
        """
        name = name or self.default
        path = self.directories().get(name)
        if path is None and "@" in name:  # the version that the bare name means, or a version cut short
            path = self.shelf.find(name).path
        if path is None:
            raise UnknownModelError(
                f"model {name!r} is not installed", param="model", hint="`hob model list` shows what is."
            )
        entry = self._look(name, path)
        if isinstance(entry, ModelCard):
            raise ModelLoadError(
                f"model {name!r} is damaged: {entry.problem}", hint="Copy or convert it again, or remove it."
            )
        return entry

    async def library(self, name: str = "", progress: Progress | None = None, target: str = "cpu") -> Path:
        """The library of a model for `target`; compiles one where none is there (up to a minute).

        Raises:
            UnknownModelError, ModelLoadError: as `get`; also when weights are damaged or compiling fails.
            DeviceError: compiling fails for a target other than the processor.
        """
        installed = self.get(name)
        key = installed.card.name, target
        async with self._compiling[installed.card.name]:
            known = self._libraries.get(key)
            # `get` hands out a new object when the directory's files have changed.
            if known is None or known[0] is not installed or not known[1].exists():
                await asyncio.to_thread(self._verified.ensure, installed.directory)

                def told(step: str, fraction: float) -> None:
                    self.compiling[installed.card.name] = fraction
                    if progress is not None:
                        progress(step, fraction)

                try:
                    library = await asyncio.to_thread(
                        self.shipped.library, installed.directory, target, self._kernels
                    ) or await compile_library(installed.directory, self._cache, self._kernels, told, target)
                finally:
                    self.compiling.pop(installed.card.name, None)
                known = self._libraries[key] = installed, library
            return known[1]

    async def reference(self, installed: Installed, progress: Progress | None = None) -> ModelRef:
        """What the engine needs to know of a model, for the device to try next; compiles if need be.

        Raises:
            ModelLoadError: no device is left to try, or as `library` raises it for the processor.
        """
        name = installed.card.name
        if self._engine == "mlc":  # which compiles by itself and chooses its device
            if self._tried.get(name) is not installed:
                await asyncio.to_thread(self._verified.ensure, installed.directory)
                self._tried[name] = installed
            return ModelRef(
                directory=str(installed.directory), library="", context=installed.card.context, target="mlc"
            )
        if self._tried.get(name) is not installed:
            self._tried[name] = installed
            self.trials.forget(name)
        while True:
            device = await self.trials.choose(name)
            try:
                library = await self.library(name, progress, device.target)
            except DeviceError as error:
                self.trials.failed(device.target, name, error.message, error.hint)
                continue
            return ModelRef(
                directory=str(installed.directory),
                library=str(library),
                context=installed.card.context,
                target=device.target,
            )

    def signature(self, name: str = "") -> object:
        """Something that differs once the files of a model ("": the default one), or the default, change."""
        name = name or self.default
        path = self.directories().get(name)
        files = () if path is None else sorted((file.name, _modified(file)) for file in path.iterdir())
        return name, tuple(files)

    def name_of(self, directory: str) -> str:
        """The name of the model that lies there; "" if none does."""
        return next((n for n, path in self.directories().items() if str(path) == directory), "")

    def directories(self) -> dict[str, Path]:
        """Every directory that claims to be a model, by name, even damaged. None may pose as the guide."""
        added = {entry.reference: entry.path for entry in self.shelf.entries() if entry.reference != GUIDE}
        # What somebody added stays when a later system comes with a model of the same name.
        return self.shipped.directories() | added

    def entry(self, reference: str) -> Entry:
        """How a model lies on disk: as `Shelf.find`, and those that came with the system too."""
        path = self.directories().get(reference)
        if path is not None and path in self.shipped.directories().values():
            return Entry(reference, path, None, "", current=True)
        return self.shelf.find(reference)

    def _look(self, name: str, path: Path) -> Installed | ModelCard:
        """The model in `path`, or a card that tells its problem; read again when its files have changed."""
        signature = (path, *(_modified(path / file) for file in (CONFIG, *TENSOR_CACHES)))
        known = self._known.get(name)
        # A damaged one is looked at again: what it lacks may be another file.
        if known is None or known[0] != signature or isinstance(known[1], ModelCard):
            known = self._known[name] = signature, self._open(name, path)
        return known[1]

    def _open(self, name: str, path: Path) -> Installed | ModelCard:
        created = _modified(path / CONFIG) // 10**9
        builtin = path in self.shipped.directories().values()
        try:
            directory = MLCDirectory.open(path)
            defaults = sampling_defaults(path / CONFIG, directory.config)
        except BuildError as error:
            return ModelCard(
                name=name,
                family="",
                quantization="",
                parameters=None,
                bytes=0,
                context=0,
                created=created,
                builtin=builtin,
                problem=str(error),
            )
        card = ModelCard(
            name=name,
            family=directory.model_type,
            quantization=directory.quantization,
            parameters=count_parameters(directory),
            bytes=directory.nbytes,
            context=min(directory.context_window, self._context),
            created=created,
            builtin=builtin,
            note=GUIDE_NOTE if path == GUIDE_DIRECTORY else "",
        )
        return Installed(card, path, defaults)


class Verified:
    """Which weights have been compared with their checksums since their files last changed.

    A copy that went wrong shows in no size, only in the answers. Reading a gigabyte takes a second or more,
    so it is done once, when a model is first used, and remembered in `file`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def ensure(self, path: Path) -> None:
        """Compare the weights of the model in `path` with their checksums, unless that was done before.

        Raises:
            ModelLoadError: a file is damaged; the message names it.
        """
        try:
            directory = MLCDirectory.open(path)
            state = [[shard.name, shard.md5, _modified(path / shard.name)] for shard in directory.shards]
            known = self._read()
            if known.get(str(path)) != state:
                directory.verify()
                self._write({**known, str(path): state})
        except BuildError as error:
            raise ModelLoadError(str(error), hint=error.hint) from error

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._file.read_text())
        except (OSError, ValueError):  # not there yet, or damaged: everything is compared once more
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, known: dict[str, Any]) -> None:
        partial = self._file.with_suffix(".part")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(known, indent=1))
            partial.replace(self._file)
        except OSError as error:  # it only costs time at the next start
            log.warning("%s cannot be written: %s", self._file, error.strerror)


def sampling_defaults(file: Path, config: dict[str, Any]) -> Sampling:
    """How `mlc-chat-config.json` wants the model sampled; absent and null fields are OpenAI's defaults.

    Raises:
        FormatError: a field is not a number.
    """
    wanted = {field: config[field] for field in SAMPLING_FIELDS if config.get(field) is not None}
    try:
        return msgspec.convert(wanted, Sampling)
    except msgspec.ValidationError as error:
        raise FormatError(f"{file}: {error}") from error


def count_parameters(directory: MLCDirectory) -> int:
    """Weights of a model, counting those packed into 32-bit words one by one and leaving out their scales."""
    bits = int(directory.quantization[1]) or 32
    total = 0
    for name, tensor in directory.tensors.items():
        if not name.endswith(".q_scale"):
            numbers = 1
            for dimension in tensor.shape:
                numbers *= dimension
            total += numbers * (32 // bits if name.endswith(".q_weight") else 1)
    return total


def _modified(path: Path) -> int:
    """Time of last change in nanoseconds; 0 when there is no such file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
