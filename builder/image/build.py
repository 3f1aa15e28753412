"""From a recipe to the files that a device is made of, as one function of named stages.

Every stage is kept by what it was made from, so a second build does only what has changed, and one that was
interrupted goes on where it stopped. `stages` has what each stage depends on.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from builder.errors import BuildError, UnsupportedError
from builder.image import boot_uefi, disk, oci, stages
from builder.image.bundle import make_bundle
from builder.image.cache import Cache, require_space
from builder.image.mirror import find_mirror
from builder.image.packages import Lock, dump, fetch
from builder.image.stages import Order, Tell
from builder.image.toolbox import Toolbox, open_toolbox

# Working room beside what is kept: the unpacked tree, the raw image and its packed form.
ROOM = 4_000_000_000


def build_image(order: Order, cache: Cache, tell: Tell) -> list[Path]:
    """Make everything that the recipe's device consists of, and return the files in `order.out`.

    A file appears there whole or not at all. Two builds of the same order from the same lock give the same
    bytes.

    Args:
        order: the recipe, the version, and where things come from and go to.
        cache: what earlier builds have left.
        tell: is told stage, text and share done (None where it is not known).

    Raises:
        PrivilegeError: neither root nor a user namespace is to be had.
        MirrorError: packages are missing and the mirror does not give them.
        SpaceError: the disk is too small.
        RecipeError, CommandError: the recipe asks for what cannot be made; the message says what.
    """
    toolbox = tools(order, cache, tell)
    require_space(cache.root, ROOM, "Building an image")
    order.out.mkdir(parents=True, exist_ok=True)
    match order.recipe.format:
        case "disk":
            return build_disk(order, toolbox, tell)
        case "oci":
            return [build_container(order, toolbox, tell)]
        case other:
            raise UnsupportedError(f"a recipe of format {other} cannot be built yet")


def tools(order: Order, cache: Cache, tell: Tell) -> Toolbox:
    """The toolbox, made first where there is none, with a cache that can remove what its programs write."""
    tell("tools", "Debian tools in a root of their own", None)

    def line(text: str) -> None:
        if text.startswith("I: "):
            tell("tools", text[3:].split("...")[0], None)

    toolbox = open_toolbox(cache, mirror=order.mirror, line=line)
    return replace(toolbox, cache=replace(cache, remove=toolbox.remove))


def build_disk(order: Order, toolbox: Toolbox, tell: Tell) -> list[Path]:
    """A disk image that boots, with what is published beside it."""
    recipe, name = order.recipe, f"hob-{order.recipe.name}-{order.version}"
    lock = packages(order, toolbox, recipe.architecture, tell)
    base = stages.base(order, lock, toolbox, tell)
    added = stages.added(order, lock, toolbox, tell)
    kernel = stages.kernel(order, lock, base, toolbox, tell)
    root = stages.root(order, lock, base, added, toolbox, tell)
    with toolbox.scratch("image") as work:
        tell("disk", "partitions", 0.0)
        files = boot_uefi.partition(
            work / "hob",
            kernel=kernel / boot_uefi.KERNEL,
            compatible=recipe.compatible,
            size=recipe.disk.boot * disk.MIB,
            architecture=recipe.architecture,
            epoch=lock.epoch,
            toolbox=toolbox,
        )
        parts = [
            disk.Part("HOB", "esp", recipe.disk.boot * disk.MIB, "vfat", "HOB", tree=files),
            disk.Part("root-a", "linux-generic", recipe.disk.root * disk.MIB, blocks=root / stages.ROOT),
            disk.Part("root-b", "linux-generic", recipe.disk.root * disk.MIB),
            disk.Part("data", "var", recipe.disk.data * disk.MIB, "ext4", "hob-data"),
        ]
        image = disk.build(
            work / f"{name}.img", parts, compatible=recipe.compatible, epoch=lock.epoch, toolbox=toolbox
        )
        made = [disk.block_map(image, work / f"{name}.img.bmap", toolbox)]
        if order.fast:
            made.append(image)
        else:
            tell("disk", "packing", 0.5)
            made.append(disk.compress(image, work / f"{name}.img.xz", toolbox))
        if order.keys:
            tell("bundle", "the update of this version", None)
            made.append(bundle_of(order, lock, root, kernel, toolbox, work / f"{name}.raucb"))
        (work / f"{name}.lock.toml").write_text(dump(lock))
        made.append(work / f"{name}.lock.toml")
        tell("disk", "done", 1.0)
        return sorted(publish(path, order.out) for path in made)


def build_bundle(order: Order, cache: Cache, tell: Tell) -> Path:
    """The update alone, for devices that were flashed with an image of the same keys.

    Raises:
        BuildError: there are no keys, or the recipe's device takes no updates; else as `build_image`.
    """
    if order.keys is None:
        raise BuildError("an update must be signed", hint="Name the folder of keys: --keys DIR")
    if order.recipe.format != "disk":
        raise UnsupportedError(f"{order.recipe.name} takes no updates of this kind")
    toolbox = tools(order, cache, tell)
    require_space(cache.root, ROOM, "Building an update")
    order.out.mkdir(parents=True, exist_ok=True)
    lock = packages(order, toolbox, order.recipe.architecture, tell)
    base = stages.base(order, lock, toolbox, tell)
    kernel = stages.kernel(order, lock, base, toolbox, tell)
    root = stages.root(order, lock, base, stages.added(order, lock, toolbox, tell), toolbox, tell)
    tell("bundle", "the update", None)
    with toolbox.scratch("update") as work:
        name = f"hob-{order.recipe.name}-{order.version}.raucb"
        return publish(bundle_of(order, lock, root, kernel, toolbox, work / name), order.out)


def bundle_of(order: Order, lock: Lock, root: Path, kernel: Path, toolbox: Toolbox, out: Path) -> Path:
    """The bundle `out`, of a root and a kernel that are made."""
    assert order.keys
    return make_bundle(
        toolbox,
        out,
        compatible=order.recipe.compatible,
        version=order.version,
        keys=order.keys,
        root=root / stages.ROOT,
        kernel=kernel / boot_uefi.KERNEL,
        epoch=lock.epoch,
    )


def build_container(order: Order, toolbox: Toolbox, tell: Tell) -> Path:
    """A container image for every architecture of the recipe, in one archive."""
    name, variants, epoch = f"hob-{order.recipe.name}-{order.version}.tar", [], 0
    for architecture in order.recipe.architectures:
        lock = packages(order, toolbox, architecture, tell)
        epoch = max(epoch, lock.epoch)
        base = stages.base(order, lock, toolbox, tell)
        variants.append(oci.Variant(architecture, base, stages.added(order, lock, toolbox, tell)))
    with toolbox.scratch("container") as work:
        made = oci.build(
            work / name,
            variants,
            version=order.version,
            title=order.recipe.title,
            epoch=epoch,
            toolbox=toolbox,
            tell=tell,
        )
        return publish(made, order.out)


def packages(order: Order, toolbox: Toolbox, architecture: str, tell: Tell) -> Lock:
    """The lock of an architecture, with all its packages kept. Asks the mirror only for what is not there."""
    tell("packages", f"packages for {architecture}", None)
    lock = stages.locked(order, architecture, toolbox.cache)
    if lock is None:
        tell("packages", "asking the mirror which there are", None)
        lock = stages.resolve(order, architecture, toolbox, find_mirror(order.mirror))
    if stages.missing(lock, toolbox.cache):
        fetch(toolbox, find_mirror(order.mirror), lock, tell)
    tell("packages", f"{len(lock.packages)} packages", 1.0)
    return lock


def publish(made: Path, out: Path) -> Path:
    """Move a finished file to where it was asked for; it appears there whole or not at all."""
    target = out / made.name
    try:
        made.replace(target)
    except OSError:  # another disk
        require_space(out, made.stat().st_size, made.name)
        part = out / f".{made.name}.{os.getpid()}"
        try:
            shutil.copyfile(made, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return target
