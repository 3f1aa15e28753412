"""`hob image build`: make an image."""

import os
from pathlib import Path
from typing import Any

import click

from appliance.cli.image.order import order, order_options
from appliance.cli.image.stages import Stages
from appliance.cli.telling import say, spoken
from appliance.errors import StoppedError
from appliance.library.space import size
from builder.image.build import build_image
from builder.image.cache import Cache, default_root
from builder.image.jetson import how_to_flash
from builder.image.process import rights


@click.command("build")
@click.argument("recipe")
@click.option(
    "--out",
    default=".",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the files go.",
)
@order_options
@click.option(
    "--bsp",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="For a Jetson: where NVIDIA's board support package was unpacked.",
)
@click.option(
    "--bsp-allow",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A list of such packages, besides Hob's own, that may be used.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def command(recipe: str, out: Path, as_json: bool, **said: Any) -> None:
    """Make the image of RECIPE: a name from `hob image list`, or the path of a recipe of your own.

    Needs root or a user namespace. What it takes from a mirror is kept: another build needs no network.
    """
    with spoken(as_json):
        wanted = order(recipe, out, **said)
        if not as_json:
            click.echo(f"Building {wanted.recipe.name} {wanted.version} with {rights()} ...", err=True)
        stages = Stages(as_json)
        try:
            made = build_image(wanted, Cache(default_root()), stages)
            stages.finish()
        except KeyboardInterrupt as error:
            raise StoppedError(
                "stopped", hint="The stages that were finished are kept: the same command goes on from there."
            ) from error
        finally:
            stages.stop()
        for path in made:
            if as_json:
                say({"file": str(path), "bytes": path.stat().st_size})
            else:
                click.echo(f"{size(path.stat().st_size):>9}  {os.path.relpath(path)}")
        if wanted.recipe.format == "jetson" and not as_json:
            click.echo(f"With the board in recovery mode at a USB port: {how_to_flash(made[0])}")
