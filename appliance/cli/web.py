"""The web side of `hob serve`: the application in its server. Imports the whole web stack."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from appliance import systemd
from appliance.app import create_app
from appliance.cli import screen
from appliance.cli.console import Console
from appliance.config import Settings
from appliance.discovery.interfaces import reach
from appliance.engine.base import Engine

GRACE = 3
"""Seconds that open requests get to end when Hob stops."""


async def serve(settings: Settings, listener: socket.socket, engine: Engine) -> bool:
    """Serve on `listener` until a signal ends it; then close the application and `engine`.

    True where not a signal ended it, but the application that wants to start anew; `listener` stays open.
    """
    console = Console(settings)
    app = create_app(settings, engine, console)
    if not ip_address(listener.getsockname()[0]).is_loopback and app.state.store.owner_hash() is None:
        console.setup_code = app.state.gate.owner.setup_code

    class Server(uvicorn.Server):
        """Ends all answers before it waits for connections, so that open streams close at once."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:  # else the application refused
                systemd.notify(ready=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if not again:
                systemd.notify(stopping=True)
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
    server, again = Server(config), False

    def restart() -> None:
        nonlocal again
        again = server.should_exit = True

    app.state.restart = restart
    async with systemd.watched(), _screen(app, console):
        # It closes what it is given; who connects in between waits at the original.
        await server.serve(sockets=[listener.dup()])
    return again


@contextlib.asynccontextmanager
async def _screen(app: Starlette, console: Console) -> AsyncIterator[None]:
    """Keep a device's screen up to date, where HOB_SCREEN says that there is one."""
    file = os.environ.get("HOB_SCREEN")
    if not file:
        yield
        return
    settings: Settings = app.state.settings

    def compose() -> str:
        code = app.state.gate.owner.setup_code if app.state.store.owner_hash() is None else ""
        addresses = [str(address) for address in reach().announced if address.version == 4]
        return screen.text([console.host, *addresses], settings.port, code)

    task = asyncio.create_task(screen.keep(Path(file), compose))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
