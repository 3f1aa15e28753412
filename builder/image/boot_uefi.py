"""How a computer with UEFI firmware starts an image: systemd-boot, and one kernel image for both slots.

The partition HOB holds

    EFI/BOOT/BOOTX64.EFI, EFI/systemd/...       systemd-boot, where the firmware and bootctl look for it
    loader/loader.conf                          which slot starts
    EFI/Linux/hob-a.efi                         slot A: stub, kernel, initramfs, os-release, command line
    EFI/Linux/hob-a.efi.extra.d/slot.addon.efi  the rest of the line: which partition is its root
    EFI/Linux/hob-b.efi.extra.d/slot.addon.efi  the same for slot B, whose kernel the first update brings

The kernel image is the same, byte for byte, in whichever slot it lies: an update brings one, and what differs
between the slots belongs to the disk and never changes. Addons and the `.extra.d` folders are described in
systemd-stub(7), the kernel's place by the Boot Loader Specification (type 2).

Nothing is signed for Secure Boot: firmware that insists on it does not start the image.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from builder.errors import FormatError, SpaceError
from builder.image.disk import MIB, identity
from builder.image.toolbox import Toolbox, host_architecture

SLOTS: Final = ("a", "b")
KERNEL: Final = "hob.efi"
"""The kernel image as an update carries it."""

TIMEOUT: Final = 1800.0

WORDS: Final = (
    "ro",
    "rootfstype=squashfs",
    "quiet",
    "loglevel=4",
    "systemd.show_status=auto",
    "systemd.gpt_auto=0",  # what is mounted where is said in /etc/fstab, and only there
    "panic=10",  # seconds until another try; it also keeps the initramfs from offering a shell
    "consoleblank=0",
)
"""The kernel's command line on every device, before its consoles."""

LOADER: Final = """\
# Which slot starts. An update tries the other one once, and changes this when that has answered a question.
default hob-a.efi
timeout 0
editor no
auto-entries no
auto-firmware no
"""

MICROCODE: Final = {
    "etc/default/intel-microcode": "IUCODE_TOOL_INITRAMFS=early\nIUCODE_TOOL_SCANCPUS=no\n",
    "etc/default/amd64-microcode": "AMD64UCODE_INITRAMFS=early\n",
}
"""Updates for every processor: left alone, the packages look at the one that the image is built on."""


@dataclass(frozen=True)
class Firmware:
    """What UEFI and systemd call an architecture, and its serial port."""

    short: str
    serial: str

    @property
    def fallback(self) -> str:
        """The file that firmware starts from a disk it knows nothing about (UEFI 2.10, section 3.5.1.1)."""
        return f"BOOT{self.short.upper()}.EFI"


FIRMWARE: Final = {
    "amd64": Firmware("x64", "ttyS0,115200"),
    "arm64": Firmware("aa64", "ttyAMA0,115200"),
}


def initramfs(
    tree: Path, configuration: Sequence[Path], out: Path, *, architecture: str, epoch: int, toolbox: Toolbox
) -> Path:
    """Make the initramfs for the kernel in a root file system, with the system's own mkinitramfs.

    Args:
        tree: a root file system with initramfs-tools and the modules of one kernel; it stays as it is.
        configuration: folders that are laid over its `/etc/initramfs-tools`, later ones over earlier ones.
        out: the file to write.
        architecture: the tree's.
        epoch: the time of every file in it.
        toolbox: where it is made; its emulator runs a foreign tree.

    Raises:
        FormatError: the tree has no kernel, or several.
        CommandError: mkinitramfs failed.
    """
    release = kernel_release(tree)
    with toolbox.scratch("initramfs") as work:
        merged = work / "initramfs-tools"
        for folder in (tree / "etc/initramfs-tools", *configuration):
            shutil.copytree(folder, merged, dirs_exist_ok=True)
        bound = {}
        for name, text in MICROCODE.items():
            if (tree / name).is_file():
                (work / Path(name).name).write_text(text)
                bound[work / Path(name).name] = f"/{name}"
        made = work / "initramfs"
        toolbox.within(tree).run(
            ["mkinitramfs", "-d", merged, "-o", made, release],
            write=[work],
            bound=bound,
            env={"SOURCE_DATE_EPOCH": str(epoch), "TMPDIR": str(work)},
            foreign="" if architecture == host_architecture() else architecture,
            timeout=TIMEOUT,
        )
        shutil.copyfile(made, out)
    return out


def kernel_release(tree: Path) -> str:
    """The release of the one kernel in a root file system: "6.12.48+deb13-amd64"."""
    found = sorted(path.parent.name for path in (tree / "usr/lib/modules").glob("*/kernel"))
    if len(found) != 1:
        raise FormatError(
            f"the root file system has {len(found)} kernels, and exactly one is wanted",
            hint="Name one kernel in the recipe.",
        )
    return found[0]


def kernel(
    out: Path,
    *,
    linux: Path,
    initramfs: Path,
    version: str,
    words: Sequence[str] = (),
    architecture: str,
    epoch: int,
    toolbox: Toolbox,
) -> Path:
    """Join the kernel, its initramfs and its command line in one program for the firmware: `hob.efi`.

    Args:
        linux: the kernel as Debian packs it.
        version: of Hob, which boot menus show.
        words: for the command line, after those that every device has.
    """
    firmware = FIRMWARE[architecture]
    with toolbox.scratch("kernel") as work:
        release = work / "os-release"
        release.write_text(f'ID=hob\nNAME=Hob\nVERSION_ID="{version}"\nPRETTY_NAME="Hob {version}"\n')
        # Messages go to all consoles; /dev/console is the last one, the screen.
        line = " ".join((*WORDS, f"console={firmware.serial}", "console=tty0", *words))
        made = work / KERNEL
        toolbox.run(
            [
                *("ukify", "build", *_ukify(firmware, "linux"), f"--linux={linux}", f"--initrd={initramfs}"),
                *(f"--os-release=@{release}", f"--cmdline={line}", f"--output={made}"),
            ],
            read=[linux, initramfs],
            write=[work],
            env={"SOURCE_DATE_EPOCH": str(epoch)},
            timeout=TIMEOUT,
        )
        shutil.copyfile(made, out)
    return out


def slot_words(slot: str, compatible: str) -> str:
    """What the kernel of a slot is told besides: its root, and which slot it is."""
    return f"root=PARTUUID={identity(compatible, f'root-{slot}')} hob.slot={slot}"


def partition(
    out: Path,
    *,
    kernel: Path,
    compatible: str,
    size: int,
    files: Path | None = None,
    architecture: str,
    epoch: int,
    toolbox: Toolbox,
) -> Path:
    """Lay out the files of the partition HOB in the new folder `out`.

    Args:
        kernel: `hob.efi`, for slot A.
        compatible: the recipe's; it gives the partitions their identities.
        size: bytes of the partition.
        files: a folder with files for its owner; None for none.

    Raises:
        SpaceError: the kernels of two slots and a third that is just being written do not fit.
    """
    slots(
        out,
        kernel=kernel,
        compatible=compatible,
        size=size,
        architecture=architecture,
        epoch=epoch,
        toolbox=toolbox,
    )
    firmware = FIRMWARE[architecture]
    loader = f"systemd-boot{firmware.short}.efi"
    for name in (f"EFI/BOOT/{firmware.fallback}", f"EFI/systemd/{loader}"):
        (out / name).parent.mkdir(parents=True)
        shutil.copyfile(_programs(toolbox) / loader, out / name)
    (out / "loader").mkdir()
    (out / "loader/loader.conf").write_text(LOADER)
    if files:
        shutil.copytree(files, out, dirs_exist_ok=True)
    return out


def slots(
    out: Path,
    *,
    kernel: Path,
    compatible: str,
    size: int,
    architecture: str,
    epoch: int,
    toolbox: Toolbox,
) -> None:
    """Lay out in the new folder `out` what slots have there: A its kernel, both what tells their roots.

    Arguments and errors as of `partition`.
    """
    needed = 3 * kernel.stat().st_size + 16 * MIB
    if needed > size:
        raise SpaceError(
            f"the partition HOB has {size // MIB} MiB and needs {-(-needed // MIB)} MiB: two kernels, and a "
            "third while an update is written",
            hint="Make disk.boot larger in the recipe.",
        )
    with toolbox.scratch("slots") as work:
        for slot in SLOTS:
            toolbox.run(
                [
                    *("ukify", "build", *_ukify(FIRMWARE[architecture], "addon")),
                    *(f"--cmdline={slot_words(slot, compatible)}", f"--output={work}/{slot}"),
                ],
                write=[work],
                env={"SOURCE_DATE_EPOCH": str(epoch)},
                timeout=TIMEOUT,
            )
            folder = out / "EFI/Linux" / f"hob-{slot}.efi.extra.d"
            folder.mkdir(parents=True)
            shutil.copyfile(work / slot, folder / "slot.addon.efi")
    shutil.copyfile(kernel, out / "EFI/Linux/hob-a.efi")


def _programs(toolbox: Toolbox) -> Path:
    """Where the toolbox has systemd's programs for the firmware."""
    return toolbox.tree / "usr/lib/systemd/boot/efi"


def _ukify(firmware: Firmware, kind: Literal["linux", "addon"]) -> list[str]:
    """What ukify is told of the firmware, which may be another than the host's."""
    stub = f"/usr/lib/systemd/boot/efi/{kind}{firmware.short}.efi.stub"
    return [f"--efi-arch={firmware.short}", f"--stub={stub}"]
