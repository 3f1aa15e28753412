"""A container image as a runtime would run it: unpacked, as another user, read-only, in its own namespaces.

No runtime is needed for that: the kernel's own means are enough, and stricter here than Docker's defaults.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.image.toolbox import Toolbox

TOOLS = ("unshare", "nsenter", "setpriv", "mount", "ip", "chroot")
START_SECONDS = 90

# $1 the root file system, $2 the volume for /data, then the program. /dev has what every runtime puts there.
ENTER = """
root=$1 data=$2
shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro,nosuid "$root"
mount --bind "$data" "$root/data"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for node in null zero full random urandom; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -o remount,ro "$root/dev"
ip link set lo up
exec setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid \
    chroot --userspec="$WHO" "$root" /usr/bin/env --ignore-environment --chdir=/data "$@"
"""


@dataclass
class Container:
    """An unpacked image with a volume.

    Attributes:
        bundle: folder with `rootfs` and the runtime's `config.json`, as umoci makes it.
        data: what is mounted at /data.
    """

    bundle: Path
    data: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @classmethod
    def unpack(cls, archive: Path, architecture: str, folder: Path, toolbox: Toolbox) -> "Container":
        """Unpack the image for an architecture out of an archive, by the tools that others use for it."""
        folder.mkdir(parents=True)
        toolbox.run(
            [
                "sh", "-ec",
                'skopeo copy --quiet --override-arch "$1" "oci-archive:$2" oci:layout:x;'
                "umoci unpack --image layout:x bundle; rm -r layout;"
                'skopeo inspect --raw --config --override-arch "$1" "oci-archive:$2" > bundle/image.json',
                "-", architecture, archive,
            ],
            read=[archive.parent], write=[folder], cwd=folder,
        )  # fmt: skip
        data = folder / "data"
        # A fresh volume takes over the owner and the mode of the image's folder, as Docker does it.
        stat = (folder / "bundle/rootfs/data").stat()
        data.mkdir(mode=stat.st_mode & 0o7777)
        os.chown(data, stat.st_uid, stat.st_gid)
        return cls(folder / "bundle", data)

    @property
    def rootfs(self) -> Path:
        """The unpacked file system."""
        return self.bundle / "rootfs"

    @property
    def process(self) -> dict[str, Any]:
        """What the image says of the process to run."""
        found: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())["process"]
        return found

    def start(self) -> None:
        """Start the image's own program and wait until it says that it can answer."""
        user, log = self.process["user"], (self.bundle / "log").open("wb")
        assert user["uid"] != 0
        enter = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
        program = [*self.process["env"], *self.process["args"]]
        with log:
            self._process = subprocess.Popen(
                [*enter, "sh", "-euc", ENTER, "-", self.rootfs, self.data, *program],
                env={"PATH": os.environ["PATH"], "WHO": f"{user['uid']}:{user['gid']}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + START_SECONDS
        while self.run(*self.health, check=False).returncode:
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.5)

    @property
    def health(self) -> list[str]:
        """The image's own check, which Docker runs."""
        config = json.loads((self.bundle / "image.json").read_text())["config"]
        kind, *program = config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return [str(word) for word in program]

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in the running container, as `docker exec` does."""
        pid, user = self._inside(), self.process["user"]
        enter = ["nsenter", f"--target={pid}", "--all", "--root", "--wd"]
        enter += [f"--setuid={user['uid']}", f"--setgid={user['gid']}"]
        done = subprocess.run(
            [*enter, "/usr/bin/env", "--ignore-environment", *self.process["env"], *argv],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def log(self) -> str:
        """What the service has said."""
        return (self.bundle / "log").read_text(errors="replace")

    def status(self) -> dict[str, str]:
        """/proc/PID/status of the service."""
        lines = Path(f"/proc/{self._inside()}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def stop(self) -> int:
        """Send the image's stop signal, and wait; the status it ends with."""
        assert self._process
        os.kill(self._inside(), signal.SIGTERM)
        return self._process.wait(30)

    def close(self) -> None:
        """Take everything away, whatever still runs."""
        if self._process:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.bundle.parent)

    def _inside(self) -> int:
        """The first process of the container, as this machine numbers it."""
        assert self._process
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else self._process.pid
