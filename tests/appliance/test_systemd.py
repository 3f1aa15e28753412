"""What systemd and a service tell each other, with a real socket in systemd's place."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import systemd

pytestmark = pytest.mark.anyio
LIMIT = 20


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where systemd listens for notifications."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(LIMIT)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def test_what_is_told(manager: socket.socket) -> None:
    """State and status go in one message; a status is one line, whatever a model's name has in it."""
    assert systemd.notify(ready=True, status="loading\nREADY=1 x")
    assert manager.recv(1000).decode().splitlines() == ["READY=1", "STATUS=loading READY=1 x"]
    assert systemd.notify(stopping=True)
    assert manager.recv(1000) == b"STOPPING=1"


def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without systemd nothing happens; nor does it when systemd is gone."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not systemd.notify(ready=True)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nowhere"))
    assert not systemd.notify(ready=True)


async def test_signs_of_life(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come from the event loop, twice as often as they must, and end with the context."""
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_interval() == 0.05
    async with asyncio.timeout(LIMIT), systemd.watched():
        for _ in range(3):
            assert await asyncio.to_thread(manager.recv, 1000) == b"WATCHDOG=1"
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "watchdog"]


def test_a_watchdog_that_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child inherits is meant for its parent; without a number there is no watchdog."""
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_interval() is None
    monkeypatch.delenv("WATCHDOG_PID")
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert systemd.watchdog_interval() is None


CHILD = """
import os, socket, sys
os.environ["LISTEN_PID"] = sys.argv[1] if sys.argv[1] != "own" else str(os.getpid())
from appliance import systemd
found = systemd.listener()
print(None if found is None else (found.getsockname(), found.get_inheritable(), os.environ.get("LISTEN_FDS")))
"""


def passed(path: Path, pid: str, count: str, *, listening: bool = True) -> subprocess.CompletedProcess[str]:
    """Start a process as systemd starts one with sockets, and have it take the socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        if listening:
            listener.listen()
        fd = listener.fileno()
        return subprocess.run(
            [sys.executable, "-c", CHILD, pid],
            env={**os.environ, "LISTEN_FDS": count},
            pass_fds=[3],
            preexec_fn=lambda: os.dup2(fd, 3),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )


def test_a_socket_that_systemd_passes(tmp_path: Path) -> None:
    """It is taken once, and no child inherits it."""
    path = tmp_path / "engine.sock"
    assert passed(path, "own", "1").stdout.strip() == f"('{path}', False, None)"


def test_what_is_passed_to_another(tmp_path: Path) -> None:
    """Sockets for another process are left alone; too many, or one that does not listen, are an error."""
    assert passed(tmp_path / "a", "1", "1").stdout.strip() == "None"
    assert "passes 2 sockets" in passed(tmp_path / "b", "own", "2").stderr
    assert "not a listening Unix socket" in passed(tmp_path / "c", "own", "1", listening=False).stderr
