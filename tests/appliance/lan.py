"""A LAN on one machine: network namespaces on a bridge, with real multicast, and Avahi as a neighbour."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

TOOLS = ("ip", "unshare", "mount", "avahi-daemon", "avahi-browse", "avahi-resolve", "dbus-daemon")
_number = count(1)


def missing() -> str:
    """What keeps this machine from making a LAN; empty when nothing does."""
    absent = [tool for tool in TOOLS if shutil.which(tool, path=search_path()) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"hobprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return ""


def search_path() -> str:
    """PATH with the folders of system daemons, which an ordinary shell may lack."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def wait_for(what: str, check: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until `check` holds; fail the test, naming `what`, when it does not in time."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)


class Machine:
    """One namespace with one interface, `eth0`, on the LAN: `port` of the switch."""

    def __init__(self, namespace: str, switch: str, port: str) -> None:
        self.namespace = namespace
        self.address = ""
        self._switch = switch
        self._port = port

    def command(self, *args: str) -> list[str]:
        """The command line that runs `args` on this machine."""
        return ["ip", "netns", "exec", self.namespace, *args]

    def run(self, *args: str, env: Mapping[str, str] | None = None, timeout: float = 60) -> str:
        """Run a program to its end; what it prints on stdout."""
        result = subprocess.run(
            self.command(*args),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PATH": search_path(), **(env or {})},
            check=False,
        )
        assert result.returncode == 0, f"{args}: {result.stdout}{result.stderr}"
        return result.stdout

    @contextmanager
    def start(
        self, *args: str, env: Mapping[str, str] | None = None, log: Path
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a program until the block ends; its output goes to the file `log`."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(*args),
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": search_path(), "PYTHONUNBUFFERED": "1", **(env or {})},
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def plug(self, state: str) -> None:
        """Pull the cable ("down") or put it in ("up")."""
        ip("-n", self._switch, "link", "set", self._port, state)

    def isolate(self, state: str) -> None:
        """Keep this machine ("on") from seeing other isolated ones, without either noticing a change."""
        ip("-n", self._switch, "link", "set", self._port, "type", "bridge_slave", "isolated", state)

    def move(self, address: str) -> None:
        """Give the machine another address, as a DHCP server might."""
        ip("-n", self.namespace, "address", "flush", "dev", "eth0", "scope", "global")
        ip("-n", self.namespace, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", self.namespace, "route", "replace", "224.0.0.0/4", "dev", "eth0")
        self.address = address

    def add_ipv6(self, address: str) -> None:
        """Give the machine an IPv6 address besides."""
        ip("-n", self.namespace, "address", "add", f"{address}/64", "dev", "eth0", "nodad")

    def drop_ipv4(self) -> None:
        """Leave the machine with IPv6 alone."""
        ip("-n", self.namespace, "-4", "address", "flush", "dev", "eth0")


class Avahi:
    """An Avahi daemon on a machine, with a message bus of its own."""

    def __init__(self, machine: Machine, bus: Path, log: Path) -> None:
        self.machine = machine
        self.env = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}
        self._log = log

    def host_name(self) -> str:
        """The name that the daemon holds now; "" before it has one."""
        names = re.findall(r"Host name is (\S+)\. Local", self._log.read_text())
        return str(names[-1]) if names else ""

    def resolve(self, name: str) -> str:
        """The IPv4 address of a host name; "" when nobody answers."""
        result = subprocess.run(
            self.machine.command("avahi-resolve", "-4", "-n", name),
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, **self.env},
            check=False,
        )
        return result.stdout.split("\t")[1].strip() if "\t" in result.stdout else ""

    def services(self) -> list[list[str]]:
        """Web services, resolved: interface, protocol, name, type, domain, host, address, port, TXT."""
        listed = self.machine.run(
            "avahi-browse", "--parsable", "--resolve", "--terminate", "_http._tcp", env=self.env
        )
        return [line.split(";")[1:] for line in listed.splitlines() if line.startswith("=")]


class Lan:
    """A bridge and the machines on it."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._machines = 0
        self._bridge = self._namespace()
        ip("-n", self._bridge, "link", "add", "lan", "type", "bridge", "mcast_snooping", "0")
        ip("-n", self._bridge, "link", "set", "lan", "up")

    def machine(self) -> Machine:
        """Another machine, plugged in: 10.77.0.1, 10.77.0.2, …"""
        namespace = self._namespace()
        self._machines += 1
        # Without the check for duplicates IPv6 addresses are there from the start, and nothing changes later.
        no_check = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad"
        subprocess.run(["ip", "netns", "exec", namespace, "sh", "-c", no_check], check=True)
        port = f"port{self._machines}"
        ip(
            *("-n", namespace, "link", "add", "eth0", "type", "veth"),
            *("peer", "name", port, "netns", self._bridge),
        )
        ip("-n", self._bridge, "link", "set", port, "master", "lan", "up")
        ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", namespace, "link", "set", "eth0", "up")
        machine = Machine(namespace, self._bridge, port)
        machine.move(f"10.77.0.{self._machines}")
        return machine

    def avahi(self, machine: Machine, host_name: str) -> Avahi:
        """Start Avahi under a host name."""
        folder = self._folder / f"avahi{next(_number)}"
        folder.mkdir()
        bus, log = folder / "bus", folder / "avahi.log"
        (folder / "dbus.conf").write_text(
            f"<busconfig><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>"
            '<policy context="default"><allow user="*"/><allow own="*"/>'
            '<allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>'
        )
        (folder / "avahi.conf").write_text(
            f"[server]\nhost-name={host_name}\nuse-ipv4=yes\nuse-ipv6=no\nenable-dbus=yes\n"
            "ratelimit-interval-usec=0\n[wide-area]\nenable-wide-area=no\n[publish]\npublish-workstation=no\n"
        )
        avahi = Avahi(machine, bus, log)
        self._stack.enter_context(
            machine.start(
                *("dbus-daemon", "--nofork", f"--config-file={folder / 'dbus.conf'}"), log=folder / "dbus.log"
            )
        )
        wait_for("the message bus", bus.exists)
        # Avahi's folder for its process id is fixed; a /run of its own keeps daemons apart.
        daemon = f"avahi-daemon --no-drop-root --no-chroot --no-rlimits -f {folder / 'avahi.conf'}"
        self._stack.enter_context(
            machine.start(
                *("unshare", "-m", "sh", "-c", f"mount -t tmpfs tmpfs /run && exec {daemon}"),
                env=avahi.env,
                log=log,
            )
        )
        wait_for("Avahi to be up", lambda: bool(avahi.host_name()))
        return avahi

    def hob(self, *args: str) -> list[str]:
        """The command line of this checkout's `hob`."""
        return [sys.executable, "-c", "import appliance.cli; appliance.cli.main()", *args]

    def _namespace(self) -> str:
        name = f"hob{os.getpid()}n{next(_number)}"
        ip("netns", "add", name)
        self._stack.callback(ip, "netns", "delete", name)
        return name


@contextmanager
def a_lan(folder: Path) -> Iterator[Lan]:
    """A LAN until the block ends; every process and namespace of it ends with it."""
    with ExitStack() as stack:
        yield Lan(stack, folder)


def ip(*args: str) -> None:
    """Run `ip`."""
    result = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"ip {' '.join(args)}: {result.stderr}"


def python(code: str, *args: str) -> Sequence[str]:
    """The command line that runs a piece of Python with this interpreter."""
    return [sys.executable, "-c", code, *args]
