"""What `hob serve` says to the person who started it: progress, address, QR code, set-up code."""

import os
import sys
from ipaddress import IPv4Address

import click
import segno
from rich import console, progress

from appliance.config import Settings
from appliance.security.hosts import interface_addresses
from appliance.system import Health


class Console:
    """The address goes to standard output, everything else to standard error."""

    def __init__(self, settings: Settings) -> None:
        self.setup_code = ""
        self._settings = settings
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            console=console.Console(stderr=True),
            transient=True,
        )
        self._task: progress.TaskID | None = None

    def progress(self, step: str, fraction: float) -> None:
        """Show how far compiling the model has come."""
        if self._task is None:
            click.echo(f"Compiling {self._settings.model} for this machine, this once ...", err=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        self._bar.update(self._task, description=step, completed=fraction)

    def settled(self, health: Health) -> None:
        """Say where Hob is, and whether it can answer."""
        self._bar.stop()
        if health.status == "failed":
            click.echo(f"hob: {health.reason}", err=True)
            click.echo("     Hob is running, but cannot answer.", err=True)
        port = self._settings.port
        shown = addresses(self._settings)
        click.echo(f"Hob is at {' or '.join(f'http://{host}:{port}' for host in shown)}")
        if "JOURNAL_STREAM" not in os.environ:  # a log is nothing to point a phone at
            # The last is an IP address: not every phone resolves .local names.
            segno.make(f"http://{shown[-1]}:{port}").terminal(sys.stdout, compact=True)
        if not self._settings.lan:
            click.echo("Only this machine reaches it; `hob serve --lan` opens it to your network.")
        if self.setup_code:
            click.echo(
                f"The first visitor sets the owner's password; the page asks for this code: {self.setup_code}"
            )
        sys.stdout.flush()

    def stopping(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()


def addresses(settings: Settings) -> list[str]:
    """Host names and addresses to reach this Hob by: the name first, then IPv4 addresses of the LAN."""
    if not settings.lan:
        return [f"[{settings.host}]" if ":" in settings.host else settings.host]
    found = sorted(
        address
        for address in interface_addresses()
        if isinstance(address, IPv4Address) and address.is_private
    )
    return [f"{settings.name}.local", *(str(address) for address in found if not address.is_loopback)]
