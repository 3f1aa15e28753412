"""QEMU's monitor: one command at a time over its Unix socket (QMP, docs/interop/qmp-spec.rst in QEMU)."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self


class QmpError(Exception):
    """QEMU refused a command, or hung up."""


class Monitor:
    """A connection to QEMU's monitor. Events that arrive are kept in `events`, oldest first."""

    def __init__(self, path: Path, alive: Callable[[], bool], seconds: float = 20) -> None:
        """Connect to the socket that QEMU makes at its start; waits at most `seconds`, while QEMU lives."""
        self.events: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if not alive() or time.monotonic() > deadline:
                    self._socket.close()
                    raise
                time.sleep(0.02)
        self._socket.settimeout(seconds)
        self._lines = self._socket.makefile("rb")
        try:
            self._read()  # the greeting
            self("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Carry out a command and return what it returns. Underscores in names stand for hyphens.

        Raises:
            QmpError: QEMU refused it, or ended.
        """
        renamed = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": renamed}).encode())
        while True:
            answer = self._read()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QmpError(f"{command}: {answer['error']['desc']}")
            self.events.append(answer)

    def human(self, line: str) -> str:
        """Carry out a command of the monitor for people, where QMP has none."""
        return str(self("human-monitor-command", command_line=line))

    def wait(self, event: str, seconds: float = 30) -> dict[str, Any]:
        """Wait for the next event of this name that nobody has waited for yet."""
        deadline = time.monotonic() + seconds
        while True:
            for number, happened in enumerate(self.events):
                if happened["event"] == event:
                    return self.events.pop(number)
            if time.monotonic() > deadline:
                raise QmpError(f"no {event} within {seconds:g} s")
            self("query-status")  # events arrive before its answer
            time.sleep(0.1)

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise QmpError("QEMU hung up")
        message: dict[str, Any] = json.loads(line)
        return message
