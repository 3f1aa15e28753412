"""What `hob serve` says to the person, or the systemd, that started it: progress, address, set-up code."""

import io
import os
from ipaddress import IPv4Address

import click
import segno

from appliance import systemd
from appliance.cli.progress import Bar
from appliance.config import Settings
from appliance.security.hosts import interface_addresses
from appliance.system import Health, Watcher


class Console(Watcher):
    """Where Hob is goes to standard output, everything else to standard error.

    `setup_code` is shown when it is not "". `host` is the name that the LAN knows Hob by.
    """

    def __init__(self, settings: Settings) -> None:
        self.setup_code = ""
        self.host = f"{settings.name}.local"
        self._settings = settings
        self._shown = False
        self._bar = Bar(f"Compiling {settings.model} for this machine, this once ...")
        systemd.notify(status=f"loading {settings.model}")

    def progress(self, step: str, fraction: float) -> None:
        """Show how far compiling the model has come."""
        self._bar(step, fraction)
        systemd.notify(status=f"compiling {self._settings.model}: {step}, {fraction:.0%}")

    def settled(self, health: Health) -> None:
        """Say whether Hob can answer and, the first time, where it is."""
        self._bar.stop()
        systemd.notify(status=f"{health.model} answers" if health.status == "ok" else health.reason)
        if health.status != "ok":
            click.echo(f"hob: {health.reason}", err=True)
            click.echo("     Hob is running, but cannot answer.", err=True)
        elif self._shown:
            click.echo("Hob can answer again.", err=True)
        if not self._shown:
            self._shown = True
            self._show()

    def _show(self) -> None:
        """Everything in one piece, so that whoever waits for the address gets the code with it."""
        shown = addresses(self._settings)
        text = io.StringIO()
        print(f"Hob is at {' or '.join(shown)}", file=text)
        if "JOURNAL_STREAM" not in os.environ:  # a log is nothing to point a phone at
            # The last is an IP address: not every phone resolves .local names.
            segno.make(shown[-1]).terminal(text, compact=True)
        if not self._settings.lan and self._settings.host in ("127.0.0.1", "::1", "localhost"):
            print("Only this machine reaches it; `hob serve --lan` opens it to your network.", file=text)
        if self.setup_code:
            print(
                f"The first visitor sets the owner's password, with this code: {self.setup_code}", file=text
            )
        click.echo(text.getvalue(), nl=False)

    def named(self, host: str) -> None:
        """Say under which name the LAN knows Hob, where it is not the one asked for."""
        self.host = host or self.host
        if host and host != f"{self._settings.name}.local":
            click.echo(f"The name was taken; on the network Hob is http://{host}:{self._settings.port}")

    def stopping(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()


def addresses(settings: Settings) -> list[str]:
    """Addresses to open in a browser: on a LAN by name, then by IPv4 address."""
    hosts = [f"[{settings.host}]" if ":" in settings.host else settings.host]
    if settings.lan:
        local = sorted(a for a in interface_addresses() if isinstance(a, IPv4Address) and not a.is_loopback)
        hosts = [f"{settings.name}.local", *map(str, local)]
    return [f"http://{host}:{settings.port}" for host in hosts]
