"""`hob image`: makes, checks and writes what a device boots. Each verb is imported only when it is called."""

import importlib
from typing import ClassVar

import click

from builder.errors import ToolMissingError


class ImageGroup(click.Group):
    """Knows its verbs by name and imports a verb only when it is called."""

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

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order a person meets them."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `appliance.cli.image.<verb>` and take its `command`."""
        if cmd_name not in self.verbs:
            return None
        # `list` would hide the built-in in its own module.
        module = f"appliance.cli.image.{cmd_name}{'_' if cmd_name == 'list' else ''}"
        try:
            command: click.Command = importlib.import_module(module).command
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise ToolMissingError(f"hob image {cmd_name} is not part of this installation") from error
        return command


@click.group("image", cls=ImageGroup)
def command() -> None:
    """Make the image that a device boots, check it, and write it to a card or disk."""
