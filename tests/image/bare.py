"""The yardstick for how soon Hob is ready: Debian with systemd and nothing else, started in the same way.

Kernel, initramfs, boot loader, root and partitions are made by the builder as for the image; only the
packages are fewer, and nothing of Hob is in it.
"""

import subprocess
from pathlib import Path

from builder.image import boot_uefi, disk, recipe, rootfs, stages
from builder.image.build import packages
from builder.image.cache import Cache
from builder.image.toolbox import open_toolbox

RECIPE = Path(__file__).parent / "bare.toml"
READY = "multi-user.target"

SETTLE = """
echo bare > "$1/etc/hostname"
: > "$1/etc/machine-id"
echo 'tmpfs /var tmpfs mode=755 0 0' > "$1/etc/fstab"
rm -rf "$1"/boot/*
"""


def build(cache: Cache, image: Path, mirror: str = "") -> Path:
    """Make the disk image at `image`."""
    toolbox = open_toolbox(cache, mirror=mirror)
    order = stages.Order(recipe=recipe.load(str(RECIPE)), version="0", mirror=mirror)
    lock = packages(order, toolbox, order.recipe.architecture, _quiet)
    base = stages.base(order, lock, toolbox, _quiet)
    kernel = stages.kernel(order, lock, base, toolbox, _quiet)
    with toolbox.scratch("bare") as work:
        tree = work / "tree"
        rootfs.unpack(toolbox, base, tree)
        # Its files belong to root, whoever that is on this machine.
        toolbox.run(["sh", "-c", SETTLE, "settle", tree], write=[work])
        root = disk.squash(tree, work / "root.squashfs", epoch=lock.epoch, toolbox=toolbox)
        boot = boot_uefi.partition(
            work / "hob",
            kernel=kernel / boot_uefi.KERNEL,
            compatible=order.recipe.compatible,
            size=order.recipe.disk.boot * disk.MIB,
            architecture=order.recipe.architecture,
            epoch=lock.epoch,
            toolbox=toolbox,
        )
        parts = [
            disk.Part("HOB", "esp", order.recipe.disk.boot * disk.MIB, "vfat", "HOB", tree=boot),
            disk.Part("root-a", "linux-generic", order.recipe.disk.root * disk.MIB, blocks=root),
        ]
        made = disk.build(
            work / "bare.img", parts, compatible=order.recipe.compatible, epoch=lock.epoch, toolbox=toolbox
        )
        subprocess.run(["cp", "--sparse=always", made, image], check=True)
    return image


def _quiet(stage: str, text: str, share: float | None) -> None:
    """Says nothing."""
