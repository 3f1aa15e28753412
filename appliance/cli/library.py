"""`hob model list|show|verify|remove|export|default`: the library of models on this machine."""

import json
import time
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from appliance.cli.telling import Teller, say, spoken
from appliance.config import Settings, load_settings
from appliance.domain import ModelCard
from appliance.errors import DamagedError, InvalidRequestError
from appliance.library import archive, default, fit, verify
from appliance.library.manifest import Origin
from appliance.library.shelf import Entry, Shelf, describe
from appliance.library.space import size
from appliance.models import Models
from appliance.shipped import GUIDE
from builder.compile.mlc import MLCDirectory
from builder.errors import BuildError


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
    told["size"] = size(told["size"])
    for key, value in told.items():
        if value not in ("", []):
            click.echo(f"{key:<13} {printed(value)}")
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
            raise DamagedError("; ".join(damaged), hint="Add the model again; that repairs it.")
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
        if entry.path in models.shipped.directories().values():
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
        kept = entry.manifest or describe(entry.path, entry.name, Origin("file", entry.path.name), "")
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


def description(settings: Settings, entry: Entry) -> dict[str, Any]:
    """Everything there is to say about a model."""
    kept = entry.manifest
    told: dict[str, Any] = {"name": entry.reference, "path": str(entry.path), "version": entry.version}
    if kept:
        told |= {
            "origin": msgspec.to_builtins(kept.origin),
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
    files = [msgspec.to_builtins(file) for file in kept.files] if kept else unlisted(entry)
    told["size"] = sum(file["size"] for file in files)
    told["versions"] = [other.reference for other in shelf_of(settings).versions(entry.name)]
    return {**told, "files": files}


def printed(value: Any) -> str:
    """A value of a description for people."""
    if isinstance(value, dict):
        return " ".join(str(part) for part in value.values() if part)
    return ", ".join(value) if isinstance(value, list) else str(value)


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
    """A model by name, one that came with the system too.

    Raises:
        UnknownModelError: there is none.
    """
    return Models(settings).entry(name)


def unlisted(entry: Entry) -> list[dict[str, Any]]:
    """The files of a directory without a manifest."""
    files = sorted(path for path in entry.path.iterdir() if path.is_file())
    return [{"name": path.name, "size": path.stat().st_size, "sha256": ""} for path in files]


VERBS = (list_, show, verify_, remove, export, default_)
