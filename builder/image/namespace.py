"""Runs one program in namespaces of its own: mounts, processes and (unless asked for) no network.

`python -m builder.image.namespace SPEC` is started by `builder.image.toolbox`, takes a `Spec` as JSON, and
becomes the program. Whatever it mounts or starts ends with it, even when it is killed: the kernel drops the
namespaces.

Root needs no user namespace, except to register an emulator for a foreign processor: since Linux 6.7 every
    user namespace has a binfmt_misc of its own (Documentation/admin-guide/binfmt-misc.rst), so the host's
    stays as it is. Anyone else gets one in which they are root and their subordinate ids (`/etc/subuid`)
    are the others.

System calls follow the manual pages unshare(2), mount(2), user_namespaces(7) and pivot_root(2).
"""

import contextlib
import ctypes
import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_RELATIME = 0x200000
PR_SET_PDEATHSIG = 1

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# Made empty in the new root; everything else in the tree is bound there read-only.
FRESH = {"dev", "home", "mnt", "proc", "root", "run", "sys", "tmp"}

# (magic, mask) of an ELF header, from the ELF specification: class, byte order, type EXEC or DYN, machine.
BINFMT = {
    "arm64": (
        rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
        rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
    ),
}
EMULATORS = {"arm64": "qemu-aarch64"}

# Exit status for "the namespace could not be made"; the reason is on standard error.
SETUP_FAILED = 125


@dataclass(frozen=True)
class Spec:
    """What to run and what it may see.

    Attributes:
        argv: the program and its arguments.
        tree: the root file system it sees; "" for the host's own.
        read, write: host paths that appear at the same place inside, read-only and writable.
        bound: (source, target) pairs of files and folders that appear elsewhere inside, read-only.
        lent: the same for folders that it may write into.
        devices: nodes of /dev besides the harmless ones.
        network: whether it is in the host's network or in an empty one of its own.
        foreign: a Debian architecture whose programs must run here; "" for none.
        emulator: host path of the static QEMU that runs them.
        cwd: its working directory; "" for the root.
    """

    argv: list[str]
    tree: str = ""
    read: list[str] = field(default_factory=list)
    write: list[str] = field(default_factory=list)
    bound: list[tuple[str, str]] = field(default_factory=list)
    lent: list[tuple[str, str]] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    network: bool = False
    foreign: str = ""
    emulator: str = ""
    cwd: str = ""

    def command(self) -> list[str]:
        """The command that runs it."""
        return [sys.executable, "-P", "-m", "builder.image.namespace", json.dumps(asdict(self))]


libc = ctypes.CDLL(None, use_errno=True)


def called(result: int, what: str) -> None:
    """Raise OSError if a system call failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Leave the parent's namespaces."""
    called(libc.unshare(flags), "unshare")


def mount(source: str, target: Path | str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = libc.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    called(result, f"mount {source} on {target}")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    called(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def map_ids(pid: int) -> None:
    """Give the user namespace of a process its ids: all of them for root, else the subordinate ones."""
    if os.geteuid() == 0:
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{kind}").write_text("0 0 4294967295")
        return
    user = pwd.getpwuid(os.geteuid()).pw_name
    for tool, ids, own in (
        ("newuidmap", "/etc/subuid", os.getuid()),
        ("newgidmap", "/etc/subgid", os.getgid()),
    ):
        first, count = subordinate(Path(ids), user)
        mapping = ["0", str(own), "1", "1", str(first), str(count)]
        # The program is found on PATH: distributions keep it in different folders.
        subprocess.run([tool, str(pid), *mapping], check=True)


def subordinate(path: Path, user: str) -> tuple[int, int]:
    """First id and count of a user's range in /etc/subuid or /etc/subgid; LookupError where there is none."""
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, numbers = line.partition(":")
        if name in {user, str(os.getuid())}:
            first, _, count = numbers.partition(":")
            return int(first), int(count)
    raise LookupError(f"{path} gives {user} no subordinate ids")


@contextlib.contextmanager
def identity(needed: bool) -> Iterator[None]:
    """Enter a user namespace while a process outside of it writes the ids."""
    if not needed:
        yield
        return
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    pid = os.getpid()
    helper = os.fork()
    if helper == 0:
        status = 1
        try:
            os.close(ready_write)
            os.read(ready_read, 1)
            map_ids(pid)
            status = 0
        except (OSError, LookupError, subprocess.CalledProcessError) as error:
            print(error, file=sys.stderr)
        finally:
            os._exit(status)
    os.close(ready_read)
    os.close(done_read)
    os.close(done_write)
    unshare(CLONE_NEWUSER)
    os.close(ready_write)
    _, status = os.waitpid(helper, 0)
    if status != 0:
        raise PermissionError(1, "the user namespace was given no ids", "user namespace")
    yield


def enter(spec: Spec) -> None:
    """Make the namespaces and become the program; returns only by raising."""
    die_with_parent()
    root = os.geteuid() == 0
    with identity(not root or bool(spec.foreign)):
        unshare(CLONE_NEWNS | CLONE_NEWPID | (0 if spec.network else CLONE_NEWNET))
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    die_with_parent()
    os.setgid(0)
    os.setuid(0)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    if spec.tree:
        furnish(spec, Path(spec.tree))
    elif spec.foreign:
        emulate(Path("/"), spec)
    os.chdir(spec.cwd or "/")
    try:
        os.execvp(spec.argv[0], spec.argv)  # noqa: S606 -- the caller's own argument list, no shell
    except OSError as error:
        print(f"{spec.argv[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127)


def furnish(spec: Spec, tree: Path) -> None:
    """Build the root that the program sees, and change into it."""
    new = tree / "mnt"
    mount("tmpfs", new, "tmpfs", data="mode=755")
    kept = []
    for entry in sorted(os.scandir(tree), key=lambda entry: entry.name):
        target = new / entry.name
        if entry.is_symlink():
            target.symlink_to(os.readlink(entry.path))
        elif entry.name in FRESH:
            target.mkdir()
        elif entry.is_dir():
            bind(Path(entry.path), target)
            kept.append(target)
    for folder in (new / "tmp", new / "run", new / "var/tmp"):
        mount(
            "tmpfs",
            folder,
            "tmpfs",
            MS_NOSUID | MS_NODEV,
            "mode=1777" if folder.name == "tmp" else "mode=755",
        )
    devices(new / "dev", spec.devices)
    mount("proc", new / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    bind(Path("/sys"), new / "sys")
    read_only(new / "sys")
    if spec.foreign:
        emulate(new, spec)
    paths = [(path, False) for path in spec.read] + [(path, True) for path in spec.write]
    # Outer folders first: a writable folder may lie in a read-only one.
    for path, writable in sorted(paths, key=lambda pair: len(Path(pair[0]).parts)):
        target = new / Path(path).relative_to("/")
        bind(Path(path), target)
        if not writable:
            read_only(target)
    for source, inside in [*spec.bound, *spec.lent]:
        bind(Path(source), new / inside.lstrip("/"))
    for _, inside in spec.bound:
        read_only(new / inside.lstrip("/"))
    for target in kept:
        read_only(target)
    os.chroot(new)


def devices(folder: Path, more: list[str]) -> None:
    """/dev with the nodes that cannot do harm, and those asked for."""
    mount("tmpfs", folder, "tmpfs", MS_NOSUID, "mode=755")
    for name in (*DEVICES, *more):
        if Path("/dev", name).exists():
            bind(Path("/dev", name), folder / name)
    for link, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        (folder / link).symlink_to(f"/proc/self/fd{target}")
    for name in ("shm", "pts"):
        (folder / name).mkdir()
    mount("tmpfs", folder / "shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    mount("devpts", folder / "pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    (folder / "ptmx").symlink_to("pts/ptmx")


def bind(source: Path, target: Path) -> None:
    """Let a file or folder appear at a second place, with what is mounted below it."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(str(source), target, flags=MS_BIND | MS_REC)


def read_only(target: Path) -> None:
    """Forbid writing through a bind; the other flags stay, since a user namespace may not change them."""
    flags = os.statvfs(target).f_flag
    same = (
        (os.ST_NOSUID, MS_NOSUID),
        (os.ST_NODEV, MS_NODEV),
        (os.ST_NOEXEC, MS_NOEXEC),
        (os.ST_NOATIME, MS_NOATIME),
        (os.ST_NODIRATIME, MS_NODIRATIME),
        (os.ST_RELATIME, MS_RELATIME),
    )
    keep = sum(ours for theirs, ours in same if flags & theirs)
    mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | keep)


def emulate(root: Path, spec: Spec) -> None:
    """Have programs of another architecture run by a static QEMU, in this namespace only.

    Where the kernel is older than 6.7, the host's own registration must serve.
    """
    registry = root / "proc/sys/fs/binfmt_misc"
    try:
        mount("binfmt_misc", registry, "binfmt_misc")
    except OSError:
        host = Path("/proc/sys/fs/binfmt_misc", EMULATORS[spec.foreign])
        if host.exists():
            return
        raise
    magic, mask = BINFMT[spec.foreign]
    interpreter = os.fsencode(spec.emulator)
    # F opens the emulator now, so that it works in every chroot; C takes credentials from the program.
    line = b":hob-%s:M::%s:%s:%s:OCF" % (spec.foreign.encode(), magic, mask, interpreter)
    (registry / "register").write_bytes(line)


def main() -> None:
    """Run the specification given as the only argument."""
    try:
        enter(Spec(**json.loads(sys.argv[1])))
    except (OSError, LookupError) as error:
        print(f"namespace: {error}", file=sys.stderr)
        os._exit(SETUP_FAILED)


if __name__ == "__main__":
    main()
