"""The web side of `hob serve`: the application in its server. Imports the whole web stack."""

import socket
from ipaddress import ip_address

import uvicorn

from appliance import systemd
from appliance.app import create_app
from appliance.cli.console import Console
from appliance.config import Settings
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
    async with systemd.watched():
        # It closes what it is given; who connects in between waits at the original.
        await server.serve(sockets=[listener.dup()])
    return again
