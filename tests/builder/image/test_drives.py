"""Which disks may be overwritten, on composed machines in the form of lsblk 2.38."""

import json
from pathlib import Path
from typing import Any

import pytest

from builder.errors import FormatError
from builder.image import drives

GB = 10**9


def machine(*devices: dict[str, Any]) -> tuple[drives.Drive, ...]:
    """Drives as lsblk would tell them."""
    return drives.read(json.dumps({"blockdevices": devices}).encode())


def device(path: str, kind: str = "disk", size: int = 32 * GB, **more: Any) -> dict[str, Any]:
    """One device with everything lsblk says of it."""
    plain = {
        "name": path.removeprefix("/dev/"),
        "path": path,
        "type": kind,
        "size": size,
        "ro": False,
        "rm": False,
        "hotplug": False,
        "tran": None,
        "model": None,
        "mountpoints": [None],
        "fstype": None,
        "pkname": None,
        "log-sec": 512,
    }
    return plain | {name.replace("_", "-"): value for name, value in more.items()}


def part(path: str, *mountpoints: str, kind: str = "part", **more: Any) -> dict[str, Any]:
    """A partition, mounted or not."""
    return device(
        path, kind, mountpoints=list(mountpoints) or [None], pkname=path[:-1].removeprefix("/dev/"), **more
    )


STICK: dict[str, Any] = {"tran": "usb", "rm": True, "hotplug": True, "model": "Ultra Fit       "}


def test_a_stick_is_written_without_further_ado() -> None:
    """Removable, of an expected size, nothing mounted: old partitions on it do not matter."""
    (stick,) = machine(device("/dev/sdb", **STICK, children=[part("/dev/sdb1", fstype="vfat")]))
    assert drives.objection(stick, 8 * GB) is None
    assert stick.describe() == "/dev/sdb  32 GB  usb  Ultra Fit"


def test_a_card_in_a_built_in_reader_is_one_too() -> None:
    """The kernel calls MMC cards neither removable nor hot-plugged."""
    (card,) = machine(device("/dev/mmcblk0", size=64 * GB))
    assert drives.objection(card) is None
    assert card.describe() == "/dev/mmcblk0  64 GB  card"


SYSTEM_DISKS = {
    "root on a partition": device(
        "/dev/sda", children=[part("/dev/sda1", "/boot/efi"), part("/dev/sda2", "/")]
    ),
    "root on LVM on LUKS": device(
        "/dev/nvme0n1",
        children=[
            part(
                "/dev/nvme0n1p3",
                fstype="crypto_LUKS",
                children=[
                    device(
                        "/dev/mapper/crypt",
                        "crypt",
                        fstype="LVM2_member",
                        children=[device("/dev/mapper/vg-root", "lvm", mountpoints=["/"])],
                    )
                ],
            )
        ],
    ),
    "root on a RAID": device(
        "/dev/sda", children=[part("/dev/sda1", children=[device("/dev/md0", "raid1", mountpoints=["/"])])]
    ),
    "root on a btrfs subvolume": device("/dev/sda", children=[part("/dev/sda1", "/home", "/")]),
    "swap only": device("/dev/sda", children=[part("/dev/sda1", "[SWAP]")]),
    "boot on a stick": device("/dev/sda", **STICK, children=[part("/dev/sda1", "/boot")]),
    "root on the whole disk": device("/dev/vda", mountpoints=["/"]),
    "the card a Pi runs from": device("/dev/mmcblk0", children=[part("/dev/mmcblk0p1", "/boot/firmware")]),
}


@pytest.mark.parametrize("disk", SYSTEM_DISKS.values(), ids=SYSTEM_DISKS.keys())
def test_a_disk_of_the_running_system_is_never_written(disk: dict[str, Any]) -> None:
    """Whatever lies between the disk and the mount."""
    against = drives.objection(machine(disk)[0])
    assert against
    assert against.final
    assert against.text.startswith("this system ")


FINAL = {
    "mounted": (
        device("/dev/sdb", **STICK, children=[part("/dev/sdb1", "/media/ann/X")]),
        "mounted at /media/ann/X",
    ),
    "a partition": (part("/dev/sdb1", fstype="vfat"), "is a partition"),
    "a logical volume": (device("/dev/mapper/vg-x", "lvm"), "of type lvm"),
    "a DVD": (device("/dev/sr0", "rom"), "of type rom"),
    "read-only": (device("/dev/mmcblk0", ro=True), "read-only"),
    "in a running RAID": (
        device("/dev/sdb", children=[part("/dev/sdb1", children=[device("/dev/md5", "raid5")])]),
        "/dev/md5 (raid5) lies on it",
    ),
    "an opened LUKS volume": (
        device("/dev/sdb", **STICK, children=[device("/dev/mapper/x", "crypt")]),
        "/dev/mapper/x (crypt)",
    ),
    "too small": (device("/dev/sdb", size=4 * GB, **STICK), "has 4 GB, the image needs 8 GB"),
    "an empty reader": (device("/dev/sdb", size=0, **STICK), "has 0 B"),
    "sectors of 4096 bytes": (device("/dev/nvme1n1", log_sec=4096), "sectors of 4096"),
}


@pytest.mark.parametrize(("disk", "told"), FINAL.values(), ids=FINAL.keys())
def test_what_no_flag_overrides(disk: dict[str, Any], told: str) -> None:
    """Disks in use, and disks that the image could not be used from."""
    against = drives.objection(machine(disk)[0], 8 * GB)
    assert against
    assert against.final
    assert told in against.text
    assert against.hint


UNEXPECTED = {
    "large": (device("/dev/sdb", size=2000 * GB, **STICK), "larger than expected: 2 TB"),
    "built in": (device("/dev/nvme1n1", size=250 * GB, tran="nvme", model="X"), "built into this machine"),
    "a sleeping RAID": (device("/dev/sdb", **STICK, fstype="linux_raid_member"), "a linux_raid_member"),
    "a sleeping LVM": (
        device("/dev/sdb", **STICK, children=[part("/dev/sdb2", fstype="LVM2_member")]),
        "/dev/sdb2 is a LVM2_member",
    ),
}


@pytest.mark.parametrize(("disk", "told"), UNEXPECTED.values(), ids=UNEXPECTED.keys())
def test_what_has_to_be_confirmed(disk: dict[str, Any], told: str) -> None:
    """Disks that may be meant, and that would be a pity."""
    against = drives.objection(machine(disk)[0], 8 * GB)
    assert against
    assert not against.final
    assert told in against.text
    assert "--yes" in against.hint


def test_256_gb_is_an_expected_size() -> None:
    """Makers round: a card of 256 GB has a little more or less."""
    assert drives.objection(machine(device("/dev/sdb", size=256_060_514_304, **STICK))[0]) is None
    assert drives.objection(machine(device("/dev/sdb", size=500 * GB, **STICK))[0]) is not None


def test_candidates_are_what_could_be_meant() -> None:
    """System disks, optical drives, memory and empty readers are not offered; doubtful disks come last."""
    found = drives.candidates(
        machine(
            device("/dev/nvme0n1", children=[part("/dev/nvme0n1p2", "/")]),
            device("/dev/nvme1n1", size=250 * GB, tran="nvme"),
            device("/dev/sdb", **STICK),
            device("/dev/sdc", size=0, **STICK),
            device("/dev/sr0", "rom"),
            device("/dev/zram0", size=4 * GB),
            device("/dev/loop3", "loop"),
            device("/dev/mmcblk0", size=64 * GB),
        )
    )
    assert [drive.path for drive, _ in found] == ["/dev/mmcblk0", "/dev/sdb", "/dev/nvme1n1"]
    assert [bool(against) for _, against in found] == [False, False, True]


def test_the_disk_of_this_machine_is_not_offered() -> None:
    """On the machine that runs the tests: whatever carries / is refused, if lsblk sees it."""
    carriers = [drive for drive in drives.present() if any("/" in part.mountpoints for part in drive.tree())]
    if not carriers:
        pytest.skip("lsblk does not see where / lies")
    for drive in carriers:
        against = drives.objection(drive)
        assert against
        assert against.final


def test_something_else_is_refused(tmp_path: Path) -> None:
    """A file is no block device; garbage is no listing."""
    with pytest.raises(FormatError, match="not a block device"):
        drives.present(tmp_path)
    with pytest.raises(FormatError, match="did not say what was expected"):
        drives.read(b'{"blockdevices": [{"name": "sda"}]}')


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (31_914_983_424, "31.9 GB"), (2 * 10**12, "2 TB"), (10**15, "1000 TB")],
)
def test_sizes_read_as_on_the_packaging(size: int, text: str) -> None:
    """Powers of ten, three digits."""
    assert drives.human(size) == text
