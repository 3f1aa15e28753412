"""A machine in QEMU: switched on, watched from outside, unplugged or shut down.

Its network is cut off (`restrict=on`): the guest reaches nobody, and only forwarded ports reach the guest. A
disk and its firmware's variables outlive the machine, so that it can be switched on again.
"""

import base64
import contextlib
import http.client
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from tests.image.boards import PC, Board, DirectBoot
from tests.image.disk import Disk
from tests.image.emulator import Emulator
from tests.image.probe import Probe, strings
from tests.image.qmp import Monitor, QmpError

WEB = 80
SHUTDOWN_SECONDS = 150
_POLL = 0.25
_TAIL = 4000
_COLOURS = re.compile(r"\x1b\[[0-9;:?]*[a-zA-Z]")


class Machine:
    """A machine with a disk in it. A context manager: switched on inside, gone outside.

    Args:
        emulator: where QEMU comes from.
        disk: the system's disk, written to.
        folder: for logs, sockets and the firmware's variables (`uefi-vars.fd`); may exist. With a short path:
            those of sockets have at most 107 bytes.
        board: what to play.
        accelerator: "tcg", or "kvm" where that works (`accelerator()`).
        ports: ports of the guest to forward; 80 always is.
        memory: MiB; 0 is the board's.
        disk_bus: what the disk hangs on; "" is the board's.
        clock: the hardware clock at start, such as "2001-01-01"; "" is the time of day.
        probe: have systemd run a root shell for `probe()`. It comes from outside, through the firmware's
            tables: the image is the one that people get.
        command_line: added to the kernel's, where the firmware has tables for that.
        direct: what is started in the place of the board's firmware.
        sticks: USB sticks that are in from the start.

    Attributes:
        url: the page's address from here, without a slash at its end.
        monitor: QEMU's monitor.
        starts: how often this folder's machine was switched on before; logs are numbered by it.
    """

    def __init__(
        self,
        emulator: Emulator,
        disk: Disk,
        folder: Path,
        *,
        board: Board = PC,
        accelerator: str = "tcg",
        ports: Sequence[int] = (),
        memory: int = 0,
        disk_bus: str = "",
        clock: str = "",
        probe: bool = False,
        command_line: str = "",
        direct: DirectBoot | None = None,
        sticks: Sequence[Path] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.emulator, self.disk, self.board, self.folder = emulator, disk, board, folder
        self.starts = len(list(folder.glob("serial-*.log")))
        self.serial_log = folder / f"serial-{self.starts}.log"
        self._own_log = folder / f"qemu-{self.starts}.log"
        self._ports = tuple(dict.fromkeys((WEB, *ports)))
        self._monitor_path = folder / "monitor"
        self._probe_path = folder / "probe"
        self.has_probe = probe
        self._probe: Probe | None = None
        self._arguments = [
            *self._base(accelerator, memory, clock),
            *self._firmware(direct),
            *self._channels(probe, command_line),
            *self._disk(disk_bus),
            *self._network(),
        ]
        for number, stick in enumerate(sticks):
            self._arguments += ["-drive", f"if=none,id=in{number},format=raw,file={stick}"]
            self._arguments += ["-device", f"usb-storage,drive=in{number}"]

    def __enter__(self) -> Self:
        self.serial_log.touch()
        self._monitor_path.unlink(missing_ok=True)
        with self._own_log.open("wb") as log:
            self.process = subprocess.Popen(
                self.emulator.command(self.board.program, *self._arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.emulator.environment(),
            )
        self.switched_on = time.monotonic()
        try:
            self.monitor = Monitor(self._monitor_path, lambda: self.process.poll() is None)
            self._forwarded = self._find_ports()
            if self.has_probe:
                self._probe = Probe(self._probe_path)  # at once: QEMU drops what nobody listens to
        except BaseException as error:
            self.kill()
            raise AssertionError(f"QEMU did not start: {self._own_log.read_text()}") from error
        self.url = f"http://127.0.0.1:{self.port(WEB)}"
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # From outside.

    def port(self, guest: int) -> int:
        """The port of 127.0.0.1 that leads to a port of the guest."""
        return self._forwarded[guest]

    def get(self, path: str, seconds: float = 30, port: int = WEB) -> tuple[int, bytes]:
        """Status and body of a GET, without following redirects.

        Raises:
            OSError, http.client.HTTPException: nobody answers (yet).
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port(port), timeout=seconds)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def wait(self, path: str = "/healthz", status: int = 200, seconds: float = 0) -> float:
        """Wait until a path is answered with this status; seconds since the machine was switched on.

        Raises:
            AssertionError: not within `seconds` (0: the board's patience), or the machine is off; carries the
                end of the serial log.
        """
        deadline = time.monotonic() + (seconds or self.board.patience)
        last = "nothing"
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                found, body = self.get(path)
                last = f"{found} {body[:200]!r}"
                if found == status:
                    return time.monotonic() - self.switched_on
            except (OSError, http.client.HTTPException) as error:
                last = f"{type(error).__name__} {error}"
            time.sleep(_POLL)
        raise AssertionError(f"{path} answered {last}, not {status}; the serial log ends:\n{self._ending()}")

    def is_open(self, guest: int, seconds: float = 10) -> bool:
        """Whether a forwarded TCP port of the guest lets anybody in.

        QEMU takes the connection before it knows, and drops it when the guest refuses or says nothing. An
        open port is one that says something.
        """
        with socket.create_connection(("127.0.0.1", self.port(guest)), seconds) as connection:
            try:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return bool(connection.recv(1))
            except (ConnectionError, TimeoutError):
                return False

    def serial(self) -> str:
        """What the serial port has said since the machine was switched on."""
        return self.serial_log.read_text(errors="replace")

    def wait_for_serial(self, text: str, seconds: float = 0) -> None:
        """Wait until the serial port says something.

        Raises:
            AssertionError: not within `seconds` (0: the board's patience), or the machine is off.
        """
        deadline = time.monotonic() + (seconds or self.board.patience)
        while text not in self.serial():
            waiting = time.monotonic() < deadline and self.process.poll() is None
            assert waiting, f"the serial port never said {text!r}; it ends:\n{self._ending()}"
            time.sleep(_POLL)

    def screen(self, picture: Path) -> Path:
        """Save what the screen shows, as a PNG."""
        self.monitor("screendump", filename=str(picture), format="png")
        return picture

    def written(self) -> int:
        """Bytes that the guest has written to the disk since the machine was switched on."""
        for device in self.monitor("query-blockstats"):
            if device.get("node-name") == "disk" or device.get("device") == "disk":
                return int(device["stats"]["wr_bytes"])
        raise AssertionError("QEMU knows no disk")

    def restarts(self) -> int:
        """How often the guest has restarted by itself since the machine was switched on."""
        self.monitor("query-status")
        return sum(event["event"] == "RESET" for event in self.monitor.events)

    def probe(self, command: str, seconds: float = 60) -> str:
        """Run a line of shell as root inside, once it is up; what it printed. Only with `probe=True`."""
        assert self._probe, "the machine was made without a probe"
        return self._probe.run(command, seconds, self.board.patience)

    def script(self, text: str, seconds: float = 60) -> str:
        """Run a short shell script as root inside, up to the first command that fails."""
        packed = base64.b64encode(text.encode()).decode()
        return self.probe(f"echo {packed} | base64 -d | sh -e", seconds)

    # Hands on it.

    @contextlib.contextmanager
    def stick(self, image: Path, name: str = "stick") -> Iterator[None]:
        """A USB stick, in while the context lasts; then pulled out without a word."""
        self.monitor(
            "blockdev-add", node_name=name, driver="raw", file={"driver": "file", "filename": str(image)}
        )
        self.monitor("device_add", driver="usb-storage", id=name, drive=name, bus="usb.0", removable=True)
        try:
            yield
        finally:
            if self.process.poll() is None:
                self.monitor("device_del", id=name)
                self.monitor.wait("DEVICE_DELETED")
                self._forget(name)

    def _forget(self, node: str) -> None:
        """Close a disk's file; what used it may take a moment to let go."""
        for _ in range(40):
            with contextlib.suppress(QmpError):
                self.monitor("blockdev-del", node_name=node)
                return
            time.sleep(_POLL)
        raise AssertionError(f"QEMU does not let go of {node}")

    def kill(self) -> None:
        """Pull the plug. What the guest had not handed to its disk is lost."""
        if self._probe:
            self._probe.close()
            self._probe = None
        if monitor := getattr(self, "monitor", None):
            monitor.close()
        self.process.kill()
        self.process.wait(20)

    def power_off(self) -> None:
        """Press the power button and wait until the machine is off.

        Raises:
            AssertionError: it is still on after `SHUTDOWN_SECONDS`.
        """
        self.monitor("system_powerdown")
        try:
            self.process.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still on; the serial log ends:\n{self._ending()}") from None

    def _ending(self) -> str:
        said = _COLOURS.sub("", self.serial())
        lines = [
            line
            for line in said.splitlines()
            if line.strip() and "] Job " not in line and ") Job " not in line
        ]
        return "\n".join(lines)[-_TAIL:] + self._own_log.read_text(errors="replace")

    def _find_ports(self) -> dict[int, int]:
        found = {}
        # TCP[HOST_FORWARD]  13  127.0.0.1 40201  10.0.2.15 80  0 0
        for line in self.monitor.human("info usernet").splitlines():
            words = line.split()
            if words and words[0].startswith("TCP[HOST_FORWARD]"):
                found[int(words[5])] = int(words[3])
        return found

    # The command line.

    def _base(self, accelerator: str, memory: int, clock: str) -> list[str]:
        board = self.board
        speed = "tcg,thread=multi" if accelerator == "tcg" else accelerator
        return [
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", board.machine, "-accel", speed),
            *("-cpu", "host" if accelerator == "kvm" else board.cpu),
            *("-smp", str(board.cpus), "-m", str(memory or board.memory)),
            *("-rtc", f"base={clock or 'utc'}", "-action", "watchdog=reset"),
            *("-chardev", f"socket,id=monitor,path={self._monitor_path},server=on,wait=off"),
            *("-mon", "chardev=monitor,mode=control"),
            *board.extra,
        ]

    def _firmware(self, direct: DirectBoot | None) -> list[str]:
        if direct:
            return ["-kernel", str(direct.program), "-dtb", str(direct.tree)]
        code, fresh = (self.emulator.firmware(name) for name in (self.board.firmware, self.board.variables))
        variables = self.folder / "uefi-vars.fd"
        if not variables.exists():
            shutil.copyfile(fresh, variables)
        return [
            *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
            *("-drive", f"if=pflash,unit=1,format=raw,file={variables}"),
        ]

    def _channels(self, probe: bool, command_line: str) -> list[str]:
        arguments = ["-chardev", f"file,id=serial,path={self.serial_log}"]
        arguments += [*(["-serial", "null"] * self.board.port), "-serial", "chardev:serial"]
        if probe:
            assert self.board.probe, f"no probe on {self.board.machine}"
            self._probe_path.unlink(missing_ok=True)
            arguments += ["-chardev", f"socket,id=probe,path={self._probe_path},server=on,wait=off"]
            arguments += ["-serial", "chardev:probe"]
        if self.board.firmware:
            said = self.folder / "strings"
            options = f"console={self.board.console} systemd.show_status=yes {command_line}"
            for number, line in enumerate(strings(options, self.board.probe if probe else "")):
                path = said.with_name(f"string-{number}")
                path.write_text(line)
                arguments += ["-smbios", f"type=11,path={path}"]
        return arguments

    def _disk(self, bus: str) -> list[str]:
        bus = bus or self.board.disk
        if bus == "sd":
            return ["-drive", f"if=sd,id=disk,format=raw,file={self.disk.path}"]
        device = {
            "virtio": "virtio-blk-pci,drive=disk,bootindex=0",
            "nvme": "nvme,drive=disk,serial=hob,bootindex=0",
            "ahci": "ide-hd,drive=disk,bus=ide.0,bootindex=0",
        }[bus]
        node = f"driver=raw,node-name=disk,discard=unmap,file.driver=file,file.filename={self.disk.path}"
        return ["-blockdev", node, "-device", device, "-boot", "strict=on"]

    def _network(self) -> list[str]:
        forwards = ",".join(f"hostfwd=tcp:127.0.0.1:0-:{port}" for port in self._ports)
        card = ["-device", f"{self.board.nic},netdev=net"] if self.board.nic else []
        return ["-netdev", f"user,id=net,restrict=on,{forwards}", *card]
