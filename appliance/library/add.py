"""Add a model, from wherever it is: look, judge, fetch, convert, put on the shelf. All of it or nothing."""

import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2 as httpx
import msgspec

from appliance.errors import DamagedError, DiskFullError, TooLargeForMemoryError
from appliance.hardware.memory import Fit
from appliance.library import archive, fit, manifest, source, space
from appliance.library.choose import MAX_SIDE
from appliance.library.download import fetch
from appliance.library.manifest import Manifest
from appliance.library.offer import Offer, mlc_file, plain_files
from appliance.library.remote import USUAL, Patience
from appliance.library.shelf import Entry, Shelf, describe
from builder.compile.mlc import MLCDirectory
from builder.errors import FormatError

CHUNK = 2**20
LICENCES = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY)(\.\w+)?", re.IGNORECASE)

Convert = Callable[[Path, Path, str, Callable[[str, float], None]], object]
"""Makes an MLC directory: source, destination, quantisation, progress. It is `builder.compile.convert`."""


class Report(Protocol):
    """Is told what is being done, the fraction of everything (0 to 1) and, for transfers, the bytes."""

    def __call__(self, step: str, fraction: float, done: int | None = None, total: int | None = None) -> None:
        """Something has come further."""


@dataclass(frozen=True)
class Plan:
    """What adding a model means, said before it is done.

    Attributes:
        source: where it comes from, pinned to a revision where there is one.
        name: what it will be called.
        form: what is there: "mlc", "archive", "safetensors", "torch", "gguf", "onnx", "checkpoint".
        quantization: the format it will have; "" where it keeps its own.
        licence: as its publisher names it; "" when unknown.
        fetch: bytes that come over the network.
        disk: bytes that must be free while it is added.
        stored: bytes it takes afterwards.
        fit: whether it fits this machine's memory.
        note: that sentence for people.
    """

    source: str
    name: str
    form: str
    quantization: str
    licence: str
    fetch: int
    disk: int
    stored: int
    fit: Fit
    note: str

    def describe(self) -> dict[str, Any]:
        """The plan for programs: its fields, the verdict in words."""
        told = asdict(self)
        told["fit"] = {**asdict(self.fit), "verdict": self.fit.verdict}
        return told


def plan(offer: Offer, *, name: str, quantization: str, context: int) -> Plan:
    """Reckon what an offer costs. `name` "" makes one; `context` is what the settings reserve."""
    stored = offer.weights
    if offer.converted:
        bits = fit.stored_bits(offer.config) if offer.config else fit.gguf_bits(offer.title)
        stored = fit.converted_bytes(offer.weights, bits, quantization)
    fetched = sum(remote.size or 0 for remote in offer.remotes)
    # An archive from the network lies here twice for a while, as does what is converted.
    if offer.converted:
        disk = fetched + stored
    else:
        disk = 2 * fetched if offer.form == "archive" and fetched else offer.size
    judged = fit.judge(stored, offer.config, context)
    revision = offer.origin.revision
    kept = "" if not offer.converted else quantization
    return Plan(
        source=str(offer.path or offer.origin.source) + (f"@{revision}" if revision else ""),
        name=name or _name(offer, kept),
        form=offer.form,
        quantization=kept,
        licence=offer.licence,
        fetch=fetched,
        disk=disk,
        stored=stored,
        fit=judged,
        note=fit.sentence(judged),
    )


def add(
    shelf: Shelf,
    offer: Offer,
    planned: Plan,
    client: httpx.Client,
    convert: Convert,
    report: Report,
    *,
    force: bool = False,
    patience: Patience = USUAL,
) -> Entry:
    """Carry out a plan. Either the model is on the shelf afterwards or the shelf is as it was.

    What was fetched when it was stopped stays for a week, and the same call goes on from there.

    Raises:
        TooLargeForMemoryError: it never fits, and not `force`.
        DiskFullError: there is no room; nothing was written.
        HobError, BuildError: what went wrong on the way; names the file.
    """
    if planned.fit.verdict == "never" and not force:
        raise TooLargeForMemoryError(
            f"{planned.name} does not fit this machine: {planned.note}",
            hint="Choose a smaller model, or fewer bits: --quantization q3f16_1. --force adds it anyway.",
        )
    shelf.check_free(planned.name)
    with shelf.incoming(offer.key) as folder:
        fetched, made = folder / "fetched", folder / "model"
        _clear(folder, but=fetched)
        _ensure_room(shelf, offer, planned, fetched)
        try:
            with space.writing(folder):
                share = _share(offer)
                if offer.remotes:
                    _fetch(shelf, offer, fetched, client, _part(report, 0, share), patience)
                rest = _part(report, share, 1)
                if offer.converted:
                    kept = _convert(offer, fetched, made, planned, convert, rest)
                elif offer.form == "archive":
                    kept = _unpack(offer, fetched, made, planned, rest)
                elif offer.remotes:
                    made, kept = fetched, _as_fetched(offer, fetched, planned)
                else:
                    kept = _copy(offer, made, planned, rest)
                report("checking", 1)
                MLCDirectory.open(made)
                entry = shelf.commit(made, kept)
        except (FormatError, DamagedError, DiskFullError):
            # Of no use to a second attempt, or in its way.
            shutil.rmtree(folder)
            raise
        finally:
            if folder.exists():
                _clear(folder, but=fetched)
        shutil.rmtree(folder)
    return entry


def _convert(
    offer: Offer, fetched: Path, made: Path, planned: Plan, convert: Convert, report: Report
) -> Manifest:
    """Make an MLC directory of a checkpoint; its licence goes with it."""
    path = _source(offer, fetched)
    convert(path, made, planned.quantization, lambda step, fraction: report(f"converting {step}", fraction))
    for file in plain_files(path) if path.is_dir() else ():
        if LICENCES.fullmatch(file.name) and file.stat().st_size <= MAX_SIDE:
            shutil.copyfile(file, made / file.name)
    return describe(made, planned.name, offer.origin, offer.licence)


def _unpack(offer: Offer, fetched: Path, made: Path, planned: Plan, report: Report) -> Manifest:
    """Take a .hobmodel file apart; where it came from first stays known."""
    made.mkdir()
    path = _source(offer, fetched)
    total = archive.peek(path).size
    kept = archive.unpack(path, made, lambda done: report("unpacking", done / total, done, total))
    return msgspec.structs.replace(kept, name=planned.name, added=int(time.time()))


def _as_fetched(offer: Offer, fetched: Path, planned: Plan) -> Manifest:
    """The manifest of files that came as they stay. Each was compared with its checksum when it came."""
    if offer.manifest is not None:
        return msgspec.structs.replace(offer.manifest, name=planned.name, added=int(time.time()))
    files = [
        manifest.File(remote.name, remote.size, remote.sha256)
        if remote.sha256 and remote.size is not None
        else manifest.digest(fetched / remote.name)
        for remote in offer.remotes
    ]
    return _manifest(offer, planned, files)


def _manifest(offer: Offer, planned: Plan, files: list[manifest.File]) -> Manifest:
    """A new manifest of these files.

    Raises:
        DamagedError: a file has a name that no manifest can hold.
    """
    made = Manifest(1, planned.name, int(time.time()), offer.origin, offer.licence, manifest.named(files))
    return manifest.decode(manifest.encode(made), planned.source)


def _source(offer: Offer, fetched: Path) -> Path:
    """Where a model's files are now: the folder, or the one file."""
    if offer.path is not None:
        return offer.path
    return fetched / offer.remotes[0].name if len(offer.remotes) == 1 else fetched


def _fetch(
    shelf: Shelf, offer: Offer, fetched: Path, client: httpx.Client, report: Report, patience: Patience
) -> None:
    """Bring all files into `fetched`; those that are there, here or on the shelf, are not sent again."""
    fetched.mkdir(exist_ok=True)
    total, before = offer.size, 0
    for remote in offer.remotes:
        target = fetched / remote.name

        def received(count: int, name: str = remote.name, before: int = before) -> None:
            report(f"fetching {name}", (before + count) / max(total, 1), before + count, total)

        received(0)
        known = remote.sha256 and shelf.borrow(
            manifest.File(remote.name, remote.size or 0, remote.sha256), target
        )
        if not known and not target.exists():
            fetch(client, remote, target, received, patience)
        before += remote.size or 0
    for stray in fetched.iterdir():
        if stray.name not in {remote.name for remote in offer.remotes}:
            stray.unlink()


def _copy(offer: Offer, made: Path, planned: Plan, report: Report) -> Manifest:
    """Copy an MLC directory's files, each read once: its checksum is taken on the way.

    Raises:
        DamagedError: a weight file is not what the checksum that came with it says.
    """
    path = offer.path
    assert path is not None, "what is copied lies on this machine"
    made.mkdir()
    directory = MLCDirectory.open(path)
    expected = {shard.name: shard.md5 for shard in directory.shards}
    files, done = [], 0
    for file in plain_files(path):
        if not mlc_file(file.name, directory):
            continue
        digest, count = hashlib.sha256(), 0
        own = hashlib.md5(usedforsecurity=False)  # the format's checksum
        with file.open("rb") as stream, (made / file.name).open("xb") as out:
            while chunk := stream.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                if file.name in expected:
                    own.update(chunk)
                count += len(chunk)
                report(f"copying {file.name}", (done + count) / max(offer.size, 1), done + count, offer.size)
        if expected.get(file.name, "") not in ("", own.hexdigest()):
            raise DamagedError(
                f"{file} is damaged: MD5 {own.hexdigest()}, expected {expected[file.name]}",
                hint="Copy the model again to where it came from.",
            )
        files.append(manifest.File(file.name, count, digest.hexdigest()))
        done += count
    return _manifest(offer, planned, files)


def _ensure_room(shelf: Shelf, offer: Offer, planned: Plan, fetched: Path) -> None:
    """See that the plan's bytes fit; leftovers of other attempts give way before that fails.

    Raises:
        DiskFullError: they do not.
    """
    here = sum(file.stat().st_size for file in fetched.iterdir()) if fetched.exists() else 0
    here += sum(file.size for file in known_files(shelf, offer) if not (fetched / file.name).exists())
    wanted = max(0, planned.disk - here)
    if space.missing(wanted, space.free(shelf.folder), space.RESERVE):
        shelf.sweep(seconds=0)
    space.ensure(shelf.folder, wanted, space.RESERVE)


def known_files(shelf: Shelf, offer: Offer) -> list[manifest.File]:
    """The files of an offer whose content the shelf has already."""
    files = [
        manifest.File(r.name, r.size, r.sha256) for r in offer.remotes if r.sha256 and r.size is not None
    ]
    return [file for file in files if shelf.holding(file)]


def _clear(folder: Path, but: Path) -> None:
    """Remove what an earlier attempt made of what it fetched."""
    for path in folder.iterdir():
        if path != but:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):  # it holds something
        but.rmdir()


def _name(offer: Offer, quantization: str) -> str:
    if offer.manifest is not None:
        return offer.manifest.name
    return source.model_name(offer.title, quantization, converted=offer.converted)


def _share(offer: Offer) -> float:
    """The part of the whole work that fetching is, roughly."""
    if not offer.remotes:
        return 0.0
    return 0.7 if offer.converted or offer.form == "archive" else 0.99


def _part(report: Report, start: float, end: float) -> Report:
    """Reports of a step as reports of the whole."""

    def told(step: str, fraction: float, done: int | None = None, total: int | None = None) -> None:
        report(step, start + (end - start) * fraction, done, total)

    return told
