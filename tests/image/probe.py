"""A root shell inside a machine, for measuring; the image on the disk has none and gets none.

QEMU's firmware tables carry strings that systemd reads when it runs in a machine: further kernel options
(systemd-stub(7), `io.systemd.stub.kernel-cmdline-extra`) and credentials, a unit among them
(systemd.system-credentials(7), `systemd.extra-unit.*`). A computer of metal has such strings only from its
maker.
"""

import base64
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_UNIT = """\
[Unit]
Description=A root shell for measuring
DefaultDependencies=no
After=dev-{port}.device sysinit.target
[Service]
StandardInput=tty-force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/{port}
Environment=SYSTEMD_COLORS=0 SYSTEMD_URLIFY=0 SYSTEMD_PAGER=
ExecStart=/bin/sh -c 'stty raw -echo; echo "<here>"; while read -r l; do eval "$l"; echo "<end $?>"; done'
"""


def strings(options: str, port: str) -> Iterator[str]:
    """What the firmware's tables say: kernel options, and the probe's unit where `port` is a serial port."""
    if port:
        unit = base64.b64encode(_UNIT.format(port=port).encode()).decode()
        yield f"io.systemd.credential.binary:systemd.extra-unit.probe.service={unit}"
        options += " systemd.wants=probe.service"
    yield f"io.systemd.stub.kernel-cmdline-extra={options}"


class Probe:
    """The shell at the other end of a serial port."""

    def __init__(self, path: Path) -> None:
        """Connect to QEMU's end of the port, before there is a shell."""
        self._said = b""
        self._is_there = False
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))

    def run(self, command: str, seconds: float, patience: float) -> str:
        """Run a line of shell as root; what it printed on both outputs.

        Raises:
            AssertionError: it failed.
            TimeoutError: it runs for longer than `seconds`, or there was no shell within `patience`.
        """
        assert "\n" not in command
        if not self._is_there:
            self._until(rb"<here>\r?\n", patience)
            self._is_there = True
        self._socket.sendall(command.encode() + b"\n")
        found = self._until(rb"<end (\d+)>\r?\n", seconds)
        said = found[1].decode(errors="replace").replace("\r\n", "\n")
        assert found[2] == b"0", f"{command!r} ended with {found[2].decode()}: {said}"
        return said

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _until(self, pattern: bytes, seconds: float) -> tuple[bytes, bytes, bytes]:
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self._said)):
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            if not (data := self._socket.recv(65536)):
                raise TimeoutError("the machine hung up")
            self._said += data
        before, self._said = self._said[: found.start()], self._said[found.end() :]
        return found[0], before, found[1] if found.groups() else b""
