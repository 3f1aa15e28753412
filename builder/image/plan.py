"""What a build would do: its steps, how large what they make is, and which of it is there already.

Nothing is built, and no network is asked. What cannot be known before an earlier step has run says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.image import overlay, packages, stages
from builder.image.cache import Cache, digest
from builder.image.packages import Lock
from builder.image.stages import Order
from builder.image.toolbox import Toolbox, kept_toolbox

MIB = 2**20

# Measured on the image of a PC: bytes of a stage's result for each byte of Debian packages.
ROOTFS = 2.3
SEALED = 1.3
TOOLS = 1_100_000_000


@dataclass(frozen=True)
class Step:
    """A step of a build.

    Attributes:
        stage: its name, as it is reported while it runs.
        text: what it makes.
        done: whether the cache has the result.
        size: bytes of the result; what it is likely to be if `done` is false; None where that is unknown.
    """

    stage: str
    text: str
    done: bool
    size: int | None = None


def plan(order: Order, cache: Cache) -> list[Step]:
    """The steps of a build in their order.

    Raises:
        FormatError, RecipeError: the lock is damaged or of another recipe.
    """
    toolbox = kept_toolbox(cache)
    steps = [Step("tools", "Debian's tools in a root of their own", toolbox is not None, TOOLS)]
    for architecture in order.recipe.architectures:
        steps += architecture_steps(order, architecture, cache, toolbox)
    return [*steps, *output_steps(order)]


def architecture_steps(order: Order, architecture: str, cache: Cache, toolbox: Toolbox | None) -> list[Step]:
    """What is made once for each architecture."""
    lock = stages.locked(order, architecture, cache)
    name = f" for {architecture}"
    if lock is None or toolbox is None:
        asked = f"{len(order.recipe.wanted)} packages and what they need: a mirror says which"
        return [
            Step("packages", asked + name, False),
            *(Step(stage, text + name, False) for stage, text in titles(order)),
        ]
    steps = [packages_step(lock, cache)] if order.recipe.format != "deb" else []
    weight = sum(package.size for package in lock.packages)
    likely = {"rootfs": int(weight * ROOTFS), "root": int(weight * SEALED)}
    known = inputs(order, lock, toolbox)
    for stage, text in titles(order):
        place = cache.place(stage, digest(known[stage]))
        done = place.exists()
        steps.append(Step(stage, text + name, done, folder_size(place) if done else likely.get(stage)))
    return steps


def packages_step(lock: Lock, cache: Cache) -> Step:
    """The packages of a lock, of which some may be there."""
    absent = packages.missing(lock, cache)
    text = f"{len(lock.packages)} packages for {lock.architecture}"
    if absent:
        text += f", {len(absent)} of them to be fetched ({sum(each.size for each in absent) / 1e6:.0f} MB)"
    return Step("packages", text, not absent, sum(package.size for package in lock.packages))


def titles(order: Order) -> list[tuple[str, str]]:
    """The stages that are kept, in their order."""
    found = [("overlay", "Hob, its packages, models and libraries")]
    if order.recipe.format != "deb":
        found.insert(0, ("rootfs", "base root file system"))
    if order.recipe.boot != "none":
        found += [("initramfs", "initramfs"), ("kernel", "kernel image"), ("root", "sealed root file system")]
    return found


def inputs(order: Order, lock: Lock, toolbox: Toolbox) -> dict[str, dict[str, Any]]:
    """What the kept stages depend on, by their names."""
    found: dict[str, dict[str, Any]] = {
        "rootfs": stages.base_inputs(order, lock),
        "overlay": overlay.inputs(stages.contents(order, lock), toolbox),
    }
    if order.recipe.boot != "none":
        found["initramfs"] = stages.initramfs_inputs(order, lock)
        found["kernel"] = stages.kernel_inputs(order, lock)
        found["root"] = stages.root_inputs(order, lock, toolbox)
    return found


def output_steps(order: Order) -> list[Step]:
    """What is made anew every time, from what is kept."""
    recipe = order.recipe
    if recipe.format != "disk":
        return [Step(recipe.format, f"the files of {recipe.name} in {order.out}", False)]
    disk = recipe.disk
    total = (disk.boot + 2 * disk.root + disk.data) * MIB
    steps = [Step("disk", "partitions, as the device has them", False, total)]
    if not order.fast:
        steps += [
            Step("pack", f"packed image, block map and manifest in {order.out}", False),
        ]
    if order.keys is not None:
        steps.append(Step("bundle", f"signed update in {order.out}", False))
    return steps


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
