"""Disks of machines that are off: copies of an image, their partitions and files, and USB sticks."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO

from builder.image import gpt
from tests.image.emulator import Emulator

MEBIBYTE = 2**20

_HEAD = 34 * 512
"""Where a partition table lies at most."""

INCOMPATIBLE, JOURNAL_TO_REPLAY = 1024 + 0x60, 0x4
"""Of ext4: where its superblock tells what must be understood, and the bit that a plug was pulled."""


class Disk:
    """A raw disk image that machines write to. Only while no machine runs on it may it be looked into."""

    def __init__(self, emulator: Emulator, path: Path) -> None:
        self._emulator = emulator
        self.path = path

    @classmethod
    def copy(cls, emulator: Emulator, image: Path, path: Path, size: int = 8 * 2**30) -> "Disk":
        """A disk of `size` bytes that an image was written to. It takes no more space than the content."""
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", image, path], check=True)
        assert path.stat().st_size <= size, f"{image} is larger than the disk"
        with path.open("r+b") as file:
            file.truncate(size)
        return cls(emulator, path)

    def clone(self, path: Path) -> "Disk":
        """Another disk with the same content."""
        return Disk.copy(self._emulator, self.path, path, self.path.stat().st_size)

    def start(self, label: str) -> int:
        """First byte of the partition with this label."""
        return self._part(label).start

    def _part(self, label: str) -> gpt.Partition:
        with self.path.open("rb") as file:
            table = gpt.read(file.read(_HEAD))
        assert table, f"no partition table on {self.path}"
        found = table.find(label)
        assert found, f"no partition {label} among {[part.label for part in table.partitions]}"
        return found

    # FAT: the partition that people write to from their own computers.

    def put(self, name: str, content: str | bytes, label: str = "HOB") -> None:
        """Write a file into a FAT partition, over one of that name; `name` is a path without a leading /."""
        data = content.encode() if isinstance(content, str) else content
        self._emulator.run("mcopy", "-o", "-i", self._fat(label), "-", f"::{name}", stdin=data)

    def get(self, name: str, label: str = "HOB") -> bytes:
        """Read a file of a FAT partition."""
        return self._emulator.run("mcopy", "-n", "-i", self._fat(label), f"::{name}", "-")

    def names(self, folder: str = "", label: str = "HOB") -> list[str]:
        """Names of all files at and below a folder of a FAT partition."""
        listed = self._emulator.run("mdir", "-/", "-b", "-a", "-i", self._fat(label), f"::{folder}").decode()
        return sorted(line.removeprefix("::/") for line in listed.splitlines() if not line.endswith("/"))

    def erase(self, name: str, label: str = "HOB") -> None:
        """Delete a file of a FAT partition."""
        self._emulator.run("mdel", "-i", self._fat(label), f"::{name}")

    def folder(self, name: str, label: str = "HOB") -> None:
        """Make a folder in a FAT partition."""
        self._emulator.run("mmd", "-i", self._fat(label), f"::{name}")

    # ext4: what is below /var on the running machine.

    def recover(self) -> None:
        """Replay the journal of the data partition, as mounting it would; it must be sound then."""
        with self.path.open("r+b") as disk:
            part = self._part("data")
            disk.seek(part.start + INCOMPATIBLE)
            if disk.read(1)[0] & JOURNAL_TO_REPLAY:
                self._replay(disk, part)
        self._emulator.run("e2fsck", "-f", "-n", self._data())

    def _replay(self, disk: BinaryIO, part: gpt.Partition) -> None:
        """Alone: e2fsck opens a partition again after the replay, and has forgotten its offset by then."""
        with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            alone = Path(folder, "data")
            with alone.open("w+b") as data:
                _copy(disk, part.start, data, 0, part.size)
                self._emulator.run("e2fsck", "-E", "journal_only", "-y", alone, accept=(0, 1))
                _copy(data, 0, disk, part.start, part.size)

    def dump(self, name: str, target: Path) -> Path:
        """Copy a file of the data partition out; `name` is its path below /var, such as `lib/hob/hob.db`."""
        self._debugfs(f"dump /{name} {target}")
        assert target.exists(), f"no file {name} on the data partition"
        return target

    def listing(self, folder: str) -> list[str]:
        """Names in a folder of the data partition."""
        said = self._debugfs(f"ls -p /{folder}")
        return sorted(line.split("/")[5] for line in said.splitlines() if line.count("/") >= 7)

    def write(self, name: str, source: Path) -> None:
        """Copy a file into the data partition. It belongs to root."""
        self._debugfs(f"write {source} {name}")

    def remove(self, name: str) -> None:
        """Delete a file of the data partition."""
        self._debugfs(f"rm /{name}")

    def fill(self, name: str, left: int) -> None:
        """Take up the data partition with an unwritten file, so that about `left` bytes stay free."""
        said = dict(
            line.split(":", 1) for line in self._debugfs("show_super_stats -h").splitlines() if ":" in line
        )
        free, size = int(said["Free blocks"]), int(said["Block size"])
        blocks = free - left // size
        self.write(name, Path("/dev/null"))
        self._debugfs(f"fallocate /{name} 0 {blocks - 1}")
        self._debugfs(f"set_inode_field /{name} size {blocks * size}")

    def _debugfs(self, request: str) -> str:
        said = self._emulator.run("debugfs", "-w", "-R", request, self._data())
        return said.decode(errors="replace")

    def _fat(self, label: str) -> str:
        return f"{self.path}@@{self.start(label)}"

    def _data(self) -> str:
        return f"{self.path}?offset={self.start('data')}"


def _copy(source: BinaryIO, at: int, target: BinaryIO, to: int, size: int) -> None:
    """Make `size` bytes of one file those of another, and write only what differs: holes stay holes."""
    target.truncate(max(to + size, target.seek(0, os.SEEK_END)))
    source.seek(at)
    for done in range(0, size, MEBIBYTE):
        piece = source.read(min(MEBIBYTE, size - done))
        target.seek(to + done)
        if target.read(len(piece)) != piece:
            target.seek(to + done)
            target.write(piece)
    target.flush()


def make_stick(emulator: Emulator, path: Path, files: dict[str, Path], size: int = 64 * MEBIBYTE) -> Path:
    """A USB stick as shops sell it: an MBR with one FAT32 partition, which holds the files by these names.

    Raises:
        AssertionError: the files do not fit into `size` bytes.
    """
    with path.open("wb") as file:
        file.truncate(size)
    emulator.run("sfdisk", "--quiet", path, stdin=b"label: dos\nstart=1MiB, type=c\n")
    fat = f"{path}@@{MEBIBYTE}"
    emulator.run("mformat", "-F", "-T", str((size - MEBIBYTE) // 512), "-v", "STICK", "-i", fat, "::")
    for name, source in files.items():
        emulator.run("mcopy", "-i", fat, source, f"::{name}")
    return path


def read_stick(emulator: Emulator, path: Path, folder: Path) -> list[Path]:
    """Copy all files of a stick into a new folder; their paths."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    emulator.run("mcopy", "-s", "-n", "-m", "-i", f"{path}@@{MEBIBYTE}", "::*", folder)
    return sorted(found for found in folder.rglob("*") if found.is_file())
