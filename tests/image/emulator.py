"""Programs of a Debian 13 tree, run from outside of it: QEMU with its firmware, and tools for disk images.

Debian 12's QEMU cannot play every board, so the tests bring their own. A program runs through the tree's
dynamic loader with the tree's libraries, as an ordinary process: no root, no mounts, all paths are the
host's, and killing it kills QEMU itself.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from builder.image.cache import Cache
from builder.image.toolbox import open_toolbox

PACKAGES = (
    "dosfstools",
    "e2fsprogs",
    "fdisk",
    "mtools",
    "ovmf",
    "qemu-efi-aarch64",
    "qemu-system-arm",
    "qemu-system-x86",
    "qemu-utils",
)
"""What the tree has besides Debian's essential packages."""

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_FOLDERS = ("usr/bin", "usr/sbin")
_ROMS = ("usr/share/qemu", "usr/share/seabios")


def open_emulator(cache: Cache) -> "Emulator":
    """The emulator in a cache, made there first if need be: a minute, and a mirror."""
    return Emulator(open_toolbox(cache, name="emulator", packages=PACKAGES).tree)


@dataclass(frozen=True)
class Emulator:
    """The tree at `root`."""

    root: Path

    def command(self, program: str, *arguments: str | Path) -> list[str]:
        """The command line of a program of the tree.

        Raises:
            FileNotFoundError: the tree has no such program.
        """
        for folder in _FOLDERS:
            path = self.root / folder / program
            if path.exists():
                break
        else:
            raise FileNotFoundError(f"{self.root} has no program {program}")
        # Whatever happens to the tests, their machines end with them.
        bound = [setpriv, "--pdeathsig", "KILL"] if (setpriv := shutil.which("setpriv")) else []
        libraries = self.root / _LIBRARIES
        search = f"{libraries}:{libraries / 'pulseaudio'}"
        loader = self.root / "lib64/ld-linux-x86-64.so.2"
        own: list[str | Path] = []
        if program.startswith("qemu-system-"):
            own = [part for folder in _ROMS for part in ("-L", self.root / folder)]
        return [str(part) for part in (*bound, loader, "--library-path", search, path, *own, *arguments)]

    def environment(self) -> dict[str, str]:
        """The variables that the programs want, and nothing of the host's."""
        return {
            "LC_ALL": "C.UTF-8",
            "PATH": "/usr/bin:/bin",
            "QEMU_MODULE_DIR": str(self.root / _LIBRARIES / "qemu"),
            "MTOOLS_SKIP_CHECK": "1",
        }

    def run(
        self,
        program: str,
        *arguments: str | Path,
        seconds: float = 120,
        stdin: bytes = b"",
        accept: tuple[int, ...] = (0,),
    ) -> bytes:
        """Run a program to its end; its standard output. `accept` are the exit statuses that are no failure.

        Raises:
            AssertionError: it failed; carries what it said.
        """
        done = subprocess.run(
            self.command(program, *arguments),
            input=stdin,
            capture_output=True,
            env=self.environment(),
            timeout=seconds,
            check=False,
        )
        said = done.stderr.decode(errors="replace")
        assert done.returncode in accept, f"{program} ended with {done.returncode}: {said}"
        return done.stdout

    def firmware(self, name: str) -> Path:
        """A firmware file, for example `OVMF/OVMF_CODE_4M.fd`."""
        return (self.root / "usr/share" / name).resolve(strict=True)
