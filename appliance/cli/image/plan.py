"""`hob image plan`: what a build would do."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from appliance.cli.image.order import order, order_options
from appliance.library.space import size
from builder.image.cache import Cache, default_root
from builder.image.plan import plan


@click.command("plan")
@click.argument("recipe")
@click.option(
    "--out", default=".", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", hidden=True
)
@order_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(recipe: str, out: Path, as_json: bool, **said: Any) -> None:
    """Print the steps that building RECIPE takes, how large their results are, and which of them are kept.

    Builds nothing and asks no network. Takes the options of `build`.
    """
    steps = plan(order(recipe, out, **said), Cache(default_root()))
    if as_json:
        click.echo(json.dumps([asdict(step) for step in steps], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("Stage")
    table.add_column("What it makes", overflow="fold")
    table.add_column("Size", justify="right")
    table.add_column("")
    for step in steps:
        about = "" if step.done else "about "
        table.add_row(
            step.stage, step.text, about + size(step.size) if step.size else "", "kept" if step.done else ""
        )
    Console(highlight=False, markup=False).print(table)
