"""`hob model add` and its kin: the library of models, for people and, as JSON lines, for programs.

With `--json`, work that takes time prints one object per line on standard output:

    {"plan": {"name", "source", "form", "quantization", "licence", "fetch", "disk", "stored", "fit", "note"}}
    {"step": "fetching model.safetensors", "fraction": 0.42, "bytes": 123, "total": 456}
    …
    {"model": "NAME"}            or  {"error": "…", "hint": "…", "code": "…"}  and exit status 1

SIGTERM ends it as Ctrl-C does; the library is then as it was before.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from appliance.cli.progress import Bar
from appliance.config import Settings, load_settings
from appliance.domain import ModelCard
from appliance.errors import HobError, InvalidRequestError, StoppedError
from appliance.library import archive, default, fit, verify
from appliance.library.add import Plan, add, plan
from appliance.library.download import session
from appliance.library.manifest import Origin
from appliance.library.offer import find
from appliance.library.shelf import Entry, Shelf, describe
from appliance.library.source import Peer, Source, parse
from appliance.library.space import size
from appliance.models import GUIDE, GUIDE_DIRECTORY, Models
from builder.compile.mlc import MLCDirectory
from builder.errors import BuildError

QUANTISATION = "q4f16_1"
AT_MOST_EVERY = 0.1
"""Seconds between two reports of the same step."""


class Teller:
    """Says how far the work is: a bar for people, a line for programs."""

    def __init__(self, title: str, as_json: bool) -> None:
        self._bar = None if as_json else Bar(title)
        self._step, self._told, self._shown = "", 0.0, 0.0

    def __call__(self, step: str, fraction: float, done: int | None = None, total: int | None = None) -> None:
        """Tell, but not too often. The fraction never goes back."""
        now = time.monotonic()
        self._shown = max(self._shown, min(fraction, 1.0))
        if step == self._step and now - self._told < AT_MOST_EVERY and fraction < 1:
            return
        self._step, self._told = step, now
        if self._bar is not None:
            self._bar(f"{step} ({size(done)} of {size(total)})" if done and total else step, self._shown)
            return
        line: dict[str, Any] = {"step": step, "fraction": round(self._shown, 4)}
        if done is not None:
            line |= {"bytes": done, "total": total}
        say(line)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


@click.command("add")
@click.argument("source")
@click.option("--name", default="", help="What to call it; made from the source otherwise.")
@click.option(
    "--quantization", default=QUANTISATION, show_default=True, help="Format to convert the weights to."
)
@click.option("--key-file", type=click.Path(path_type=Path), help="File with a Hugging Face token or a key.")
@click.option("--force", is_flag=True, help="Add it although it does not fit this machine's memory.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--compile/--no-compile", "compiled", default=True, help="Compile it for this machine at once.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def add_(
    source: str,
    name: str,
    quantization: str,
    key_file: Path | None,
    force: bool,
    dry_run: bool,
    compiled: bool,
    as_json: bool,
) -> None:
    """Add a model from SOURCE.

    SOURCE is a Hugging Face id (owner/name, owner/name@revision, owner/name:Q4_0 for one of its GGUF files),
    the address of a .gguf or .hobmodel file, a file or folder on this machine or a stick, or a model on
    another Hob (NAME@hob-2.local). HF_TOKEN and HOB_API_KEY, or --key-file, hold what opens the doors.
    """
    with spoken(as_json):
        settings = load_settings()
        if (shelf := shelf_of(settings)) and adopt(shelf, source, as_json):
            return
        carry_out(
            settings,
            parse(source),
            name=name,
            quantization=quantization,
            key=secret(key_file),
            force=force,
            dry_run=dry_run,
            compiled=compiled,
            as_json=as_json,
        )


@click.command()
@click.argument("name")
@click.option("--from", "host", required=True, metavar="HOST", help="hob-2.local, address:port or a URL.")
@click.option("--as", "own_name", default="", metavar="NAME", help="What to call it here.")
@click.option("--key-file", type=click.Path(path_type=Path), help="File with an API key of the other Hob.")
@click.option("--force", is_flag=True, help="Copy it although it does not fit this machine's memory.")
@click.option("--compile/--no-compile", "compiled", default=True, help="Compile it for this machine at once.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def copy(
    name: str, host: str, own_name: str, key_file: Path | None, force: bool, compiled: bool, as_json: bool
) -> None:
    """Copy the model NAME from another Hob on this network.

    That Hob wants an API key of its own (`hob key add` there): in HOB_API_KEY, in a file, or asked for.
    """
    with spoken(as_json):
        key = secret(key_file) or os.environ.get("HOB_API_KEY", "")
        if not key and not as_json and sys.stdin.isatty():
            key = click.prompt(f"API key of {host}", hide_input=True, default="", show_default=False)
        carry_out(
            load_settings(),
            Peer(name, host),
            name=own_name,
            quantization=QUANTISATION,
            key=key,
            force=force,
            dry_run=False,
            compiled=compiled,
            as_json=as_json,
        )


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the installed models, with what is wrong with damaged ones."""
    models = Models(load_settings())
    cards = models.list()
    if as_json:
        click.echo(json.dumps([card.model_dump() for card in cards], indent=2))
        return
    if not cards:
        click.echo("No model is installed. Add one: hob model add SOURCE")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("Name", "Family", "Format", "Weights", "Size", "Context", ""):
        table.add_column(column, overflow="fold")
    for card in cards:
        table.add_row(*row(card, default=card.name == models.default))
    Console(highlight=False, markup=False).print(table)


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Say what the model NAME is, where it came from, what it consists of and whether it fits."""
    settings = load_settings()
    entry = entry_of(settings, name)
    told = description(settings, entry)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    files = told.pop("files")
    for key, value in told.items():
        if value not in ("", None, []):
            click.echo(f"{key:<13} {', '.join(value) if isinstance(value, list) else value}")
    click.echo(f"{'files':<13} {len(files)}")
    for file in files:
        click.echo(f"  {file['sha256'][:12] or '-':<12}  {size(file['size']):>8}  {file['name']}")


@click.command("verify")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def verify_(name: str | None, as_json: bool) -> None:
    """Compare every file of the model NAME, or of all models, with its checksum."""
    with spoken(as_json):
        settings = load_settings()
        shelf = shelf_of(settings)
        entries = [entry_of(settings, name)] if name else shelf.entries()
        teller = Teller("Comparing files with their checksums ...", as_json)
        findings: dict[str, list[verify.Finding]] = {}
        for number, entry in enumerate(entries):

            def checked(file: str, done: int, total: int, before: int = number) -> None:
                teller(f"reading {file}", (before + done / max(total, 1)) / len(entries), done, total)

            findings[entry.reference] = verify.verify(entry, checked)
        teller.stop()
        damaged = [
            f"{model}: {found.file} is {found.problem}"
            for model, found_there in findings.items()
            for found in found_there
            if found.problem != "unknown"
        ]
        if damaged:
            raise HobError(
                "; ".join(damaged), hint="Add the model again; that repairs it.", code="model_damaged"
            )
        if as_json:
            say({"models": [entry.reference for entry in entries]})
            return
        for model, found_there in findings.items():
            extra = [found.file for found in found_there]
            click.echo(f"{model} is sound." + (f" Not part of it: {', '.join(extra)}." if extra else ""))
        if not entries:
            click.echo("There is no model to compare.")


@click.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Remove it although Hob has it loaded.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines; does not ask.")
def remove(name: str, yes: bool, force: bool, as_json: bool) -> None:
    """Remove the model NAME, or one version of it: NAME@VERSION."""
    with spoken(as_json):
        settings = load_settings()
        models = Models(settings)
        entry = entry_of(settings, name)
        if entry.path == GUIDE_DIRECTORY:
            raise InvalidRequestError(f"{name} is built in and stays", param="name")
        if not (yes or as_json):
            click.confirm(f"Remove {entry.reference} ({entry.path})?", abort=True)
        if models.remove(entry, force=force):
            click.echo("It was the default model; the built-in one is now.", err=True)
        left = models.shelf.versions(entry.name)
        if as_json:
            say({"model": entry.reference})
        else:
            click.echo(f"{entry.reference} is removed.")
            if left:
                click.echo(f"{entry.name} now means version {left[0].version or 'copied by hand'}.")


@click.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Write over FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def export(name: str, file: Path, force: bool, as_json: bool) -> None:
    """Write the model NAME to one FILE.hobmodel, for a stick or a backup. A folder takes NAME.hobmodel."""
    with spoken(as_json):
        entry = entry_of(load_settings(), name)
        target = file / f"{entry.name.replace('/', '-')}{archive.SUFFIX}" if file.is_dir() else file
        kept = entry.manifest or describe(entry.path, entry.name, Origin("file", str(entry.path)), "")
        teller = Teller(f"Writing {target} ...", as_json)
        try:
            archive.write(
                kept,
                entry.path,
                target,
                lambda done: teller(f"writing {target.name}", done / kept.size, done, kept.size),
                replace=force,
            )
        finally:
            teller.stop()
        if as_json:
            say({"model": entry.reference, "file": str(target)})
        else:
            click.echo(
                f"{target}: {size(target.stat().st_size)}. On another Hob: hob model add {target.name}"
            )


@click.command("default")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def default_(name: str | None, as_json: bool) -> None:
    """Choose the model that answers when nobody chooses, or say which it is.

    A setting (`model` in hob.toml, HOB_MODEL, --model) comes before this choice.
    """
    with spoken(as_json):
        settings = load_settings()
        models = Models(settings)
        if name:
            card = models.get(name).card
            default.write(settings.data_dir, "" if card.name == GUIDE else card.name)
        told = models.default
        if as_json:
            say({"model": told})
            return
        click.echo(told)
        if name and told != name:
            click.echo(f"The setting `model` says {told}, and comes before your choice.", err=True)


def carry_out(
    settings: Settings,
    source: Source,
    *,
    name: str,
    quantization: str,
    key: str,
    force: bool,
    dry_run: bool,
    compiled: bool,
    as_json: bool,
) -> None:
    """Add a model, with everything said on the way."""
    from builder.compile.convert import convert

    if isinstance(source, Peer):  # nobody else gets to see it
        key = key or os.environ.get("HOB_API_KEY", "")
    with session() as client:
        offer = find(source, client, key)
        planned = plan(offer, name=name, quantization=quantization, context=settings.context)
        announce(planned, as_json)
        if dry_run:
            return
        if planned.fit.verdict == "never" and not force and not as_json and sys.stdin.isatty():
            force = click.confirm("Add it all the same?")
        teller = Teller(f"Adding {planned.name} ...", as_json)
        share = 0.85 if compiled else 1.0

        def report(step: str, fraction: float, done: int | None = None, total: int | None = None) -> None:
            teller(step, fraction * share, done, total)

        try:
            entry = add(shelf_of(settings), offer, planned, client, convert, report, force=force)
            if compiled:
                compile_now(settings, entry.reference, teller, share)
        finally:
            teller.stop()
    if as_json:
        say({"model": entry.reference, "version": entry.version})
    else:
        click.echo(f"ready: hob chat --model {entry.reference}")


def compile_now(settings: Settings, name: str, teller: Teller, start: float) -> None:
    """Compile what was added. Should that fail or be stopped, the model is here all the same."""
    try:
        asyncio.run(
            Models(settings).library(
                name, lambda step, fraction: teller(f"compiling {step}", start + (1 - start) * fraction)
            )
        )
    except HobError as error:
        click.echo(f"{name} was added, but it does not compile yet: {error.explanation}", err=True)
    except KeyboardInterrupt:
        click.echo(f"{name} was added; it is compiled when it is first used.", err=True)


def adopt(shelf: Shelf, source: str, as_json: bool) -> bool:
    """Take a directory that was copied into the models folder by hand into the library, in place."""
    path = Path(source).expanduser()
    mine = [
        entry
        for entry in shelf.entries()
        if entry.manifest is None
        and (entry.name == source or (path.exists() and path.resolve() == entry.path.resolve()))
    ]
    if not mine:
        return False
    MLCDirectory.open(mine[0].path).verify()
    entry = shelf.adopt(mine[0].name, Origin("file", str(mine[0].path)))
    if as_json:
        say({"model": entry.reference, "version": entry.version})
    else:
        click.echo(f"ready: hob chat --model {entry.reference}")
    return True


def announce(planned: Plan, as_json: bool) -> None:
    """What will be done, before it is."""
    if as_json:
        say({"plan": planned.describe()})
        return
    becomes = f", converted to {planned.quantization}" if planned.quantization else ""
    click.echo(f"{planned.name}: {planned.form} from {planned.source}{becomes}", err=True)
    click.echo(f"  licence {planned.licence or 'not told'}", err=True)
    fetched = f"fetches {size(planned.fetch)}, " if planned.fetch else ""
    click.echo(
        f"  {fetched}needs {size(planned.disk)} of disk meanwhile, {size(planned.stored)} afterwards",
        err=True,
    )
    click.echo(f"  {planned.note}", err=True)


def description(settings: Settings, entry: Entry) -> dict[str, Any]:
    """Everything there is to say about a model."""
    kept = entry.manifest
    told: dict[str, Any] = {"name": entry.reference, "path": str(entry.path), "version": entry.version}
    if kept:
        told |= {f"origin {key}" if key != "kind" else "origin": v for key, v in _struct(kept.origin).items()}
        told |= {
            "licence": kept.licence,
            "added": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(kept.added)),
        }
    try:
        directory = MLCDirectory.open(entry.path)
        told |= {
            "family": directory.model_type,
            "quantization": directory.quantization,
            "context": directory.context_window,
            "fit": fit.sentence(fit.judge(directory.nbytes, directory.config, settings.context)),
        }
    except BuildError as error:
        told["problem"] = str(error)
    files = [_struct(file) for file in kept.files] if kept else _unlisted(entry)
    told["size"] = size(sum(file["size"] for file in files))
    told["versions"] = [other.reference for other in shelf_of(settings).versions(entry.name)]
    return {**told, "files": files}


def row(card: ModelCard, *, default: bool) -> tuple[str, ...]:
    """A line of the list."""
    if card.problem:
        return (card.name, "", "", "", "", "", f"damaged: {card.problem}")
    weights = f"{card.parameters / 1e6:,.0f} M" if card.parameters else ""
    remark = "default" if default else ""
    return (card.name, card.family, card.quantization, weights, size(card.bytes), str(card.context), remark)


def shelf_of(settings: Settings) -> Shelf:
    """The library in the data folder."""
    return Models(settings).shelf


def entry_of(settings: Settings, name: str) -> Entry:
    """A model by name, the built-in one too.

    Raises:
        UnknownModelError: there is none.
    """
    if name == GUIDE and GUIDE_DIRECTORY.is_dir():
        return Entry(GUIDE, GUIDE_DIRECTORY, None, "", current=True)
    return shelf_of(settings).find(name)


def secret(file: Path | None) -> str:
    """What a file holds, and nothing of it is ever printed.

    Raises:
        InvalidRequestError: it cannot be read.
    """
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"--key-file {file} cannot be read", param="key_file") from error


@contextlib.contextmanager
def spoken(as_json: bool) -> Iterator[None]:
    """Errors as a last JSON line, where that is wanted; SIGTERM ends the work as Ctrl-C does."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpx2", "httpcore", "httpcore2"):  # they log addresses, signatures included
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            yield
        except KeyboardInterrupt as error:
            raise StoppedError(
                "stopped", hint="What was fetched is kept for a week: the same command goes on from there."
            ) from error
    except (HobError, BuildError) as error:
        if not as_json:
            raise
        code = error.code if isinstance(error, HobError) else "build_failed"
        say({"error": str(error), "hint": error.hint, "code": code})
        sys.exit(1)


def say(line: dict[str, Any]) -> None:
    """One line for a program."""
    print(json.dumps(line), flush=True)


def _struct(value: Any) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(value)
    return told


def _unlisted(entry: Entry) -> list[dict[str, Any]]:
    files = sorted(path for path in entry.path.iterdir() if path.is_file())
    return [{"name": path.name, "size": path.stat().st_size, "sha256": ""} for path in files]


VERBS = (add_, list_, show, verify_, remove, copy, export, default_)
