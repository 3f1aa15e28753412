"""Root's administration on a socket of its own, in a thread: what a device runs as hob-admin.service."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from appliance.admin import messages
from appliance.admin.handlers import HANDLERS, QUESTIONS
from appliance.admin.server import Server, Tell


@contextlib.contextmanager
def administration(path: Path) -> Iterator[list[str]]:
    """Serve at `path`; what was asked that would have restarted this machine comes out in the list."""
    restarts: list[str] = []

    async def reboot(request: messages.Reboot, tell: Tell) -> messages.Done:
        restarts.append("reboot")
        return messages.Done(text="The device restarts.")

    handlers: dict[type, Callable[[Any, Tell], Awaitable[messages.Final]]] = {
        **HANDLERS,
        messages.Reboot: reboot,
    }
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    loop = asyncio.new_event_loop()

    def run() -> None:
        asyncio.set_event_loop(loop)
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)
        loop.close()

    serving = loop.create_task(Server(handlers, {os.getuid()}, idle=3600, questions=QUESTIONS).run(listener))
    thread = threading.Thread(target=run, name="administration")
    thread.start()
    try:
        yield restarts
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join(30)
    assert not thread.is_alive()
