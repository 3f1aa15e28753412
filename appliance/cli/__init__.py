"""The `hob` command. Each verb lives in a module of its own and is imported only when it is called."""

import importlib
import os
import sys
from typing import ClassVar

import click

from appliance import __version__
from appliance.errors import HobError
from builder.errors import BuildError


class LazyGroup(click.Group):
    """Knows its verbs by name and imports a verb only when it is called, so that `hob` starts fast."""

    package: ClassVar[str] = "appliance.cli"
    verbs: ClassVar[tuple[str, ...]] = (
        "serve",
        "engine",
        "chat",
        "model",
        "key",
        "owner",
        "backup",
        "update",
        "discover",
        "doctor",
        "image",
    )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order a person meets them."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module in `package` and take its `command`."""
        if cmd_name not in self.verbs:
            return None
        command: click.Command = importlib.import_module(f"{self.package}.{cmd_name}").command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hob")
@click.pass_context
def hob(context: click.Context) -> None:
    """Hob: an offline LLM appliance for your LAN."""
    if os.geteuid() == 0 and context.invoked_subcommand:
        from appliance.cli.become import become_owner  # a tenth of a second that others need not spend

        become_owner(context.invoked_subcommand)


def main() -> None:
    """Run the command; an error made for people is one line and a hint, with exit code 1."""
    try:
        hob.main(standalone_mode=True)
    except (HobError, BuildError) as error:
        click.echo(f"hob: {error}", err=True)
        if error.hint:
            click.echo(f"     {error.hint}", err=True)
        sys.exit(1)
