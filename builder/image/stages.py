"""The stages of an image: what each one depends on, and how it is made.

A stage's inputs are JSON; the hash of them is its key in the cache. Besides what a person chooses they hold
the hash of the code that does the work, so a change of the builder makes anew what it makes, and only that.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from builder.errors import FormatError, RecipeError
from builder.image import boot_pi, boot_uefi, disk, overlay, packages, rauc, rootfs
from builder.image import root as roots
from builder.image.cache import Cache, digest, file_digest, tree_digest
from builder.image.keys import Keys
from builder.image.mirror import Mirror
from builder.image.packages import Lock, missing
from builder.image.recipe import Recipe, toml
from builder.image.toolbox import Toolbox

__all__ = ["Order", "Tell", "missing"]

Tell = Callable[[str, str, float | None], None]

SYSTEM = Path(__file__).parent / "system"
ROOT = "root.squashfs"
INITRAMFS = "initramfs"

# The modules that do the work, as they were when they were read: a file may be edited while a build runs.
CODE = {
    module.__name__.rpartition(".")[2]: file_digest(Path(module.__file__ or ""))
    for module in (boot_pi, boot_uefi, disk, rauc, roots, rootfs)
}

# zstd level of a root that is made to be tried and thrown away.
FAST_LEVEL = 3


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a person asks for.

    Attributes:
        recipe: the device.
        version: what Hob calls itself in it.
        out: folder of the finished files.
        mirror: URL of a Debian mirror; "" for the host's own.
        lock: the lock file to build from; it is written if it does not exist. None: what the cache remembers.
        update: take the newest packages although there is a lock.
        keys: what the files are signed with, and whose updates the device takes; None for neither.
        bsp: folder of NVIDIA's board support package, which a Jetson needs.
        bsp_allow: list of such packages that may be used besides Hob's own.
        fast: weaker compression and no packed image, to try things out.
    """

    recipe: Recipe
    version: str
    out: Path = field(default_factory=Path.cwd)
    mirror: str = ""
    lock: Path | None = None
    update: bool = False
    keys: Keys | None = None
    bsp: Path | None = None
    bsp_allow: Path | None = None
    fast: bool = False


# Which packages.


def lock_path(order: Order, architecture: str, cache: Cache) -> Path:
    """Where the lock of an architecture lies; a recipe for several has a file for each."""
    if order.lock is not None:
        several = len(order.recipe.architectures) > 1
        return order.lock.with_suffix(f".{architecture}.toml") if several else order.lock
    return cache.root / "resolved" / f"{digest(asked(order, architecture))[:32]}.toml"


def asked(order: Order, architecture: str) -> dict[str, Any]:
    """What the mirror is asked for."""
    recipe = order.recipe
    return {
        "suite": recipe.suite,
        "components": recipe.components,
        "backports": recipe.backports,
        "architecture": architecture,
        "wanted": recipe.wanted,
    }


def locked(order: Order, architecture: str, cache: Cache) -> Lock | None:
    """The lock that is there, or None where the mirror has to be asked.

    Raises:
        FormatError: it is damaged.
        RecipeError: it was made for other packages than the recipe has.
    """
    path = lock_path(order, architecture, cache)
    if order.update or not path.exists():
        return None
    lock = packages.parse(path.read_text(), path)
    recipe = order.recipe
    if (lock.suite, lock.architecture, lock.wanted) != (recipe.suite, architecture, recipe.wanted):
        differ = sorted({*lock.wanted} ^ {*recipe.wanted})
        raise RecipeError(
            f"{path} was made for other packages than {recipe.name} has: "
            f"{', '.join(differ) or lock.architecture}",
            hint="Build with --update to lock the newest packages.",
        )
    return lock


def resolve(order: Order, architecture: str, toolbox: Toolbox, mirror: Mirror) -> Lock:
    """Ask the mirror, and write the lock. Where the packages are the same, so is the time of the image."""
    recipe, path = order.recipe, lock_path(order, architecture, toolbox.cache)
    lock = packages.resolve(
        toolbox,
        mirror,
        recipe.wanted,
        suite=recipe.suite,
        components=recipe.components,
        architecture=architecture,
        backports=recipe.backports,
    )
    if path.exists():
        try:
            before = packages.parse(path.read_text(), path)
        except FormatError:
            before = None
        if before is not None and (before.wanted, before.packages) == (lock.wanted, lock.packages):
            lock = msgspec.structs.replace(lock, epoch=before.epoch)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(packages.dump(lock))
    part.replace(path)
    return lock


# The base root file system.


def base_inputs(order: Order, lock: Lock) -> dict[str, Any]:
    """What the base root file system depends on."""
    return {
        "packages": [[package.name, package.sha256] for package in lock.packages],
        "wanted": lock.wanted,
        "architecture": lock.architecture,
        "epoch": lock.epoch,
        "remove": order.recipe.remove,
        "code": CODE["rootfs"],
    }


def base(order: Order, lock: Lock, toolbox: Toolbox, tell: Tell) -> Path:
    """Debian, installed: `rootfs.tar` and `packages.json`."""
    tell("rootfs", f"base root file system for {lock.architecture}", None)

    def make(folder: Path) -> None:
        rootfs.build(toolbox, lock, order.recipe.remove, folder, tell)

    return toolbox.cache.get("rootfs", base_inputs(order, lock), make)


# What Hob adds.


def contents(order: Order, lock: Lock) -> overlay.Contents:
    """What the overlay is made of."""
    recipe = order.recipe
    about = {
        "name": recipe.name,
        "title": recipe.title,
        "version": order.version,
        "compatible": recipe.compatible,
        "built": datetime.fromtimestamp(lock.epoch, UTC).date().isoformat(),
    }
    machine = overlay_machine(lock.architecture)
    return overlay.Contents(
        arch=lock.architecture,
        version=order.version,
        epoch=lock.epoch,
        targets=[target for target in recipe.targets if target.startswith((machine, "cuda", "vulkan"))],
        models={Path(model).name: Path(model) for model in recipe.models if model != "guide"},
        compiler=recipe.compiler,
        gpu=recipe.gpu,
        settings=toml(recipe.settings),
        # Only what boots is an image, and takes updates as a whole.
        image=toml(about) if recipe.boot != "none" else "",
        system=system(order),
    )


def overlay_machine(architecture: str) -> str:
    """How targets spell an architecture."""
    return {"amd64": "x86_64", "arm64": "aarch64"}[architecture]


def system(order: Order) -> list[Path]:
    """The folders of files for a system that boots."""
    if order.recipe.boot == "none":
        return []
    return [SYSTEM / "common", SYSTEM / order.recipe.boot]


def added(order: Order, lock: Lock, toolbox: Toolbox, tell: Tell) -> Path:
    """The tree of what Hob adds to Debian."""
    tell("overlay", f"Hob and its Python packages, models and libraries for {lock.architecture}", None)
    return overlay.build(
        contents(order, lock), toolbox.cache, toolbox, lambda text, share: tell("overlay", text, share)
    )


# The kernel.


def kernel_inputs(order: Order, lock: Lock) -> dict[str, Any]:
    """What the kernel image depends on besides its initramfs."""
    return {
        "initramfs": initramfs_inputs(order, lock),
        "version": order.version,
        "words": order.recipe.cmdline,
        "code": [CODE[name] for name in starts(order)],
    }


def initramfs_inputs(order: Order, lock: Lock) -> dict[str, Any]:
    """What the initramfs depends on: not on the application."""
    return {
        "base": base_inputs(order, lock),
        "configuration": [tree_digest(folder) for folder in configuration(order)],
        "code": [CODE[name] for name in starts(order)],
    }


def starts(order: Order) -> list[str]:
    """The modules that make a recipe's device start."""
    return ["boot_uefi", "boot_pi"] if order.recipe.boot == "pi" else ["boot_uefi"]


def configuration(order: Order) -> list[Path]:
    """The folders that the initramfs is made by."""
    return [path for folder in system(order) if (path := folder / "etc/initramfs-tools").is_dir()]


def initramfs(order: Order, lock: Lock, base: Path, toolbox: Toolbox, tell: Tell) -> Path:
    """The folder with `initramfs` and the kernel as Debian packs it, `linux`."""

    def make(folder: Path) -> None:
        tell("kernel", "initramfs", None)
        with toolbox.scratch("base") as work:
            rootfs.unpack(toolbox, base, work / "tree")
            boot_uefi.initramfs(
                work / "tree",
                configuration(order),
                folder / INITRAMFS,
                architecture=lock.architecture,
                epoch=lock.epoch,
                toolbox=toolbox,
            )
            release = boot_uefi.kernel_release(work / "tree")
            (folder / "linux").write_bytes((work / f"tree/boot/vmlinuz-{release}").read_bytes())
            if order.recipe.boot == "pi":
                boot_pi.firmware(work / "tree", release, folder / boot_pi.FOLDER)

    return toolbox.cache.get("initramfs", initramfs_inputs(order, lock), make)


def kernel(order: Order, lock: Lock, base: Path, toolbox: Toolbox, tell: Tell) -> Path:
    """The folder with the kernel image, and on a Pi the firmware that starts it."""
    tell("kernel", "kernel image", None)
    parts = initramfs(order, lock, base, toolbox, tell)

    def make(folder: Path) -> None:
        boot_uefi.kernel(
            folder / boot_uefi.KERNEL,
            linux=parts / "linux",
            initramfs=parts / INITRAMFS,
            version=order.version,
            words=order.recipe.cmdline,
            architecture=lock.architecture,
            epoch=lock.epoch,
            toolbox=toolbox,
        )
        if order.recipe.boot == "pi":
            shutil.copytree(parts / boot_pi.FOLDER, folder / boot_pi.FOLDER)

    return toolbox.cache.get("kernel", kernel_inputs(order, lock), make)


# The root file system of the device.


def root_inputs(order: Order, lock: Lock, toolbox: Toolbox) -> dict[str, Any]:
    """What the sealed root file system depends on."""
    return {
        "base": base_inputs(order, lock),
        "overlay": overlay.inputs(contents(order, lock), toolbox),
        "build_only": order.recipe.build_only,
        "compatible": order.recipe.compatible,
        "keyring": file_digest(order.keys.keyring) if order.keys else "",
        "level": level(order),
        "code": [CODE[name] for name in ("root", "rauc", "disk")],
    }


def level(order: Order) -> int:
    """How hard zstd tries."""
    return FAST_LEVEL if order.fast else disk.LEVEL


def root(order: Order, lock: Lock, base: Path, added: Path, toolbox: Toolbox, tell: Tell) -> Path:
    """The folder with the sealed root file system."""
    tell("root", "root file system", None)

    def make(folder: Path) -> None:
        with toolbox.scratch("root") as work:
            tell("root", "Debian and Hob together", 0.1)
            rauc.configure(
                work / "updates",
                compatible=order.recipe.compatible,
                version=order.version,
                keyring=order.keys.keyring if order.keys else None,
            )
            layers = [added, work / "updates"]
            roots.merge(toolbox, base, layers, work / "tree", build_only=order.recipe.build_only)
            tell("root", "squashfs", 0.5)
            disk.squash(work / "tree", folder / ROOT, epoch=lock.epoch, toolbox=toolbox, level=level(order))

    return toolbox.cache.get("root", root_inputs(order, lock, toolbox), make)
