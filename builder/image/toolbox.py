"""The tools that make an image, from Debian 13, whatever the machine that builds runs.

A toolbox is a Debian tree made once by mmdebstrap, kept in the cache and never written to again. Programs
run in it in namespaces of their own (`builder.image.namespace`): they see the tools, the host paths named
by the caller, and no network unless asked for. The host's apt is only asked where its mirror is and to
fetch mmdebstrap itself.
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from builder.errors import UnsupportedError
from builder.image.bootstrap import SUITE, bootstrap
from builder.image.cache import Cache, digest, require_space
from builder.image.mirror import find_mirror
from builder.image.namespace import EMULATORS, Spec
from builder.image.process import Line, finish, launch, rights

TOOLS = (
    "apt-utils",  # apt-ftparchive
    "binutils",  # objcopy, which ukify calls
    "binutils-aarch64-linux-gnu",  # ld, for libraries of models
    "binutils-x86-64-linux-gnu",
    "bmap-tools",
    "ca-certificates",
    "dosfstools",
    "dpkg-dev",
    "e2fsprogs",
    "fdisk",
    "kmod",  # depmod
    "mmdebstrap",
    "mtools",
    "openssl",
    "python3",
    "python3-pefile",  # ukify
    "qemu-user",
    "rauc",
    "skopeo",
    "squashfs-tools",
    "systemd",
    "systemd-repart",
    "systemd-boot-efi",
    "systemd-ukify",
    "u-boot-tools",
    "umoci",
    "xz-utils",
    "zstd",
)

# A toolbox takes 1.7 GB and as much again while it is made.
ROOM = 4_000_000_000


@dataclass(frozen=True)
class Toolbox:
    """A tree of tools and the means to run them.

    Attributes:
        tree: the root that programs see.
        cache: where it is kept, and where there is room for their work.
        emulators: the tree whose QEMU runs programs of other architectures; None for `tree` itself.
    """

    tree: Path
    cache: Cache
    emulators: Path | None = None

    def within(self, tree: Path) -> "Toolbox":
        """The same means for the programs of another root file system, which stays as it is."""
        return replace(self, tree=tree, emulators=self.emulators or self.tree)

    def versions(self) -> str:
        """A digest of the versions of its packages: the same tools pack the same files alike."""
        return digest(self.run(["dpkg-query", "--show"]).splitlines())

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        read: Sequence[Path] = (),
        write: Sequence[Path] = (),
        bound: Mapping[Path, str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str = "",
        network: bool = False,
        foreign: str = "",
        timeout: float | None = None,
        line: Line | None = None,
    ) -> str:
        """Run a program to its end and return its standard output.

        Args:
            argv: the program, looked up in the toolbox, and its arguments.
            read, write: host paths that it sees at the same place, read-only or writable. Nothing else of
                the host
                is visible; `/tmp` and `/run` are empty and in memory.
            bound: host file or folder → the place inside where it appears read-only.
            env: variables besides a fixed PATH, LC_ALL=C.UTF-8 and TZ=UTC; nothing of the caller's is
                passed on.
            cwd: its working directory, one of the paths it sees.
            stdin: text that it reads.
            network: whether it may use the host's network.
            foreign: a Debian architecture whose programs it must be able to start ("arm64").
            timeout: seconds after which it is killed.
            line: is told each line it writes to standard error, as it comes.

        Raises:
            CommandError: it ended with another status than 0; the message has its last lines.
            PrivilegeError: this user may make no namespaces.
        """
        # A file and not a pipe: the program may write before it has read everything.
        with tempfile.TemporaryFile("w+") as given:
            given.write(stdin)
            given.seek(0)
            running = self.start(
                argv,
                read=read,
                write=write,
                bound=bound,
                env=env,
                cwd=cwd,
                network=network,
                foreign=foreign,
                stdin=given,
            )
            return finish(running, str(argv[0]), timeout, line)

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        read: Sequence[Path] = (),
        write: Sequence[Path] = (),
        bound: Mapping[Path, str] | None = None,
        lent: Mapping[Path, str] | None = None,
        devices: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        network: bool = False,
        foreign: str = "",
        stdin: int | IO[str] = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Start a program as `run` does and return at once; killing the returned process kills all of it.

        `lent` is like `bound`, for folders that it may write into. `devices` names nodes of /dev that it may
        use besides null, zero, full, random, urandom and tty ("kvm").
        """
        inside = dict(bound or {})
        if network:
            inside |= {
                path: str(path) for path in (Path("/etc/resolv.conf"), Path("/etc/hosts")) if path.exists()
            }
        spec = Spec(
            argv=[str(part) for part in argv],
            tree=str(self.tree),
            read=[str(path.absolute()) for path in read],
            write=[str(path.absolute()) for path in write],
            bound=[(str(source.absolute()), target) for source, target in inside.items()],
            lent=[(str(source.absolute()), target) for source, target in (lent or {}).items()],
            devices=list(devices),
            network=network,
            foreign=foreign,
            emulator=str((self.emulators or self.tree) / "usr/bin" / EMULATORS[foreign]) if foreign else "",
            cwd=str(cwd.absolute()) if cwd else "",
        )
        return launch(spec, env or {}, stdin, stdout, stderr)

    def remove(self, path: Path) -> None:
        """Delete a tree that programs of a toolbox have written, whoever owns what is in it."""
        self.run(["rm", "-rf", "--one-file-system", path], write=[path.parent])

    @contextlib.contextmanager
    def scratch(self, purpose: str) -> Iterator[Path]:
        """An empty folder for programs of the toolbox to write in, removed at the end."""
        with self.cache.scratch(purpose) as folder:
            yield folder


def open_toolbox(
    cache: Cache,
    *,
    name: str = "tools",
    packages: Sequence[str] = TOOLS,
    mirror: str = "",
    line: Line | None = None,
) -> Toolbox:
    """The toolbox with these packages, made first if the cache has none (two minutes and a mirror are
    needed then).

    Args:
        cache: where it is kept.
        name: what it is for; toolboxes of other names stand beside it.
        packages: Debian packages of `SUITE` in the host's architecture.
        mirror: URL of a Debian mirror; "" for the host's own.
        line: is told what mmdebstrap says.

    Raises:
        PrivilegeError: neither root nor a user namespace is to be had.
        MirrorError: there is no mirror or it does not answer.
    """
    rights()

    def make(folder: Path) -> None:
        require_space(cache.root, ROOM, "The tools")
        architectures = (host_architecture(), other_architecture())
        bootstrap(folder / "tree", packages, architectures, find_mirror(mirror), cache, line)

    return opened(cache.get(f"toolbox-{name}", _inputs(packages), make) / "tree", cache)


def opened(tree: Path, cache: Cache) -> Toolbox:
    """A toolbox that is there, with a cache that can remove what its programs write, whoever owns it."""
    return Toolbox(tree, replace(cache, remove=Toolbox(tree, cache).remove))


def kept_toolbox(cache: Cache) -> Toolbox | None:
    """The toolbox of `open_toolbox`, if the cache has it: nothing is made or fetched."""
    place = cache.place("toolbox-tools", digest(_inputs(TOOLS)))
    return opened(place / "tree", cache) if place.exists() else None


def _inputs(packages: Sequence[str]) -> dict[str, Any]:
    return {"suite": SUITE, "packages": sorted(packages), "revision": 1}


def host_architecture() -> str:
    """The host's architecture as Debian names it; raises `UnsupportedError` for one that builds no images."""
    machine = os.uname().machine
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    if machine not in names:
        raise UnsupportedError(f"images are built on x86_64 and aarch64, and this machine is {machine}")
    return names[machine]


def other_architecture() -> str:
    """The other architecture that images are made for."""
    return {"amd64": "arm64", "arm64": "amd64"}[host_architecture()]
