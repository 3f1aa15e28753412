"""What systemd and a service tell each other: sockets at the start, state and signs of life afterwards.

The protocols are those of sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3). Without systemd nothing
is passed and nothing is told. Imported by the engine process: nothing heavy here.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

FIRST = 3
"""The first descriptor that systemd passes."""


def listener() -> socket.socket | None:
    """The listening Unix socket that systemd passed to this process; None where it passed none.

    Raises:
        OSError: it passed something else, or several.
    """
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return None
    count = os.environ.pop("LISTEN_FDS", "0")
    if count != "1":
        raise OSError(f"systemd passes {count} sockets, and one is wanted")
    os.set_inheritable(FIRST, False)
    passed = socket.socket(fileno=FIRST)
    if passed.family != socket.AF_UNIX or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError("what systemd passes is not a listening Unix socket")
    return passed


def notify(*, ready: bool = False, stopping: bool = False, alive: bool = False, status: str = "") -> bool:
    """Tell systemd how this service is; whether there was somebody to tell.

    Args:
        ready: it does its work from now on.
        stopping: it is about to end.
        alive: it is not stuck.
        status: one line for a person, which `systemctl status` shows.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    lines = [
        *(["READY=1"] if ready else []),
        *(["STOPPING=1"] if stopping else []),
        *(["WATCHDOG=1"] if alive else []),
        *([f"STATUS={' '.join(status.split())}"] if status else []),
    ]
    # A name that begins with @ is in the abstract namespace.
    address = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(lines).encode(), address)
        except OSError:  # who asked to be told is gone: that is no reason to end
            return False
    return True


def watchdog_interval() -> float | None:
    """Seconds between two signs of life, half of what systemd grants; None where it wants none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 2e6
    except (KeyError, ValueError):
        return None


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[None]:
    """While the context lasts, this event loop gives signs of life; systemd ends a service that hangs."""
    interval = watchdog_interval()
    task = asyncio.create_task(_live(interval), name="watchdog") if interval else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait([task])


async def _live(interval: float) -> None:
    while True:
        notify(alive=True)
        await asyncio.sleep(interval)
