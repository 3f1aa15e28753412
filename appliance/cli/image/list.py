"""`hob image list`: the recipes that come with Hob."""

import json

import click
from rich.console import Console
from rich.table import Table

from builder.image import recipe


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the devices that images can be made for."""
    recipes = [recipe.load(name) for name in recipe.names()]
    if as_json:
        rows = [{"name": each.name, "title": each.title, "format": each.format} for each in recipes]
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("Name", "Device", "Architecture", "Starts by", "Models"):
        table.add_column(column, overflow="fold")
    for each in recipes:
        starts = each.boot if each.format == "disk" else each.format
        table.add_row(each.name, each.title, ", ".join(each.architectures), starts, ", ".join(each.models))
    Console(highlight=False, markup=False).print(table)
