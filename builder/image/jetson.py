"""A Jetson's flashable tree, from NVIDIA's board support package (BSP) and Hob's root file system.

NVIDIA's package may not be passed on, so a person brings it: the folder in which its archive was unpacked,
with the archive still beside it. Nothing of it is used that does not match the archive, and no archive whose
SHA-256 is not on the list of `bsp.toml` or of the person's own list:

    [[release]]
    version = "39.2.1"
    archive = "SHA-256 of Jetson_Linux_R39.2.1_aarch64.tbz2"

    [release.files]               # instead, or where the archive is gone: every file of Linux_for_Tegra
    "apply_binaries.sh" = "SHA-256"

What NVIDIA's tools do is described in its Jetson Linux Developer Guide, "Flashing Support".
"""

import hashlib
import os
import shutil
import tarfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from builder.errors import BuildError, FormatError, UnsupportedError
from builder.image.cache import file_digest
from builder.image.root import ADD
from builder.image.rootfs import unpack
from builder.image.toolbox import Toolbox, host_architecture

OWN_LIST = Path(__file__).with_name("bsp.toml")
TREE = "Linux_for_Tegra"
ROOTFS = "rootfs"
APPLY = "apply_binaries.sh"

BOARD = "jetson-orin-nano-devkit-super"
"""NVIDIA's name of the developer kit in the command that is shown; others stand in the tree as NAME.conf."""

FETCH = (
    "Download Jetson_Linux_R39.2.1_aarch64.tbz2 from NVIDIA's page for Jetson Linux, unpack it, leave it "
    "where it is, and name its folder. Or run Hob's container on stock JetPack: hob image build oci-jetson."
)

# Flashing a whole tree into NVIDIA's layout needs a host name and services enabled, not Hob's partitions.
SETTLE = r"""
tree=$1
systemd-sysusers --root="$tree"
sed -i 's/^root:[^:]*:/root:*:/' "$tree/etc/shadow"
: > "$tree/etc/machine-id"
echo hob > "$tree/etc/hostname"
ln -sfn ../run/NetworkManager/resolv.conf "$tree/etc/resolv.conf"
systemctl --root="$tree" --quiet enable hob-engine.socket hob.service NetworkManager.service
"""

TIMEOUT = 3600.0

Tell = Callable[[str, str, float | None], None]


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A release of the BSP that may be used.

    Attributes:
        version: NVIDIA's: "39.2.1".
        archive: SHA-256 of the archive; "" where `files` has everything.
        files: SHA-256 of every file of the tree; empty where the archive tells.
    """

    version: str
    archive: str = ""
    files: Mapping[str, str] = {}


class _List(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    release: list[Release]


@dataclass(frozen=True)
class Bsp:
    """A BSP that is on the list.

    Attributes:
        tree: the folder `Linux_for_Tegra`.
        archive: what it was unpacked from; None where the release lists its files.
        release: the entry of the list.
    """

    tree: Path
    archive: Path | None
    release: Release


def releases(own: Path | None = None) -> tuple[Release, ...]:
    """The releases that may be used: Hob's and those of a person's own list.

    Raises:
        FormatError: a list is no such list.
    """
    found: list[Release] = []
    for path in (OWN_LIST, *([own] if own else [])):
        try:
            found += msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _List).release
        except OSError as error:
            raise FormatError(f"{path}: {os.strerror(error.errno or 0)}") from error
        except (ValueError, msgspec.ValidationError) as error:
            raise FormatError(f"{path} is no list of BSP releases: {error}") from error
    for release in found:
        if not release.archive and not release.files:
            raise FormatError(f"BSP release {release.version} lists neither an archive nor files")
    return tuple(found)


def check(folder: Path | None, own: Path | None = None) -> Bsp:
    """Find a BSP in a folder, and find it on the list. Takes as long as reading its archive.

    Raises:
        BuildError: no folder was named.
        FormatError: it is not there, or its archive is not.
        UnsupportedError: it is not on the list; the message has its SHA-256.
    """
    if folder is None:
        raise BuildError("a Jetson's image needs NVIDIA's board support package: --bsp DIR", hint=FETCH)
    tree = folder if (folder / APPLY).is_file() else folder / TREE
    if not (tree / APPLY).is_file():
        raise FormatError(f"{folder} has no {TREE} with an {APPLY} in it", hint=FETCH)
    known = releases(own)
    for release in known:
        if release.files and not mismatch(tree, release.files):
            return Bsp(tree, None, release)
    archives = sorted(tree.parent.glob("[Jj]etson_[Ll]inux_[Rr]*.tbz2"))
    if not archives:
        raise FormatError(f"beside {tree} there is no Jetson_Linux_R*.tbz2 to compare it with", hint=FETCH)
    digests = {path: file_digest(path) for path in archives}
    for path, digest in digests.items():
        for release in known:
            if release.archive == digest:
                return Bsp(tree, path, release)
    path, digest = next(iter(digests.items()))
    versions = ", ".join(release.version for release in known)
    raise UnsupportedError(
        f"{path.name} with SHA-256 {digest} is not on the list of BSP releases ({versions})",
        hint="If you trust it, list it in a file of yours: --bsp-allow FILE (docs/devices/jetson-orin.md).",
    )


def contents(archive: Path) -> dict[str, str]:
    """SHA-256 of every file in a BSP's archive by its path in the tree; "-> TARGET" of a link."""
    found: dict[str, str] = {}
    try:
        with tarfile.open(archive, "r|bz2") as opened:
            for member in opened:
                top, _, name = member.name.removeprefix("./").partition("/")
                if top != TREE or not name or ".." in name.split("/"):
                    continue
                if member.issym():
                    found[name] = f"-> {member.linkname}"
                elif member.islnk():
                    found[name] = found[member.linkname.removeprefix("./").removeprefix(f"{TREE}/")]
                elif content := opened.extractfile(member):
                    digest = hashlib.sha256()
                    while piece := content.read(2**20):
                        digest.update(piece)
                    found[name] = digest.hexdigest()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FormatError(f"{archive.name} is damaged: {error}", hint="Fetch it again.") from error
    return found


def mismatch(tree: Path, files: Mapping[str, str]) -> str:
    """The first file of a tree that is not what was listed; "" if all are. Other files do not matter."""
    return next((name for name, digest in sorted(files.items()) if _told(tree / name) != digest), "")


def assemble(
    out: Path, bsp: Bsp, base: Path, layers: Sequence[Path], *, toolbox: Toolbox, tell: Tell
) -> Path:
    """Write `out`, a tar archive of a `Linux_for_Tegra` that is ready to be flashed, and return it.

    Args:
        bsp: from `check`.
        base: folder of `rootfs.build`, for arm64.
        layers: folders that are laid over it.

    Raises:
        FormatError: the tree is not what its archive was, or the archive is damaged.
        CommandError: NVIDIA's script failed; the message has its last lines.
    """
    tell("bsp", f"comparing {bsp.tree} with its archive", 0.0)
    expected = contents(bsp.archive) if bsp.archive else dict(bsp.release.files)
    if APPLY not in expected:
        raise FormatError(f"release {bsp.release.version} lists no {APPLY}")
    with toolbox.scratch("jetson") as work:
        tree = work / TREE
        copy(bsp.tree, tree, expected)
        tell("bsp", "root file system", 0.3)
        shutil.rmtree(tree / ROOTFS, ignore_errors=True)  # only a note lies there
        unpack(toolbox, base, tree / ROOTFS)
        shell = ("bash", "-euo", "pipefail", "-c")
        for layer in layers:
            toolbox.run([*shell, ADD, "-", tree / ROOTFS, layer], read=[layer], write=[tree])
        toolbox.run([*shell, SETTLE, "-", tree / ROOTFS], write=[tree])
        tell("bsp", f"NVIDIA's {APPLY}", 0.5)
        foreign = "" if host_architecture() == "arm64" else "arm64"
        toolbox.run(
            ["bash", f"./{APPLY}"],
            write=[tree],
            cwd=tree,
            foreign=foreign,
            timeout=TIMEOUT,
            line=lambda text: tell("bsp", text[:100], None),
        )
        tell("bsp", "packing", 0.8)
        toolbox.run(
            [
                "tar",
                "--create",
                f"--file={work / out.name}",
                "--numeric-owner",
                "--xattrs",
                "--sort=name",
                TREE,
            ],
            write=[work],
            cwd=work,
            timeout=TIMEOUT,
        )
        shutil.move(work / out.name, out)
    tell("bsp", "done", 1.0)
    return out


def how_to_flash(made: Path) -> str:
    """What a person types next, with the board in recovery mode at a USB port."""
    return (
        f"sudo tar --extract --preserve-permissions --file={made.name}, then in {TREE}: sudo"
        " ./tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1 -c"
        f" tools/kernel_flash/flash_l4t_t234_nvme.xml --showlogs --network usb0 {BOARD} internal"
    )


def copy(source: Path, target: Path, files: Mapping[str, str]) -> None:
    """Copy the listed files of a tree and nothing else, each compared on the way.

    Raises:
        FormatError: one is missing or not what was listed.
    """
    for name, digest in sorted(files.items()):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy2(source / name, place, follow_symlinks=False)
        except OSError as error:
            raise FormatError(
                f"{source / name}: {os.strerror(error.errno or 0)}", hint="Unpack it again."
            ) from error
        if _told(place) != digest:
            raise FormatError(
                f"{source / name} is not the file that NVIDIA released", hint="Unpack it again."
            )


def _told(path: Path) -> str:
    """A file as `contents` tells it; "" where there is none."""
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    return file_digest(path) if path.is_file() else ""
