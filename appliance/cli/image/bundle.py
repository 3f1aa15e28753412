"""`hob image bundle`: make an update for devices that are in use."""

from pathlib import Path
from typing import Any

import click

from appliance.cli.image.order import order, order_options
from appliance.cli.image.stages import Stages
from appliance.cli.telling import say, spoken
from appliance.library.space import size
from builder.image.build import build_bundle
from builder.image.cache import Cache, default_root


@click.command("bundle")
@click.argument("recipe")
@click.option(
    "--out",
    default=".",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the file goes.",
)
@order_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def command(recipe: str, out: Path, as_json: bool, **said: Any) -> None:
    """Make the update of RECIPE alone, signed with `--keys`: what `hob image build` makes beside the image.

    Devices take it whose image was built with the same keys, and which run an older version.
    """
    with spoken(as_json):
        stages = Stages(as_json)
        try:
            made = build_bundle(order(recipe, out, **said), Cache(default_root()), stages)
            stages.finish()
        finally:
            stages.stop()
        if as_json:
            say({"file": str(made), "bytes": made.stat().st_size})
        else:
            click.echo(f"{size(made.stat().st_size):>9}  {made}")
