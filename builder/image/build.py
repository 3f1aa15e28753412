"""From a recipe to the files that a device is made of, as one function of named stages.

Every stage is kept by what it was made from, so a second build does only what has changed, and one that was
interrupted goes on where it stopped. `stages` has what each stage depends on.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from builder.errors import BuildError, UnsupportedError
from builder.image import deb, disk, jetson, layout, oci, release, stages
from builder.image.application import checkout_of
from builder.image.bundle import make_bundle
from builder.image.cache import Cache, require_space
from builder.image.inventory import software
from builder.image.layout import Layout
from builder.image.mirror import find_mirror
from builder.image.packages import Lock, dump, fetch
from builder.image.prune import remove, superseded
from builder.image.stages import Order, Tell
from builder.image.toolbox import Toolbox, open_toolbox

# Working room beside what is kept: the unpacked tree, the raw image and its packed form.
ROOM = 4_000_000_000


@dataclass(frozen=True)
class System:
    """A system that boots, as the stages have left it: folders of the cache.

    Attributes:
        lock: its packages.
        base: Debian.
        added: what Hob adds.
        kernel: what `layout` needs to make it boot.
        root: the sealed root file system.
    """

    lock: Lock
    base: Path
    added: Path
    kernel: Path
    root: Path


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
    # Before anything is fetched: without NVIDIA's package the rest would be for nothing.
    bsp = jetson.check(order.bsp, order.bsp_allow) if order.recipe.format == "jetson" else None
    toolbox = tools(order, cache, tell)
    remove(toolbox.cache, superseded(toolbox.cache))
    match order.recipe.format:
        case "disk":
            return build_disk(order, toolbox, tell)
        case "oci":
            return build_container(order, toolbox, tell)
        case "deb":
            return build_packages(order, toolbox, tell)
        case "jetson":
            assert bsp is not None
            return build_jetson(order, bsp, toolbox, tell)


def tools(order: Order, cache: Cache, tell: Tell) -> Toolbox:
    """The toolbox, made first where there is none; room to work and a folder for the result are there."""
    tell("tools", "Debian's tools in a root of their own", None)

    def line(text: str) -> None:
        if text.startswith("I: "):
            tell("tools", text[3:].split("...")[0], None)

    toolbox = open_toolbox(cache, mirror=order.mirror, line=line)
    require_space(cache.root, ROOM, "Building an image")
    order.out.mkdir(parents=True, exist_ok=True)
    return toolbox


def locked(order: Order, toolbox: Toolbox, architecture: str, tell: Tell) -> Lock:
    """The lock of an architecture. Asks the mirror only where there is none."""
    tell("packages", f"packages for {architecture}", None)
    lock = stages.locked(order, architecture, toolbox.cache)
    if lock is None:
        tell("packages", "asking the mirror which there are", None)
        lock = stages.resolve(order, architecture, toolbox, find_mirror(order.mirror))
    if lock.tools not in {"", toolbox.versions()}:
        tell("note", "the lock was made with other versions of the tools: the bytes may differ", None)
    return lock


def packages(order: Order, toolbox: Toolbox, architecture: str, tell: Tell) -> Lock:
    """The lock of an architecture, with all its packages kept."""
    lock = locked(order, toolbox, architecture, tell)
    if stages.missing(lock, toolbox.cache):
        fetch(toolbox, find_mirror(order.mirror), lock, tell)
    return lock


def build_system(order: Order, toolbox: Toolbox, tell: Tell) -> System:
    """Everything of a system that boots but its disk."""
    lock = packages(order, toolbox, order.recipe.architecture, tell)
    base = stages.base(order, lock, toolbox, tell)
    added = stages.added(order, lock, toolbox, tell)
    kernel = stages.kernel(order, lock, base, toolbox, tell)
    root = stages.root(order, lock, base, added, toolbox, tell)
    return System(lock, base, added, kernel, root)


def build_disk(order: Order, toolbox: Toolbox, tell: Tell) -> list[Path]:
    """A disk image that boots, with what is published beside it."""
    recipe, name = order.recipe, f"hob-{order.recipe.name}-{order.version}"
    system = build_system(order, toolbox, tell)
    with toolbox.scratch("image") as work:
        tell("disk", "partitions", None)
        plan = layout.make(recipe, system.lock, system.kernel, system.root / stages.ROOT, work, toolbox)
        image = disk.build(
            work / f"{name}.img",
            plan.parts,
            compatible=recipe.compatible,
            epoch=system.lock.epoch,
            toolbox=toolbox,
        )
        (work / f"{name}.lock.toml").write_text(dump(system.lock))
        made = [work / f"{name}.lock.toml", disk.block_map(image, work / f"{name}.img.bmap", toolbox)]
        if order.keys:
            tell("bundle", "signed update", None)
            made.append(bundle(order, system, plan, toolbox, work / f"{name}.raucb"))
        if order.fast:
            return sorted(publish(path, order.out) for path in (*made, image))
        tell("pack", "packed image", None)
        made.append(disk.compress(image, work / f"{name}.img.xz", toolbox))
        # What vouches for the other files goes first and comes last.
        for path in order.out.glob(f"{name}.manifest.json*"):
            path.unlink()
        files = [publish(path, order.out) for path in made]
        tell("manifest", "manifest and bill of materials", None)
        release.write(
            order.out,
            recipe=recipe,
            contents=release.Contents(
                version=order.version,
                epoch=system.lock.epoch,
                lock=hashlib.sha256(dump(system.lock).encode()).hexdigest(),
                slots=plan.slots,
                **software(system.lock, system.base, system.added),
            ),
            image=image,
            parts=plan.parts,
            files=files,
            signing=order.keys,
            tell=tell,
        )
    return sorted(
        {*files, *(path for end in release.ENDINGS if (path := order.out / f"{name}{end}").exists())}
    )


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
    system = build_system(order, toolbox, tell)
    tell("bundle", "signed update", None)
    with toolbox.scratch("update") as work:
        plan = layout.make(order.recipe, system.lock, system.kernel, system.root / stages.ROOT, work, toolbox)
        name = f"hob-{order.recipe.name}-{order.version}.raucb"
        return publish(bundle(order, system, plan, toolbox, work / name), order.out)


def bundle(order: Order, system: System, plan: Layout, toolbox: Toolbox, out: Path) -> Path:
    """The signed update `out` with a system's root and what boots it."""
    assert order.keys
    return make_bundle(
        toolbox,
        out,
        compatible=order.recipe.compatible,
        version=order.version,
        keys=order.keys,
        root=system.root / stages.ROOT,
        kernel=plan.kernel,
        epoch=system.lock.epoch,
    )


def build_container(order: Order, toolbox: Toolbox, tell: Tell) -> list[Path]:
    """A container image for every architecture of the recipe, in one archive."""
    name, variants, epoch = f"hob-{order.recipe.name}-{order.version}", [], 0
    with toolbox.scratch("container") as work:
        made = []
        for architecture in order.recipe.architectures:
            lock = packages(order, toolbox, architecture, tell)
            epoch = max(epoch, lock.epoch)
            base = stages.base(order, lock, toolbox, tell)
            variants.append(oci.Variant(architecture, base, stages.added(order, lock, toolbox, tell)))
            made.append(work / f"{name}.lock.{architecture}.toml")
            made[-1].write_text(dump(lock))
        archive = oci.build(
            work / f"{name}.tar",
            variants,
            version=order.version,
            title=order.recipe.title,
            epoch=epoch,
            toolbox=toolbox,
            tell=tell,
        )
        return sorted(publish(path, order.out) for path in (*made, archive))


def build_jetson(order: Order, bsp: jetson.Bsp, toolbox: Toolbox, tell: Tell) -> list[Path]:
    """NVIDIA's tree with Hob's root file system in it, ready to be flashed by NVIDIA's tools."""
    name = f"hob-{order.recipe.name}-{order.version}.tar"
    lock = packages(order, toolbox, order.recipe.architecture, tell)
    base = stages.base(order, lock, toolbox, tell)
    added = stages.added(order, lock, toolbox, tell)
    with toolbox.scratch("bsp") as work:
        made = jetson.assemble(work / name, bsp, base, [added], toolbox=toolbox, tell=tell)
        return [publish(made, order.out)]


def build_packages(order: Order, toolbox: Toolbox, tell: Tell) -> list[Path]:
    """A Debian package for every architecture of the recipe."""
    made = []
    with toolbox.scratch("packages") as work:
        for architecture in order.recipe.architectures:
            # Nothing of Debian goes into it; the lock gives it its time.
            lock = locked(order, toolbox, architecture, tell)
            added = stages.added(order, lock, toolbox, tell)
            tell("deb", f"package for {architecture}", None)
            version = deb.debian_version(order.version)
            made.append(
                deb.build(
                    work / f"{deb.NAME}_{version}_{architecture}.deb",
                    overlay=added,
                    checkout=checkout_of(),
                    architecture=architecture,
                    version=order.version,
                    compiler=order.recipe.compiler,
                    epoch=lock.epoch,
                    toolbox=toolbox,
                )
            )
        return [publish(path, order.out) for path in made]


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
