"""A booted Debian 13 with Hob installed, in namespaces of its own: systemd is its process 1, as on a device.

The tree is the builder's tool chroot under the overlay of an image, with a third layer in memory for what is
written. Whatever runs in it ends with it, when the test's process is killed too.
"""

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 90

# $1 the folder to build it in, $2 the layers, topmost first, $3 process 1. A user namespace cannot be made in
# a chroot, and systemd makes some: the root must be the real one.
SCRIPT = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 hob "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" hob "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for folder in run tmp dev; do mount -t tmpfs -o mode=755 hob $folder; done
chmod 1777 tmp
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mkdir -p dev/pts dev/shm old etc/systemd/system-preset
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
echo uninitialized > etc/machine-id
printf 'enable hob.service\nenable hob-engine.socket\ndisable *\n' > etc/systemd/system-preset/00-test.preset
ip link set lo up
pivot_root . old
umount -l /old
exec env -i container=hob PATH=/usr/sbin:/usr/bin:/sbin:/bin $3
"""

ASK = """
import json, sys, urllib.request
key, model, port = sys.argv[1:]
body = {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": "What are you?"}]}
request = urllib.request.Request(
    f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
    {"content-type": "application/json", "authorization": f"Bearer {key}"})
try:
    with urllib.request.urlopen(request, timeout=80) as answer:
        print(answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""


@dataclass
class Container:
    """A running system. `init` is its process 1, seen from outside."""

    init: int

    def run(self, *argv: str, check: bool = True, timeout: float = PATIENCE) -> str:
        """Run a program in it, as root; its output, both kinds."""
        done = subprocess.run(
            ["nsenter", f"--target={self.init}", "--all", "--root", "--wd", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}\n{self.journal()}"
        return done.stdout

    def journal(self) -> str:
        """The last lines of its log."""
        return self.run("journalctl", "--no-pager", "-n", "60", "-o", "cat", check=False)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` has it."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def wait(self, unit: str, name: str, *wanted: str, seconds: float = PATIENCE) -> str:
        """Wait until a property of a unit has one of some values; the value."""
        deadline = time.monotonic() + seconds
        while (value := self.show(unit, name)) not in wanted:
            assert time.monotonic() < deadline, f"{unit}: {name} is {value!r}\n{self.journal()}"
            time.sleep(0.2)
        return value

    def kill(self, unit: str, how: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a unit's process; its process id."""
        pid = int(self.show(unit, "MainPID"))
        self.run("systemctl", "kill", "--kill-whom=main", f"--signal={how.name}", unit)
        return pid

    def new_process(self, unit: str, old: int) -> int:
        """Wait until a unit runs again in another process than `old`; its id."""
        deadline = time.monotonic() + PATIENCE
        while True:
            pid = int(self.show(unit, "MainPID"))
            if pid not in (0, old) and self.show(unit, "ActiveState") == "active":
                return pid
            assert time.monotonic() < deadline, self.journal()
            time.sleep(0.2)

    def ask(self, key: str, model: str = "") -> dict[str, Any]:
        """Put a question to the service; its JSON."""
        answer: dict[str, Any] = json.loads(self.run("/opt/hob/bin/python", "-c", ASK, key, model, "80"))
        return answer


SYSTEMD = "/usr/lib/systemd/systemd --unit=multi-user.target"
NOTHING = "/usr/bin/sleep infinity"
"""Process 1 of a mere chroot: systemd is installed and does not run."""


@contextlib.contextmanager
def booted(layers: list[Path], folder: Path, init: str = SYSTEMD) -> Iterator[Container]:
    """Boot the layers, the topmost first, in the empty folder; the system ends with the context."""
    unshared = ["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]
    stack = ":".join(str(layer) for layer in layers)
    log = folder.with_name("container.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", *unshared, "sh", "-c", SCRIPT, "sh", str(folder), stack, init],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            if pids := children.read_text().split():
                container = Container(int(pids[0]))
                # Until it has become process 1, its root is still ours.
                became = Path(f"/proc/{pids[0]}/comm").read_text().strip()
                if became == "systemd" == Path(init.split()[0]).name:
                    state = container.run("systemctl", "is-system-running", check=False).strip()
                    if state in ("running", "degraded"):
                        break
                elif became == Path(init.split()[0]).name:
                    break
            time.sleep(0.2)
        yield container
    finally:
        process.kill()  # and with it, by --kill-child, process 1 and all others
        process.wait()
