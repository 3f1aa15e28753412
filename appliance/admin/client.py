"""The service's side: ask, hear how it goes, get the answer or its error."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from appliance.admin import wire
from appliance.admin.messages import Failed, Progress, Reply, Request
from appliance.errors import (
    AdminError,
    ConflictError,
    DiskFullError,
    HobError,
    InvalidRequestError,
    NotFoundError,
    UpdateError,
)

SOCKET = Path("/run/hob-admin.sock")

PATIENCE = 90.0
"""Seconds without a word after which the administration counts as dead. Long work tells how it goes."""

Answer = TypeVar("Answer", bound=Reply)

_ERRORS: dict[str, type[HobError]] = {
    kind.code: kind
    for kind in (InvalidRequestError, ConflictError, DiskFullError, NotFoundError, UpdateError)
}


def socket_path() -> Path:
    """Where the administration listens; HOB_ADMIN_SOCKET names another place."""
    return Path(os.environ.get("HOB_ADMIN_SOCKET", SOCKET))


def present() -> bool:
    """Whether this is a device of its own, and not a program on somebody's computer."""
    return socket_path().is_socket()


def absent() -> AdminError:
    """What to say where there is no administration."""
    return AdminError(
        "this kind of installation does not let Hob change the machine it runs on",
        hint="Only Hob's own images do. Here, use the means of its operating system.",
        code="not_a_device",
    )


def _quiet(progress: Progress) -> None:
    """Nobody wants to know."""


async def ask(request: Request, answer: type[Answer], tell: Callable[[Progress], None] = _quiet) -> Answer:
    """Have `request` done and return its reply, of type `answer`; `tell` hears how far it has come.

    Raises:
        AdminError: it did not work, or there is no administration here.
        InvalidRequestError, ConflictError, DiskFullError, NotFoundError: the administration's refusal.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(socket_path(), limit=wire.MAX_LINE)
    except OSError as error:
        if not present():
            raise absent() from error
        raise AdminError(
            f"the device's administration cannot be reached: {error.strerror or error}",
            hint="Its socket (systemctl status hob-admin.socket) says more.",
        ) from error
    try:
        writer.write(wire.pack(request))
        await writer.drain()
        while True:
            async with asyncio.timeout(PATIENCE):
                reply = wire.parse_reply(await wire.read_line(reader))
            if not isinstance(reply, Progress):
                break
            if reply.text:
                tell(reply)
    except (OSError, wire.WireError, TimeoutError) as error:
        raise AdminError(
            f"the device's administration gave no answer: {error or 'it took too long'}",
            hint="Its log (journalctl -u hob-admin) says more.",
        ) from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if isinstance(reply, answer):
        return reply
    if isinstance(reply, Failed):
        kind = _ERRORS.get(reply.code, AdminError)
        raise kind(reply.message, hint=reply.hint, code=reply.code)
    raise AdminError(
        f"the device's administration answered with {type(reply).__name__}, not {answer.__name__}"
    )
