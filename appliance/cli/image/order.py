"""What `hob image build` and `hob image plan` are told, and the order that follows from it."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from appliance import __version__
from appliance.config import Settings
from builder.errors import RecipeError
from builder.image import keys, recipe
from builder.image.recipe import Recipe
from builder.image.stages import Order

Command = TypeVar("Command", bound=Callable[..., Any])


def order_options(command: Command) -> Command:
    """Give a command the options that `order` takes."""
    options = [
        click.option(
            "--version",
            "version",
            default=__version__,
            show_default=True,
            help="What Hob calls itself in it.",
        ),
        click.option(
            "--keys",
            "folder",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Keys of `hob image keys`: they sign, and the device takes updates signed by them.",
        ),
        click.option(
            "--lock",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Build from exactly these packages; written if it does not exist.",
        ),
        click.option("--update", is_flag=True, help="Take the newest packages and write the lock anew."),
        click.option(
            "--mirror",
            default="",
            metavar="URL",
            help="A Debian mirror [default: the one this machine uses].",
        ),
        click.option("--fast", is_flag=True, help="To try things out: weaker compression, and a plain .img."),
    ]
    for option in reversed(options):  # click shows the last one first
        command = option(command)
    return command


def order(
    name: str,
    out: Path,
    *,
    version: str,
    folder: Path | None,
    lock: Path | None,
    update: bool,
    mirror: str,
    fast: bool,
    bsp: Path | None = None,
    bsp_allow: Path | None = None,
) -> Order:
    """The order that follows from what was said.

    Raises:
        RecipeError: the recipe, or a setting in it, is wrong.
        BuildError: there are no keys in the folder.
    """
    found = recipe.load(name)
    check_settings(found)
    return Order(
        recipe=found,
        version=version,
        out=out,
        mirror=mirror,
        lock=lock,
        update=update,
        keys=keys.load(folder) if folder else None,
        bsp=bsp,
        bsp_allow=bsp_allow,
        fast=fast,
    )


def check_settings(recipe: Recipe) -> None:
    """Raise `RecipeError` if the device's service would not take the recipe's settings."""
    for key in recipe.settings:
        if key not in Settings.model_fields:
            near = difflib.get_close_matches(key, Settings.model_fields, 1)
            raise RecipeError(
                f"recipe {recipe.name}: settings.{key}: there is no such setting",
                hint=f"Did you mean {near[0]}?" if near else "docs/settings.md has all of them.",
            )
    try:
        Settings(**recipe.settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"recipe {recipe.name}: settings.{key}: {first['msg']}") from error
