"""The disk image: a squashfs for the root, partitions and what is in them, the packed file, its block map.

Everything is made without mounting anything, and the same input gives the same bytes again: identities are
derived from what the image is for, times are the package lock's, and work that is split among processors is
split in the same pieces on any number of them.

The partition table is a GPT with sectors of 512 bytes, on which firmware insists.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import NAMESPACE_DNS, UUID, uuid5

from builder.errors import BuildError, SpaceError
from builder.image.cache import require_space
from builder.image.toolbox import Toolbox

MIB = 2**20

LEVEL = 9
"""Of zstd in the root: 15 takes seven times as long (51 seconds of a processor) for 3.5 percent."""

BLOCK = 128 * 1024
"""Bytes that squashfs packs at once; larger ones save little and cost time where one page is read."""

PACKED_BLOCK = 16 * MIB
"""Bytes that xz packs at once. With a size of its own the result does not depend on the number of threads."""

DATA_GROWS_TO = 4 * 2**40
"""Bytes up to which the data's file system can grow while it is mounted."""

TIMEOUT = 1800.0


@dataclass(frozen=True)
class Part:
    """A partition to be made.

    Attributes:
        label: its name in the partition table.
        type: what systemd-repart calls its kind ("esp", "linux-generic", "var"), or a UUID.
        size: bytes, a multiple of 1 MiB.
        filesystem: "vfat" or "ext4" to make one, with the files of `tree`; "" for none.
        name: of the file system; at most 11 characters for vfat.
        tree: what the file system holds; None: nothing.
        blocks: a file that is copied to its beginning instead; None: it stays empty.
    """

    label: str
    type: str
    size: int
    filesystem: str = ""
    name: str = ""
    tree: Path | None = None
    blocks: Path | None = None


def identity(compatible: str, label: str) -> UUID:
    """What identifies a partition: the same in every version for one kind of device.

    So what is written once on the disk, such as which root a slot has, holds for versions to come.
    """
    return uuid5(uuid5(NAMESPACE_DNS, "hob.local"), f"{compatible}/{label}")


def squash(tree: Path, out: Path, *, epoch: int, toolbox: Toolbox, level: int = LEVEL) -> Path:
    """Pack a root file system, with owners, modes, capabilities, and times no later than `epoch`."""
    out.unlink(missing_ok=True)
    toolbox.run(
        [
            *("mksquashfs", tree, out, "-noappend", "-quiet", "-no-progress"),
            *("-comp", "zstd", "-Xcompression-level", str(level), "-b", str(BLOCK)),
            # ACLs cannot be stored; capabilities of programs can.
            *("-xattrs-exclude", "^system\\."),
        ],
        read=[tree],
        write=[out.parent],
        env={"SOURCE_DATE_EPOCH": str(epoch)},
        timeout=TIMEOUT,
    )
    return out


def build(out: Path, parts: Sequence[Part], *, compatible: str, epoch: int, toolbox: Toolbox) -> Path:
    """Make the raw image, a sparse file, with these partitions in this order.

    Raises:
        SpaceError: what a partition is to hold is larger than the partition, or the disk is full.
        CommandError: a tool failed.
    """
    for part in parts:
        check_room(part)
    total = sum(part.size for part in parts)
    require_space(out.parent, total, "The disk image")
    with toolbox.scratch("disk") as work:
        definitions = work / "repart.d"
        definitions.mkdir()
        for number, part in enumerate(parts, start=1):
            if part.tree:
                part = replace(part, tree=settled(part.tree, work / f"tree-{number}", epoch))
            text = definition(part, identity(compatible, part.label))
            (definitions / f"{number:02}-{part.label.lower()}.conf").write_text(text)
        image = work / out.name
        toolbox.run(
            [
                *("systemd-repart", "--empty=create", "--size=auto", "--offline=yes", "--sector-size=512"),
                *("--discard=no", "--no-pager", "--json=off", f"--seed={identity(compatible, 'disk')}"),
                *(f"--definitions={definitions}", image),
            ],
            read=[part.blocks for part in parts if part.blocks],
            write=[work],
            env={
                "SOURCE_DATE_EPOCH": str(epoch),
                "TMPDIR": str(work),
                "SYSTEMD_REPART_MKFS_OPTIONS_EXT4": ext4_options(compatible),
            },
            timeout=TIMEOUT,
        )
        # Zeros become holes, which the block map leaves out. (fallocate --dig-holes passes over what
        # systemd-repart has set aside and never written, and bmaptool takes that for data.)
        out.unlink(missing_ok=True)
        toolbox.run(
            ["cp", "--sparse=always", "--reflink=never", image, out],
            read=[work],
            write=[out.parent],
            timeout=TIMEOUT,
        )
    return out


def definition(part: Part, uuid: UUID) -> str:
    """The partition as repart.d(5) describes it."""
    lines = [
        "[Partition]",
        f"Type={part.type}",
        f"Label={part.label}",
        f"UUID={uuid}",
        f"SizeMinBytes={part.size}",
        f"SizeMaxBytes={part.size}",
    ]
    if part.filesystem:
        lines.append(f"Format={part.filesystem}")
    if part.tree:
        lines.append(f"CopyFiles={part.tree}:/")
    if part.blocks:
        lines.append(f"CopyBlocks={part.blocks}")
    return "\n".join(lines) + "\n"


def settled(tree: Path, copy: Path, epoch: int) -> Path:
    """A copy of a tree whose every time is `epoch`; file systems made from it keep the times."""
    shutil.copytree(tree, copy)
    for path in (copy, *copy.rglob("*")):
        os.utime(path, (epoch, epoch))
    return copy


def ext4_options(compatible: str, name: str = "hob-data") -> str:
    """What mkfs.ext4 is told for the data partition, which is tiny in the image and then grows.

    Left alone, it would choose blocks of 1 KiB and a journal of 1 MiB on so small a disk, which stay that
    way, and leave no room in its tables to grow past 128 GB. The seed is what systemd-repart passes itself,
    repeated: of two options `-E` the last one counts.
    """
    extended = [
        f"hash_seed={identity(compatible, 'data/hash')}",
        f"resize={DATA_GROWS_TO // 4096}",
        "lazy_itable_init=1",
    ]
    return f"-L {name} -b 4096 -i 16384 -I 256 -J size=32 -E {','.join(extended)}"


def check_room(part: Part) -> None:
    """Raise `SpaceError` if a partition cannot hold what it is meant to."""
    needed = part.blocks.stat().st_size if part.blocks else content_size(part.tree) if part.tree else 0
    if needed > part.size:
        raise SpaceError(
            f"partition {part.label} has {part.size // MIB} MiB and needs {-(-needed // MIB)} MiB",
            hint="Make it larger in the recipe, or leave a model out. Devices in use keep their size.",
        )


def content_size(tree: Path) -> int:
    """Bytes that a FAT file system needs for a tree: clusters of 4 KiB at most, two tables, and a little."""
    files = sum(-(-max(path.stat().st_size, 1) // 4096) * 4096 for path in tree.rglob("*"))
    return files + files // 256 + MIB


def compress(image: Path, out: Path, toolbox: Toolbox) -> Path:
    """Pack the raw image as `.img.xz`.

    Nearly all of it is packed already, so little is worth trying. This takes 39 seconds of a processor for
    the image of a PC; level 0 with its own dictionary takes 68 for half a percent less, level 1 twice that.
    """
    # A leading + makes xz split the work even on one processor, which keeps the result the same everywhere.
    threads = f"--threads=+{os.cpu_count() or 1}"
    argv: list[str | Path] = [
        *("xz", "--lzma2=preset=0,dict=64KiB", threads, f"--block-size={PACKED_BLOCK}"),
        *("--check=sha256", "--stdout", image),
    ]
    with out.open("wb") as file:
        running = toolbox.start(argv, read=[image], stdout=file.fileno(), stderr=subprocess.PIPE)
        _, told = running.communicate()
    if running.returncode != 0:
        out.unlink()
        raise BuildError(f"{image.name} cannot be packed: {told.strip()[-300:]}", hint="Is the disk full?")
    return out


def block_map(image: Path, out: Path, toolbox: Toolbox) -> Path:
    """Write which blocks of a sparse image hold data, with checksums, as bmap-tools does."""
    toolbox.run(
        ["bmaptool", "--quiet", "create", image, "-o", out], read=[image], write=[out.parent], timeout=TIMEOUT
    )
    return out
