"""`hob image show`: what a recipe says, with what it extends."""

import json

import click
import msgspec

from appliance.cli.image.order import check_settings
from builder.image import recipe


@click.command("show")
@click.argument("name", metavar="RECIPE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str, as_json: bool) -> None:
    """Print RECIPE in full, with everything that it takes from those it extends, as TOML."""
    found = recipe.load(name)
    check_settings(found)
    table = msgspec.to_builtins(found)
    if as_json:
        click.echo(json.dumps(table, indent=2))
        return
    # The name is the file's; a recipe does not say it.
    click.echo(f"# {table.pop('name')}\n{recipe.toml(table)}", nl=False)
