"""Which partitions a device's disk has, and what is in them: the one place where kinds of firmware differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.image import boot_pi, boot_uefi, release
from builder.image.disk import MIB, Part
from builder.image.manifest import Slot
from builder.image.packages import Lock
from builder.image.recipe import Recipe
from builder.image.toolbox import Toolbox

OWNERS = Path(__file__).parent / "system/boot"
"""What lies on the partition HOB for the device's owner: settings to fill in."""


@dataclass(frozen=True)
class Layout:
    """The disk of a device.

    Attributes:
        parts: its partitions in their order.
        slots: where systems can be.
        kernel: the file of the partition HOB that an update brings besides the root.
    """

    parts: Sequence[Part]
    slots: Sequence[Slot]
    kernel: Path


def make(recipe: Recipe, lock: Lock, kernel: Path, root: Path, work: Path, toolbox: Toolbox) -> Layout:
    """The partitions of a recipe's device, with what they hold laid out in the folder `work`.

    Args:
        kernel: the folder that the kernel's stage has made.
        root: the sealed root file system, for slot A; slot B waits for the first update.

    Raises:
        SpaceError: something does not fit into its partition.
    """
    size, image = recipe.disk.boot * MIB, kernel / boot_uefi.KERNEL
    match recipe.boot:
        case "uefi":
            files = boot_uefi.partition(
                work / "hob",
                kernel=image,
                compatible=recipe.compatible,
                size=size,
                files=OWNERS,
                architecture=recipe.architecture,
                epoch=lock.epoch,
                toolbox=toolbox,
            )
        case "pi":
            files = boot_pi.partition(
                work / "hob",
                kernel=image,
                firmware=kernel / boot_pi.FOLDER,
                compatible=recipe.compatible,
                size=size,
                files=OWNERS,
                epoch=lock.epoch,
                toolbox=toolbox,
            )
        case "none":
            raise AssertionError("what does not boot has no disk")
    parts = [
        Part("HOB", "esp", size, "vfat", "HOB", tree=files),
        Part("root-a", "linux-generic", recipe.disk.root * MIB, blocks=root),
        Part("root-b", "linux-generic", recipe.disk.root * MIB),
        Part("data", "var", recipe.disk.data * MIB, "ext4", "hob-data"),
    ]
    return Layout(parts, release.SLOTS, kernel=image)
