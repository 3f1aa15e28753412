"""What a source has to give, found out before anything is fetched or written."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import httpx2 as httpx

from appliance.errors import AuthenticationError, DamagedError, DownloadError, HobError, LibraryError
from appliance.library import archive, hub, peer, space
from appliance.library.choose import SIDE_FILES, choose
from appliance.library.manifest import MANIFEST, Manifest, Origin
from appliance.library.remote import USUAL, Patience, Remote, look, read
from appliance.library.source import Hub, Local, Peer, Source, Web
from builder.compile.families import FAMILIES
from builder.compile.mlc import CONFIG, MLCDirectory
from builder.compile.quantise import QUANTISATIONS
from builder.errors import UnsupportedError

MAX_CONFIG = 2**20
# Weights in forms that are converted here, by the ends of their names.
WEIGHTS = re.compile(r"\.(safetensors|bin|gguf|onnx|onnx_data|pt|pth)$", re.IGNORECASE)

Form = Literal["mlc", "archive", "safetensors", "torch", "gguf", "onnx", "checkpoint"]


@dataclass(frozen=True)
class Offer:
    """A model at its source.

    Attributes:
        origin: where that is.
        title: what it is called there; a name is made of it.
        form: "mlc" needs no conversion, "archive" is a .hobmodel file, "checkpoint" shows when it is opened.
        licence: as its publisher names it; "" when unknown.
        remotes: files to fetch; empty for what lies on this machine.
        path: the file or folder on this machine, or None.
        size: bytes of all files.
        weights: bytes of those that hold weights.
        config: its `mlc-chat-config.json` or `config.json`, or None where it has none or it comes later.
        manifest: the one that comes with it, or None.
    """

    origin: Origin
    title: str
    form: Form
    licence: str
    remotes: tuple[Remote, ...]
    path: Path | None
    size: int
    weights: int
    config: Mapping[str, Any] | None
    manifest: Manifest | None = None

    @property
    def converted(self) -> bool:
        """Whether an MLC directory has to be made of it."""
        return self.form not in ("mlc", "archive")

    @property
    def key(self) -> str:
        """The same for the same content of the same source, so that what was fetched is found again."""
        where = str(self.path) if self.path else self.origin.source
        parts = (self.origin.kind, where, self.origin.revision, self.origin.file)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def find(source: Source, client: httpx.Client, key: str = "", patience: Patience = USUAL) -> Offer:
    """Look at a source. `key` is an API key of the other Hob, or a token of the hub.

    Raises:
        UnsupportedError: a family that Hob has no graph for.
        HobError: it is not there, refuses, or has no model; each says which.
    """
    match source:
        case Hub():
            return _hub(source, client, key, patience)
        case Web():
            return _web(source, client, patience)
        case Peer():
            return _peer(source, client, key, patience)
        case Local():
            return _local(source.path)


def _hub(source: Hub, client: httpx.Client, token: str, patience: Patience) -> Offer:
    found, endpoint = hub.look(source, token, patience)
    form, files, weights = hub.remotes(source, found, endpoint, token)
    try:
        config = _remote_config(client, files, CONFIG if form == "mlc" else "config.json", patience)
    except AuthenticationError as error:
        # The description is for everybody, the files are not: a token may be that of somebody else.
        raise hub.gated(source, endpoint) from error
    _check_supported(config, source.repository)
    return Offer(
        origin=Origin("hub", source.repository, found.sha or "", files[0].name if form == "gguf" else ""),
        title=files[0].name if form == "gguf" else source.repository,
        form=form,
        licence=hub.licence(found),
        remotes=files,
        path=None,
        size=sum(file.size or 0 for file in files),
        weights=sum(file.size or 0 for file in files if file.name in weights),
        config=config,
    )


def _web(source: Web, client: httpx.Client, patience: Patience) -> Offer:
    title = unquote(urlsplit(source.url).path.rpartition("/")[2])
    name = re.sub(r"[^A-Za-z0-9._+-]", "_", title).lstrip(".-+")[:90] or "model"
    file = look(client, Remote(source.url, name), patience)
    if not file.size:
        raise DownloadError(
            f"{file.host} does not tell how large {title} is",
            hint="Fetch it with a browser, then add the file.",
        )
    shown = source.url.partition("?")[0]  # what follows may be a signature
    form: Form = (
        "archive"
        if name.endswith(archive.SUFFIX)
        else "gguf"
        if name.lower().endswith(".gguf")
        else "checkpoint"
    )
    return Offer(Origin("url", shown), title, form, "", (file,), None, file.size, file.size, None)


def _peer(source: Peer, client: httpx.Client, key: str, patience: Patience) -> Offer:
    kept, files = peer.look(client, source, key, patience)
    config = _remote_config(client, files, CONFIG, patience)
    _check_supported(config, f"{source.model} on {source.host}")
    return Offer(
        origin=Origin("hob", f"{kept.name}@{source.host}", kept.version),
        title=kept.name,
        form="mlc",
        licence=kept.licence,
        remotes=files,
        path=None,
        size=kept.size,
        weights=sum(file.size for file in kept.files if file.name.endswith(".bin")),
        config=config,
        manifest=kept,
    )


def _local(path: Path) -> Offer:
    with space.writing(path):
        path = path.resolve(strict=True)
        if path.is_file():
            if archive.looks_like(path):
                kept = archive.peek(path)
                weights = sum(file.size for file in kept.files if file.name.endswith(".bin"))
                return Offer(
                    kept.origin, kept.name, "archive", kept.licence, (), path, kept.size, weights, None, kept
                )
            size = path.stat().st_size
            return Offer(Origin("file", path.name), path.name, "checkpoint", "", (), path, size, size, None)
        files = plain_files(path)
        if (path / CONFIG).is_file():
            return _local_mlc(path, files)
        if not any(WEIGHTS.search(file.name) for file in files):
            archives = [file.name for file in files if file.name.endswith(archive.SUFFIX)]
            raise LibraryError(
                f"{path} has no weights that Hob reads",
                hint=f"Name one of {', '.join(archives[:5])} in it."
                if archives
                else "Give the folder that holds config.json and the weights, or a .gguf file.",
            )
        config = _json(path / "config.json") if (path / "config.json").is_file() else None
        _check_supported(config, str(path))
        sizes = {file.name: file.stat().st_size for file in files}
        form, weights = _weights(sizes, str(path))
        return Offer(
            origin=Origin("file", path.name),
            title=path.name,
            form=form,
            licence="",
            remotes=(),
            path=path,
            size=sum(sizes.values()),
            weights=weights,
            config=config,
        )


def _weights(sizes: Mapping[str, int], where: str) -> tuple[Form, int]:
    """Form and bytes of the weights in a folder, by the names there."""
    try:
        choice = choose(sizes, where)
    except HobError:  # named in some other way: whoever opens it looks at the content
        return "checkpoint", sum(count for name, count in sizes.items() if WEIGHTS.search(name))
    return choice.form, sum(sizes[name] for name in choice.weights)


def _local_mlc(path: Path, files: list[Path]) -> Offer:
    directory = MLCDirectory.open(path)
    wanted = [file for file in files if mlc_file(file.name, directory)]
    return Offer(
        origin=Origin("file", path.name),
        title=path.name,
        form="mlc",
        licence="",
        remotes=(),
        path=path,
        size=sum(file.stat().st_size for file in wanted),
        weights=directory.nbytes,
        config=directory.config,
    )


def mlc_file(name: str, directory: MLCDirectory) -> bool:
    """Whether a file of an MLC directory is part of the model, and not something else that lies there."""
    own = {CONFIG, "tensor-cache.json", "ndarray-cache.json", "tensor-cache-b16.json"}
    return (
        name in own
        or any(name == shard.name for shard in directory.shards)
        or bool(SIDE_FILES.fullmatch(name))
    )


def plain_files(folder: Path) -> list[Path]:
    """The files directly in a folder, but for hidden ones.

    Links may lead within the folder, or to the blobs of a Hugging Face cache that it is a snapshot of.

    Raises:
        LibraryError: a link leads elsewhere, so that something else would be taken for the model.
        OSError: the folder cannot be read.
    """
    homes = [folder]
    if folder.parent.name == "snapshots":
        homes.append(folder.parent.parent / "blobs")
    files = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name == MANIFEST or not file.is_file():
            continue
        if file.is_symlink() and not any(file.resolve().is_relative_to(home) for home in homes):
            raise LibraryError(
                f"{file} is a link that leads out of its folder", hint="Put the file itself there."
            )
        files.append(file)
    return files


def _remote_config(
    client: httpx.Client, files: tuple[Remote, ...], name: str, patience: Patience
) -> dict[str, Any] | None:
    """A model's description, read before the rest is fetched."""
    for file in files:
        if file.name == name:
            return _object(read(client, file, MAX_CONFIG, patience), f"{name} from {file.host}")
    return None


def _json(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return _object(stream.read(MAX_CONFIG), str(file))


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise DamagedError(f"{where} is not an object")
    return found


def _check_supported(config: Mapping[str, Any] | None, where: str) -> None:
    """Refuse at once what no download would make work.

    Raises:
        UnsupportedError: Hob has no graph for this family, or does not read MLC's format of this name.
    """
    for field, known in (("model_type", FAMILIES), ("quantization", tuple(QUANTISATIONS))):
        value = config.get(field) if config else None
        if value is not None and value not in known:
            raise UnsupportedError(
                f"{where}: {field} {value!r} is not supported", hint=f"Supported: {', '.join(known)}."
            )
