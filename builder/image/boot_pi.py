"""How a Raspberry Pi starts an image: its firmware, then U-Boot, then the kernel image of a slot.

The partition HOB holds

    start4.elf, fixup4.dat, *.dtb    the firmware's own files (a Pi 5 has the first two in its EEPROM)
    config.txt                       what the firmware is told: to start U-Boot
    u-boot.bin, boot.scr             U-Boot, and what it does (boot_pi.cmd)
    slots/always, slots/once         which slot starts; the device makes them (usr/lib/hob/bootloader)
    EFI/Linux/hob-a.efi, ...         as on a computer with UEFI, see boot_uefi

The firmware has a way of its own to try a partition once ("tryboot"), but Linux cannot ask for it: that part
of the driver is in Raspberry Pi's own kernels only. U-Boot starts programs for UEFI, so a kernel image is
made, updated and rolled back as on any other device, and all but the firmware's step can be tried in QEMU.

Firmware, U-Boot and device trees are as old as the card: an update does not touch them.
Files and settings of the firmware: raspberrypi.com/documentation, "config.txt" and "boot flow".
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from builder.errors import FormatError
from builder.image import boot_uefi
from builder.image.toolbox import Toolbox

SCRIPT: Final = Path(__file__).with_name("boot_pi.cmd")

CONFIG: Final = """\
# What the Raspberry Pi's firmware does before Hob starts. Settings of Hob itself are in hob.toml.
arm_64bit=1
kernel=u-boot.bin
# Without it U-Boot waits for ever on boards with Bluetooth on the first serial port.
enable_uart=1
# The picture is text: memory is for the model.
gpu_mem=32
disable_overscan=1
"""

FOLDER: Final = "firmware"
"""Where the kernel's stage keeps what `firmware` copied."""

FIRMWARE: Final = ("start4.elf", "fixup4.dat", "bootcode.bin", "start.elf", "fixup.dat")
"""For the boards up to Pi 4; the last three for those before it, which only QEMU plays."""

BOARDS: Final = ("bcm2711-*.dtb", "bcm2712-*.dtb", "bcm2837-rpi-3-b*.dtb")


def firmware(tree: Path, release: str, out: Path) -> None:
    """Copy out of a root file system what goes to the boot partition, into the new folder `out`.

    Args:
        tree: with the packages raspi-firmware and u-boot-rpi.
        release: of its kernel, whose device trees are taken.

    Raises:
        FormatError: the tree has not got one of them.
    """
    out.mkdir()
    for name in FIRMWARE:
        copy(tree / "usr/lib/raspi-firmware" / name, out / name)
    copy(tree / "usr/lib/u-boot/rpi_arm64/u-boot.bin", out / "u-boot.bin")
    folder = tree / f"usr/lib/linux-image-{release}/broadcom"
    found = [path for pattern in BOARDS for path in sorted(folder.glob(pattern))]
    if not found:
        raise FormatError(f"the kernel {release} has no device trees of Raspberry Pis")
    for path in found:
        copy(path, out / path.name)


def copy(source: Path, target: Path) -> None:
    """Copy a file that a package should have brought."""
    if not source.is_file():
        raise FormatError(
            f"the root file system has no {source.name}",
            hint="A recipe for a Raspberry Pi names the packages raspi-firmware and u-boot-rpi.",
        )
    shutil.copyfile(source, target)


def partition(
    out: Path,
    *,
    kernel: Path,
    firmware: Path,
    compatible: str,
    size: int,
    files: Path,
    epoch: int,
    toolbox: Toolbox,
) -> Path:
    """Lay out the partition HOB in the new folder `out`.

    Args:
        kernel: the kernel image for slot A; slot B waits for the first update.
        firmware: what `firmware` copied.
        size: of the partition, in bytes.
        files: a folder for the owner, such as a `hob.toml` to fill in.

    Raises:
        SpaceError: two kernels, and a third while an update is written, have no room in it.
    """
    boot_uefi.slots(
        out,
        kernel=kernel,
        compatible=compatible,
        size=size,
        architecture="arm64",
        epoch=epoch,
        toolbox=toolbox,
    )
    shutil.copytree(firmware, out, dirs_exist_ok=True)
    shutil.copytree(files, out, dirs_exist_ok=True)
    (out / "config.txt").write_text(CONFIG)
    script(out / "boot.scr", epoch=epoch, toolbox=toolbox)
    return out


def script(out: Path, *, epoch: int, toolbox: Toolbox) -> None:
    """Wrap U-Boot's script as U-Boot wants it."""
    with toolbox.scratch("script") as work:
        shutil.copyfile(SCRIPT, work / "boot.cmd")
        command: Sequence[str | Path] = (
            *("mkimage", "-A", "arm64", "-T", "script", "-C", "none", "-n", "Hob"),
            *("-d", work / "boot.cmd", work / "boot.scr"),
        )
        toolbox.run(command, write=[work], env={"SOURCE_DATE_EPOCH": str(epoch)})
        shutil.copyfile(work / "boot.scr", out)
