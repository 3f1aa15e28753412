"""`hob serve`: start the service, say where it is, stop cleanly."""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import click

from appliance.cli.options import settings_options
from appliance.config import Settings, load_settings
from appliance.engine.absent import Absent
from appliance.engine.choice import make_engine
from appliance.engine.client import EngineClient
from appliance.errors import SettingsError


@click.command("serve")
@settings_options(
    "lan", "host", "port", "name", "model", "context", "threads", "kernels", "data_dir", "log_level"
)
def command(**flags: object) -> None:
    """Start Hob and print its address. Stop it with Ctrl-C."""
    settings = load_settings(**flags)
    # To end by SIGTERM, as services do, is to end by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _alone(settings.data_dir), listen(settings) as listener:
            port = listener.getsockname()[1]
            again = True
            while again:
                if _restored(settings):
                    settings = load_settings(**flags)
                again = asyncio.run(_serve(settings.model_copy(update={"port": port}), listener))
    except KeyboardInterrupt:
        pass  # asked to stop, and stopped


def _restored(settings: Settings) -> bool:
    """Put a backup in place that waits for it; whether there was one."""
    if not (settings.data_dir / ".restore").exists():
        return False
    from appliance.backup import pending  # a tenth of a second that few starts are worth

    return pending.apply(settings) is not None


async def _serve(settings: Settings, listener: socket.socket) -> bool:
    """Run the service on a listening socket until a signal ends it; True where it is to start anew."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    if settings.log_level == "info":
        # What these say about each start, stop and request is of interest to developers only.
        for name in ("uvicorn.error", "uvicorn.access", "appliance.engine.client", "httpx2"):
            logging.getLogger(name).setLevel(logging.WARNING)
    engine = make_engine(settings)
    # The engine's process starts while this one imports the web stack, which takes as long. One that does not
    # start goes on trying; /healthz tells.
    starting = asyncio.create_task(engine.start())
    try:
        run = await asyncio.to_thread(_web)
        return await run(settings, listener, engine)
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await engine.close()


def _web() -> Callable[[Settings, socket.socket, EngineClient | Absent], Awaitable[bool]]:
    """Import what serves the web, and return it."""
    from appliance.cli.web import serve

    return serve


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


@contextlib.contextmanager
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
