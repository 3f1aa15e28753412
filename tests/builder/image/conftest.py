"""Disks to write to, and the tools for file systems."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.image.cache import Cache, default_root
from builder.image.toolbox import Toolbox, kept_toolbox
from tests.builder.image.disks import MIB


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file of 12 MiB full of old noise, as a disk that was used before."""
    path = tmp_path / "disk"
    path.write_bytes(random.Random(1).randbytes(12 * MIB))
    return path


@pytest.fixture
def loop(target: Path) -> Iterator[Path]:
    """The same as a real block device."""
    losetup = shutil.which("losetup")
    if os.geteuid() != 0 or losetup is None or not Path("/dev/loop-control").exists():
        pytest.skip("loop devices take root, losetup and /dev/loop-control")
    done = subprocess.run([losetup, "--find", "--show", target], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device to be had: {done.stderr.strip()}")
    device = done.stdout.strip()
    yield Path(device)
    subprocess.run([losetup, "--detach", device], check=True)


@pytest.fixture(scope="session")
def tools() -> Toolbox | None:
    """Programs for FAT file systems: this machine's, or those of the image builder."""
    if shutil.which("mcopy") and shutil.which("mkfs.fat"):
        return None
    toolbox = kept_toolbox(Cache(default_root()))
    if toolbox is None:
        pytest.skip("neither mtools and dosfstools nor the image builder's tools are installed")
    return toolbox
