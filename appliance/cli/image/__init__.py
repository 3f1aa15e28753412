"""`hob image`: makes, checks and writes what a device boots. Each verb is imported only when it is called."""

from typing import ClassVar

import click

from appliance.cli import LazyGroup


class ImageGroup(LazyGroup):
    """The verbs about images."""

    package: ClassVar[str] = "appliance.cli.image"
    verbs: ClassVar[tuple[str, ...]] = (
        "list",
        "show",
        "plan",
        "build",
        "verify",
        "flash",
        "bundle",
        "keys",
        "prune",
    )


@click.group("image", cls=ImageGroup)
def command() -> None:
    """Make the image that a device boots, check it, and write it to a card or disk."""
