"""What lies on the boot partition of a computer with UEFI. That it boots is shown by tests/image."""

from pathlib import Path

import pytest

from builder.errors import FormatError, SpaceError
from builder.image import boot_uefi, disk
from builder.image.cache import Cache, default_root, tree_digest
from builder.image.disk import MIB
from builder.image.toolbox import Toolbox, kept_toolbox

EPOCH = 1_700_000_000
PARTS = {
    "amd64": ("BOOTX64.EFI", "systemd-bootx64.efi", b"\x64\x86", "console=ttyS0,115200 console=tty0"),
    "arm64": ("BOOTAA64.EFI", "systemd-bootaa64.efi", b"\x64\xaa", "console=ttyAMA0,115200 console=tty0"),
}
"""The fallback program, the loader, the machine as PE/COFF spells it, and the consoles."""


SECTION = """
import pefile, sys
for section in pefile.PE(sys.argv[1]).sections:
    if section.Name.rstrip(bytes(1)).decode() == sys.argv[2]:
        print(section.get_data(length=section.Misc_VirtualSize).decode())
"""


@pytest.fixture(scope="module")
def toolbox() -> Toolbox:
    """The builder's tools."""
    found = kept_toolbox(Cache(default_root()))
    if found is None:
        pytest.skip("the image builder's tools are not made yet: hob image build makes them")
    return found


def kernel(toolbox: Toolbox, folder: Path, architecture: str, version: str = "1.2.3") -> Path:
    """A kernel image of small parts: another program for the firmware takes Linux's place."""
    folder.mkdir(exist_ok=True)
    (folder / "initramfs").write_bytes(b"initramfs" * 1000)
    return boot_uefi.kernel(
        folder / "hob.efi",
        linux=toolbox.tree / "usr/lib/systemd/boot/efi" / PARTS[architecture][1],
        initramfs=folder / "initramfs",
        version=version,
        words=["mitigations=auto"],
        architecture=architecture,
        epoch=EPOCH,
        toolbox=toolbox,
    )


def section(toolbox: Toolbox, program: Path, name: str) -> str:
    """The text in a section of a program for the firmware."""
    return toolbox.run(["python3", "-c", SECTION, program, name], read=[program]).rstrip("\0\n")


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_one_kernel_serves_both_slots(toolbox: Toolbox, tmp_path: Path, architecture: str) -> None:
    """It knows neither its slot nor its root; the addons of the disk do. Made again, it is the same."""
    fallback, loader, machine, consoles = PARTS[architecture]
    made = kernel(toolbox, tmp_path / "a", architecture)
    assert made.read_bytes() == kernel(toolbox, tmp_path / "b", architecture).read_bytes()
    line = section(toolbox, made, ".cmdline")
    assert line.startswith("ro rootfstype=squashfs quiet ")
    assert line.endswith(f"panic=10 consoleblank=0 {consoles} mitigations=auto")
    assert "root=" not in line
    assert "hob.slot" not in line
    assert 'VERSION_ID="1.2.3"' in section(toolbox, made, ".osrel")
    digests = []
    for name in ("first", "second"):
        files = boot_uefi.partition(
            tmp_path / name,
            kernel=made,
            compatible="hob-test",
            size=64 * MIB,
            architecture=architecture,
            epoch=EPOCH,
            toolbox=toolbox,
        )
        digests.append(tree_digest(files))
    assert digests[0] == digests[1]
    assert sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file()) == [
        f"EFI/BOOT/{fallback}",
        "EFI/Linux/hob-a.efi",
        "EFI/Linux/hob-a.efi.extra.d/slot.addon.efi",
        "EFI/Linux/hob-b.efi.extra.d/slot.addon.efi",
        f"EFI/systemd/{loader}",
        "loader/loader.conf",
    ]
    for slot in boot_uefi.SLOTS:
        addon = files / f"EFI/Linux/hob-{slot}.efi.extra.d/slot.addon.efi"
        root = disk.identity("hob-test", f"root-{slot}")
        assert section(toolbox, addon, ".cmdline") == f"root=PARTUUID={root} hob.slot={slot}"
    for program in files.rglob("*.[eE][fF][iI]"):
        data = program.read_bytes()
        header = int.from_bytes(data[0x3C:0x40], "little")
        assert data[header : header + 6] == b"PE\0\0" + machine, program
    assert (files / "EFI/Linux/hob-a.efi").read_bytes() == made.read_bytes()
    assert "default hob-a.efi\n" in (files / "loader/loader.conf").read_text()


def test_files_for_the_owner_lie_beside_the_loader(toolbox: Toolbox, tmp_path: Path) -> None:
    """Where somebody sees them who puts the card into a computer."""
    made = kernel(toolbox, tmp_path / "a", "amd64")
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/READ ME.txt").write_text("hello")
    files = boot_uefi.partition(
        tmp_path / "files",
        kernel=made,
        compatible="hob-test",
        size=64 * MIB,
        files=tmp_path / "owner",
        architecture="amd64",
        epoch=EPOCH,
        toolbox=toolbox,
    )
    assert sorted(path.name for path in files.iterdir()) == ["EFI", "READ ME.txt", "loader"]


def test_updates_must_find_room(toolbox: Toolbox, tmp_path: Path) -> None:
    """A partition for one kernel would be fine until the first update."""
    large = tmp_path / "hob.efi"
    with large.open("wb") as file:
        file.truncate(40 * MIB)
    with pytest.raises(SpaceError, match="the partition HOB has 128 MiB and needs 136 MiB: two kernels, and"):
        boot_uefi.partition(
            tmp_path / "files",
            kernel=large,
            compatible="hob-test",
            size=128 * MIB,
            architecture="amd64",
            epoch=EPOCH,
            toolbox=toolbox,
        )
    assert not (tmp_path / "files").exists()


def test_a_root_has_exactly_one_kernel(tmp_path: Path) -> None:
    """None starts nothing, and of two nobody could say which."""
    modules = tmp_path / "usr/lib/modules"
    (modules / "6.12.48+deb13-amd64").mkdir(parents=True)  # left by a kernel that was removed
    with pytest.raises(FormatError, match="has 0 kernels"):
        boot_uefi.kernel_release(tmp_path)
    (modules / "6.12.49+deb13-amd64/kernel").mkdir(parents=True)
    assert boot_uefi.kernel_release(tmp_path) == "6.12.49+deb13-amd64"
    (modules / "6.13.1-amd64/kernel").mkdir(parents=True)
    with pytest.raises(FormatError, match="has 2 kernels"):
        boot_uefi.kernel_release(tmp_path)
