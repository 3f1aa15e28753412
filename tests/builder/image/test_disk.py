"""Disk images from partitions, by the builder's own tools, in a few megabytes."""

import lzma
import os
from pathlib import Path

import pytest

from builder.errors import SpaceError
from builder.image import bmap, disk, gpt
from builder.image.cache import Cache, default_root, file_digest
from builder.image.disk import MIB, Part
from builder.image.toolbox import Toolbox, kept_toolbox

EPOCH = 1_700_000_000
COMPATIBLE = "hob-test"


@pytest.fixture(scope="module")
def toolbox() -> Toolbox:
    """The builder's tools."""
    found = kept_toolbox(Cache(default_root()))
    if found is None:
        pytest.skip("the image builder's tools are not made yet: hob image build makes them")
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files that a system could consist of."""
    tree = tmp_path / "tree"
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/hob").write_bytes(os.urandom(50_000))
    (tree / "usr/bin/hob").chmod(0o755)
    (tree / "bin").symlink_to("usr/bin")
    (tree / "etc").mkdir()
    (tree / "etc/hostname").write_text("hob\n")
    return tree


def parts(tree: Path, root: Path) -> list[Part]:
    """A disk as devices have it, only smaller."""
    return [
        Part("HOB", "esp", 40 * MIB, "vfat", "HOB", tree=tree / "etc"),
        Part("root-a", "linux-generic", 4 * MIB, blocks=root),
        Part("root-b", "linux-generic", 4 * MIB),
        Part("data", "var", 96 * MIB, "ext4", "hob-data"),
    ]


def test_the_same_input_gives_the_same_disk(toolbox: Toolbox, tree: Path, tmp_path: Path) -> None:
    """Squashfs, image, block map and packed image, whatever times the files have and where they lie."""
    sums: list[list[str]] = []
    for name in ("first", "second"):
        out = tmp_path / name
        out.mkdir()
        for path in tree.rglob("*"):
            later = EPOCH + 1000 * (1 + len(sums))
            os.utime(path, (later, later), follow_symlinks=False)
        root = disk.squash(tree, out / "root.squashfs", epoch=EPOCH, toolbox=toolbox)
        image = disk.build(
            out / "x.img", parts(tree, root), compatible=COMPATIBLE, epoch=EPOCH, toolbox=toolbox
        )
        map_ = disk.block_map(image, out / "x.img.bmap", toolbox)
        packed = disk.compress(image, out / "x.img.xz", toolbox)
        sums.append([file_digest(path) for path in (root, image, map_, packed)])
    assert sums[0] == sums[1]
    assert lzma.decompress(packed.read_bytes()) == image.read_bytes()
    assert packed.stat().st_size < MIB


def test_a_disk_has_its_partitions_and_holes(toolbox: Toolbox, tree: Path, tmp_path: Path) -> None:
    """In order, with derived identities; the root lies where it should; what is empty takes no room."""
    root = disk.squash(tree, tmp_path / "root.squashfs", epoch=EPOCH, toolbox=toolbox)
    image = disk.build(
        tmp_path / "x.img", parts(tree, root), compatible=COMPATIBLE, epoch=EPOCH, toolbox=toolbox
    )
    data = image.read_bytes()
    table = gpt.read(data[:MIB])
    assert table is not None
    assert [(part.label, part.uuid, part.size // MIB) for part in table.partitions] == [
        (label, str(disk.identity(COMPATIBLE, label)), size)
        for label, size in (("HOB", 40), ("root-a", 4), ("root-b", 4), ("data", 96))
    ]
    hob, slot_a, slot_b, var = table.partitions
    assert hob.type == "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
    assert var.type == "4d21b016-b534-45c2-a9fb-5c16e091fd2d"
    assert data[slot_a.start :].startswith(root.read_bytes())
    assert not any(data[slot_b.start : slot_b.start + slot_b.size])
    held = bmap.read(disk.block_map(image, tmp_path / "x.bmap", toolbox))
    assert not any(run.start < slot_b.start + slot_b.size and slot_b.start < run.end for run in held.runs)
    assert image.stat().st_blocks * 512 < held.mapped + MIB < 8 * MIB


def test_the_data_can_grow(toolbox: Toolbox, tree: Path, tmp_path: Path) -> None:
    """Large blocks and a journal of some size, although it is small here, and tables with room for 4 TiB."""
    image = disk.build(
        tmp_path / "x.img",
        [Part("data", "var", 96 * MIB, "ext4", "hob-data")],
        compatible=COMPATIBLE,
        epoch=EPOCH,
        toolbox=toolbox,
    )
    data = tmp_path / "data"
    data.write_bytes(image.read_bytes()[MIB : 97 * MIB])
    told = toolbox.run(["dumpe2fs", "-h", data], read=[data])
    for line in (
        "Filesystem volume name:   hob-data",
        "Block size:               4096",
        "Total journal size:       32M",
        f"Directory Hash Seed:      {disk.identity(COMPATIBLE, 'data/hash')}",
        "Filesystem state:         clean",
        "Reserved GDT blocks:      511",  # 512 blocks of 64 groups of 128 MiB
    ):
        assert line in told
    toolbox.run(["e2fsck", "-fn", data], read=[data])


def test_files_reach_the_fat_partition(toolbox: Toolbox, tree: Path, tmp_path: Path) -> None:
    """Under its label, with the time of the lock."""
    image = disk.build(
        tmp_path / "x.img",
        [Part("HOB", "esp", 40 * MIB, "vfat", "HOB", tree=tree / "etc")],
        compatible=COMPATIBLE,
        epoch=EPOCH,
        toolbox=toolbox,
    )
    listing = toolbox.run(["mdir", "-i", f"{image}@@{MIB}", "::"], read=[image])
    assert "Volume in drive : is HOB" in listing
    assert "hostname" in listing
    assert "2023-11-14" in listing
    assert toolbox.run(["mtype", "-i", f"{image}@@{MIB}", "::hostname"], read=[image]) == "hob\n"


def test_owners_modes_and_links_are_kept(toolbox: Toolbox, tree: Path, tmp_path: Path) -> None:
    """And no time is later than the lock's; an earlier one, of a package, stays."""
    os.utime(tree / "etc/hostname", (0, 0))
    root = disk.squash(tree, tmp_path / "root.squashfs", epoch=EPOCH, toolbox=toolbox)
    listing = toolbox.run(["unsquashfs", "-lln", root], read=[root])
    assert "lrwxrwxrwx 0/0" in listing
    assert "squashfs-root/bin -> usr/bin" in listing
    assert any("-rwxr-xr-x" in line and line.endswith("usr/bin/hob") for line in listing.splitlines())
    times = {line.split()[-1]: line.split()[3] for line in listing.splitlines() if "->" not in line}
    assert times.pop("squashfs-root/etc/hostname") == "1970-01-01"
    assert set(times.values()) == {"2023-11-14"}


def test_packing_does_not_depend_on_the_number_of_processors(
    toolbox: Toolbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread and five make the same blocks."""
    image = tmp_path / "x.img"
    image.write_bytes(os.urandom(MIB) + bytes(40 * MIB) + os.urandom(MIB))
    sums = set()
    for count in (1, 5):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        sums.add(file_digest(disk.compress(image, tmp_path / "x.img.xz", toolbox)))
    assert len(sums) == 1


def test_what_does_not_fit_is_refused_before_anything_is_made(tree: Path, tmp_path: Path) -> None:
    """By the name of the partition and both sizes, for blocks and for files."""
    large = tmp_path / "root.squashfs"
    with large.open("wb") as file:
        file.truncate(5 * MIB + 1)
    with pytest.raises(SpaceError, match="partition root-a has 4 MiB and needs 6 MiB"):
        disk.check_room(Part("root-a", "linux-generic", 4 * MIB, blocks=large))
    (tree / "large").write_bytes(bytes(4 * MIB))
    with pytest.raises(SpaceError, match="partition HOB has 4 MiB and needs 6 MiB"):
        disk.check_room(Part("HOB", "esp", 4 * MIB, "vfat", tree=tree))
    disk.check_room(Part("root-a", "linux-generic", 6 * MIB, blocks=large))
    disk.check_room(Part("root-b", "linux-generic", 4 * MIB))


def test_identities_are_of_the_device_and_not_of_the_version() -> None:
    """What an older version wrote on a disk holds for a newer one; these are in use, and stay."""
    assert str(disk.identity("hob-x86-64", "root-a")) == "e0fd94cb-433d-5edc-bbba-d5c7ca91941f"
    assert str(disk.identity("hob-x86-64", "root-b")) == "2a510d8b-ddbb-5fbb-9d03-6ebcfe6441f3"
    assert disk.identity("hob-rpi5", "root-a") != disk.identity("hob-x86-64", "root-a")
