"""The base root file system: Debian's packages, installed and stripped, with nothing of Hob in it yet.

It depends on the lock and on what the recipe removes, and on nothing else: a change of the application
    leaves it as it is. It is kept as a tar archive, which holds owners whatever user unpacks it, with the
    list of what is installed.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from builder.errors import BuildError
from builder.image.packages import Lock, Tell, repository
from builder.image.toolbox import Toolbox, host_architecture

ARCHIVE = "rootfs.tar"
LIST = "packages.json"
STATUS = "status"

# The archive grows to this many times the size of the packages, and there is a tree beside it.
GROWTH = 8

# Device nodes are left out: a user namespace may make none, and the kernel mounts its own over them.
UNPACK = """
mkdir "$2"
tar --extract --file="$1" --directory="$2" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/?*'
"""

# What tells one installation from another, or when it was made.
UNIQUE = (
    "/etc/ssh/ssh_host_*",
    "/etc/machine-id",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/var/lib/dbus/machine-id",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/catalog/database",
    "/var/log/*",
    "/var/cache/*",
    "/var/lib/apt/*",
    "/etc/*-",
    "/var/lib/dpkg/*-old",
    "/run/*",
    "/tmp/*",  # noqa: S108 -- in the tree, not on this machine
)


def build(toolbox: Toolbox, lock: Lock, remove: Sequence[str], folder: Path, tell: Tell) -> None:
    """Fill `folder` with `rootfs.tar` and `packages.json`.

    Args:
        toolbox: for its mmdebstrap and, for another architecture, its emulator.
        lock: what is installed; every package must be kept.
        remove: shell patterns of what is taken out again.
        folder: empty.
        tell: is told how far it is.

    Raises:
        CommandError: a package cannot be installed.
    """
    foreign = "" if lock.architecture == host_architecture() else lock.architecture
    with toolbox.scratch("rootfs") as scratch:
        packages = scratch / "packages"
        repository(toolbox, lock, packages)

        def line(text: str) -> None:
            if text.startswith("I: "):
                tell("rootfs", text[3:].split("...")[0], None)

        argv = [
            *("mmdebstrap", "--mode=root", "--variant=essential", f"--architectures={lock.architecture}"),
            "--include=" + ",".join(name.partition("/")[0] for name in lock.wanted),
            "--skip=check/qemu",
            "--aptopt=APT::Install-Recommends false",
            *(f"--customize-hook={hook}" for hook in hooks(remove)),
            f"--customize-hook=copy-out /var/lib/dpkg/status {scratch}",
            *("--format=tar", lock.suite, str(scratch / ARCHIVE)),
            f"deb [trusted=yes] copy://{packages} ./",
        ]
        environment = {
            "SOURCE_DATE_EPOCH": str(lock.epoch),
            "TMPDIR": str(scratch),
            # The kernel's package would make an initramfs now; what belongs into it comes later.
            "INITRD": "No",
        }
        toolbox.run(argv, write=[scratch], env=environment, foreign=foreign, line=line)
        (scratch / ARCHIVE).rename(folder / ARCHIVE)
        (folder / LIST).write_text(json.dumps(installed((scratch / STATUS).read_text()), indent=1) + "\n")


def hooks(remove: Sequence[str]) -> list[str]:
    """Commands that take out what the device does not need and what would differ between two builds."""
    # The shell expands the patterns; spaces do not occur in the names Debian uses.
    patterns = " ".join(f'"$1"{pattern}' for pattern in (*UNIQUE, *remove))
    return [f"rm -rf {patterns}"]


def installed(status: str) -> list[dict[str, str]]:
    """The packages in a dpkg status file, sorted: name, version, architecture and source package of each."""
    found = []
    for paragraph in status.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and not line[0].isspace()
        )
        if fields.get("Status") == "install ok installed":
            source, _, version = fields.get("Source", fields["Package"]).partition(" ")
            found.append(
                {
                    "name": fields["Package"],
                    "version": fields["Version"],
                    "architecture": fields["Architecture"],
                    "source": source,
                    "source_version": version.strip("()") or fields["Version"],
                }
            )
    if not found:
        raise BuildError("the list of installed packages is empty")
    return sorted(found, key=lambda entry: (entry["name"], entry["architecture"]))


def unpack(toolbox: Toolbox, base: Path, tree: Path) -> None:
    """Unpack the archive in the folder `base` as the new folder `tree`, with owners, modes and attributes."""
    toolbox.run(["sh", "-ec", UNPACK, "-", base / ARCHIVE, tree], read=[base], write=[tree.parent])
