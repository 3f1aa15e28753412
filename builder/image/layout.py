"""Which partitions a device's disk has, and what is in them: the one place where kinds of firmware differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.image import boot_uefi, release
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
    assert recipe.boot == "uefi"
    return uefi(recipe, lock, kernel / boot_uefi.KERNEL, root, work, toolbox)


def uefi(recipe: Recipe, lock: Lock, kernel: Path, root: Path, work: Path, toolbox: Toolbox) -> Layout:
    """A computer with UEFI: one boot partition with a kernel image for each slot."""
    size = recipe.disk.boot * MIB
    files = boot_uefi.partition(
        work / "hob",
        kernel=kernel,
        compatible=recipe.compatible,
        size=size,
        files=OWNERS,
        architecture=recipe.architecture,
        epoch=lock.epoch,
        toolbox=toolbox,
    )
    parts = [Part("HOB", "esp", size, "vfat", "HOB", tree=files), *system_parts(recipe, root)]
    return Layout(parts, release.UEFI_SLOTS, kernel=kernel)


def system_parts(recipe: Recipe, root: Path) -> list[Part]:
    """What every device has after its boot partitions: two roots and the data."""
    return [
        Part("root-a", "linux-generic", recipe.disk.root * MIB, blocks=root),
        Part("root-b", "linux-generic", recipe.disk.root * MIB),
        Part("data", "var", recipe.disk.data * MIB, "ext4", "hob-data"),
    ]
