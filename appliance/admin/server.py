"""Root's side: hears requests on the socket that systemd opened, checks who asks, has them done, logs them.

The process is started by the first request and ends when it has had nothing to do for a while, so that an
idle device carries nothing of it.
"""

import asyncio
import contextlib
import logging
import os
import pwd
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any

from appliance.admin import wire
from appliance.admin.messages import Failed, Final, Progress, Request
from appliance.errors import HobError

log = logging.getLogger(__name__)

Tell = Callable[[Progress], None]
Handler = Callable[[Request, Tell], Awaitable[Final]]

IDLE_SECONDS = 20.0
"""How long the process stays without a request."""

REQUEST_SECONDS = 5.0
"""How long a peer may take to say what it wants."""

LISTEN_FDS_START = 3  # sd_listen_fds(3)

STRANGER = Failed(code="forbidden", message="This user may not administer the device.")

# From Python 3.13 on, a server that ends removes its socket's file. It is systemd's, which listens on.
_KEEP_THE_FILE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}

_UCRED = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


def peer_uid(connection: socket.socket) -> int:
    """The user whose process opened the other end, as the kernel noted it then (SO_PEERCRED, unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(raw)[1])


def allowed_uids(users: Collection[str]) -> frozenset[int]:
    """Root, and those of `users` that exist."""
    found = {0}
    for user in users:
        with contextlib.suppress(KeyError):
            found.add(pwd.getpwnam(user).pw_uid)
    return frozenset(found)


class Server:
    """Serves a listening Unix socket. Requests that change something go one after the other."""

    def __init__(
        self,
        handlers: Mapping[type, Handler],
        allowed: Collection[int],
        idle: float = IDLE_SECONDS,
        questions: Collection[type] = (),
    ) -> None:
        """`handlers` by the type of request; `allowed`: the users who may ask; `idle`: as `IDLE_SECONDS`;
        `questions`: types of requests that change nothing, and are answered while others are worked on.
        """
        self._handlers = handlers
        self._questions = frozenset(questions)
        self._allowed = allowed
        self._idle = idle
        self._open = 0
        self._rested = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    async def run(self, listener: socket.socket) -> None:
        """Serve until there has been nothing to do for `idle` seconds."""
        server = await asyncio.start_unix_server(
            self._connected, sock=listener, limit=wire.MAX_LINE, **_KEEP_THE_FILE
        )
        async with server:
            while True:
                self._rested.clear()
                try:
                    async with asyncio.timeout(self._idle):
                        await self._rested.wait()
                except TimeoutError:
                    if not self._open:
                        return

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            await self._serve(reader, writer)
        except OSError as error:  # the peer left: what it asked for is done all the same
            log.info("the peer left: %s", error)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._open -= 1
            self._rested.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = peer_uid(writer.get_extra_info("socket"))
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                # Read also where nothing will be done: closing on unread bytes would lose the reply.
                line = await wire.read_line(reader)
            if uid not in self._allowed:
                log.warning("refused: user %d may not ask", uid)
                writer.write(wire.pack(STRANGER))
                return
            request = wire.parse_request(line)
        except (wire.WireError, TimeoutError) as error:
            reason = str(error) or "the request did not come"
            log.warning("refused a message of user %d: %s", uid, reason)
            writer.write(wire.pack(Failed(code="invalid_value", message=f"Not a request: {reason}.")))
            return

        def tell(progress: Progress) -> None:
            if not writer.is_closing():
                writer.write(wire.pack(progress))

        name = type(request).__struct_config__.tag
        question = type(request) in self._questions
        # A page that is looked at asks every second; the log is for what was done.
        level = logging.DEBUG if question else logging.INFO
        log.log(level, "user %d asks: %s", uid, name)
        async with contextlib.nullcontext() if question else self._one_at_a_time, _beat(tell):
            reply = await self._handle(request, tell)
        if isinstance(reply, Failed):
            log.warning("%s: failed: %s", name, reply.message)
        else:
            log.log(level, "%s: done", name)
        writer.write(wire.pack(reply))
        await writer.drain()

    async def _handle(self, request: Request, tell: Tell) -> Final:
        """Have a request done; whatever goes wrong becomes its reply."""
        handler = self._handlers.get(type(request))
        if handler is None:
            return Failed(code="not_found", message="This device cannot do that.")
        try:
            return await handler(request, tell)
        except HobError as error:
            return Failed(code=error.code, message=error.message, hint=error.hint)
        except Exception as error:  # the peer must hear that it failed, whatever it was
            log.exception("unforeseen")
            return Failed(code="internal_error", message=f"It failed unforeseen: {error!r}.")


@contextlib.asynccontextmanager
async def _beat(tell: Tell, every: float = 20.0) -> AsyncIterator[None]:
    """Say now and then that the work goes on, so that the peer knows it from a dead end."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(every)
            tell(Progress())

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


def inherited() -> socket.socket:
    """The listening socket that systemd passed (sd_listen_fds(3)).

    Raises:
        RuntimeError: there is none: the process was not started by its socket unit.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        raise RuntimeError("hob-admin is started by hob-admin.socket, which passes it one socket")
    return socket.socket(fileno=LISTEN_FDS_START)
