"""`hob serve`: start the service, say where it is, stop cleanly."""

import errno
import fcntl
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from appliance.config import Settings, load_settings
from appliance.errors import SettingsError

GRACE = 3
"""Seconds that open requests get to end when Hob stops."""


@click.command("serve")
@click.option("--lan", is_flag=True, default=None, help="Listen on all interfaces; announce on the LAN.")
@click.option("--host", help="Address to listen on (127.0.0.1).")
@click.option("--port", type=int, help="TCP port (8080); 0 takes a free one.")
@click.option("--name", help="Host name on the LAN, without .local (hob).")
@click.option("--model", help="Model that answers when none is named (hob-guide).")
@click.option("--context", type=int, help="Tokens of context reserved for a conversation (4096).")
@click.option("--threads", type=int, help="Engine threads; 0 means one per physical core.")
@click.option("--kernels", help="fast: int8 activations; exact: float activations, slower.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of all state.")
@click.option("--log-level", help="debug, info, warning or error (info).")
def command(**flags: object) -> None:
    """Start Hob and print its address. Stop it with Ctrl-C."""
    settings = load_settings(**flags)
    # To end by SIGTERM, as services do, is to end by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _alone(settings.data_dir), listen(settings) as listener:
            _serve(settings.model_copy(update={"port": listener.getsockname()[1]}), listener)
    except KeyboardInterrupt:
        pass  # asked to stop, and stopped


def _serve(settings: Settings, listener: socket.socket) -> None:
    """Run the service on a listening socket until a signal ends it."""
    # The web stack takes a third of a second to import; errors above come without it.
    import uvicorn

    from appliance.app import create_app
    from appliance.cli.console import Console

    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    # What uvicorn says about its own start and each request is of interest to developers only.
    for name in ("uvicorn.error", "uvicorn.access"):
        quiet = settings.log_level != "debug"
        logging.getLogger(name).setLevel(logging.WARNING if quiet else logging.DEBUG)

    console = Console(settings)
    app = create_app(settings, watcher=console)
    if settings.lan and app.state.store.owner_hash() is None:
        console.setup_code = app.state.gate.owner.setup_code

    class Server(uvicorn.Server):
        """Ends all answers before it waits for connections, so that open streams close at once."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            console.stopping()
            await app.state.end_streams()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        log_config=None,
        lifespan="on",
        proxy_headers=False,  # what a client says about its address is never believed
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    Server(config).run(sockets=[listener])


def listen(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        SettingsError: the port is taken or needs rights, or the address is not this machine's.
    """
    host, family = settings.host, socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    both = settings.lan and socket.has_dualstack_ipv6()
    if settings.lan:
        host, family = ("::", socket.AF_INET6) if both else ("0.0.0.0", socket.AF_INET)  # noqa: S104 - asked for
    try:
        return socket.create_server((host, settings.port), family=family, backlog=128, dualstack_ipv6=both)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {settings.port} is in use"
            hint = "Is Hob running already? Else choose another port: hob serve --port 8081"
        elif error.errno == errno.EACCES:
            message = f"port {settings.port} needs the rights of root"
            hint = "Ports from 1024 on do not: hob serve --port 8080"
        else:
            message = f"cannot listen on {host!r}: {error.strerror or error}"
            hint = "--host takes an address of this machine; --lan listens on all of them."
        raise SettingsError(message, hint=hint) from error


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this service: two would end each other's running answers.

    Raises:
        SettingsError: another Hob holds it, or it cannot be made.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(data_dir / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SettingsError(
            f"cannot write in {data_dir}: {error.strerror}",
            hint="HOB_DATA_DIR or --data-dir names another folder.",
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise SettingsError(
            f"another Hob is running on {data_dir}", hint="Stop it, or give this one another --data-dir."
        ) from error
    finally:
        os.close(handle)
