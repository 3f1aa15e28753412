"""`hob engine`: become the engine process that a service of its own keeps running."""

import os
import sys

import click

from appliance.cli.options import settings_options
from appliance.config import load_settings
from appliance.engine.choice import engine_kind, worker_command
from appliance.errors import SettingsError

NOTHING_TO_RUN = os.EX_CONFIG
"""The exit status by which hob-engine.service knows that starting anew would change nothing."""


@click.command("engine")
@settings_options("engine_socket", "threads")
def command(**flags: object) -> None:
    """Run the engine alone, for a `hob serve` with the same `--engine-socket`.

    Where systemd passes a socket, that one is used.
    """
    settings = load_settings(**flags)
    kind = engine_kind(settings)
    if kind == "upstream":
        click.echo(
            'hob: with engine = "upstream" other servers run the models; there is no engine to run', err=True
        )
        sys.exit(NOTHING_TO_RUN)
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        where = ["--passed"]
    elif settings.engine_socket:
        where = ["--socket", settings.engine_socket]
    else:
        raise SettingsError(
            "the engine has no socket to listen on",
            hint="--engine-socket names one; `hob serve` alone starts an engine of its own.",
        )
    program = [*worker_command(kind), *where, "--threads", str(settings.threads)]
    # Not a child: systemd's socket and signals are for this very process, and what was imported here goes.
    os.execv(program[0], program)  # noqa: S606 - no shell, and every word is ours
