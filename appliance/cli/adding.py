"""`hob model add` and `hob model copy`: from wherever a model is, to ready to talk."""

import asyncio
import os
import sys
from pathlib import Path

import click

from appliance.cli.telling import Teller, say, spoken
from appliance.config import Settings, load_settings
from appliance.errors import HobError, InvalidRequestError
from appliance.library.add import Plan, add, plan
from appliance.library.manifest import Origin
from appliance.library.offer import find
from appliance.library.remote import session
from appliance.library.shelf import Shelf
from appliance.library.source import Peer, Source, parse
from appliance.library.space import size
from appliance.models import Models
from builder.compile.mlc import MLCDirectory

QUANTISATION = "q4f16_1"


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
        if adopt(Models(settings).shelf, source, as_json):
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
            entry = add(Models(settings).shelf, offer, planned, client, convert, report, force=force)
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
    path = os.path.realpath(os.path.expanduser(source))
    mine = [
        entry
        for entry in shelf.entries()
        if entry.manifest is None
        and not entry.problem
        and (entry.name == source or os.path.realpath(entry.path) == path)
    ]
    if not mine:
        return False
    MLCDirectory.open(mine[0].path).verify()
    entry = shelf.adopt(mine[0].name, Origin("file", mine[0].path.name))
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


VERBS = (add_, copy)
