"""Flashing images to files and to loop devices."""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.errors import DriveError, FormatError, UnsupportedError
from builder.image import flash, keys, medium
from builder.image.flash import HEAD
from tests.builder.image import disks
from tests.builder.image.disks import MIB

Told = list[tuple[str, str, float | None]]


def silent(stage: str, text: str, fraction: float | None) -> None:
    """Progress that nobody looks at."""


def at(stage: str, act: Callable[[], None]) -> flash.Tell:
    """Progress that does something the first time a stage is told."""
    waiting = [act]

    def tell(told: str, text: str, fraction: float | None) -> None:
        if told == stage and waiting:
            waiting.pop()()

    return tell


@pytest.mark.parametrize("mapped", [True, False], ids=["with a map", "without"])
@pytest.mark.parametrize("packed", [True, False], ids=["xz", "raw"])
@pytest.mark.parametrize("vouched", [True, False], ids=["vouched", "unknown"])
def test_every_byte_that_matters_arrives(
    tmp_path: Path, target: Path, packed: bool, mapped: bool, vouched: bool
) -> None:
    """With a map holes keep what was there; without one all of the image is written. The rest stays."""
    image = disks.image(tmp_path)
    data, old = image.read_bytes(), target.read_bytes()
    if mapped:
        disks.block_map(image)
    if packed:
        image = disks.pack(image)
    if vouched:
        disks.vouch(image, data)
    told: Told = []
    opened = flash.inspect(image, lambda *step: told.append(step))
    assert opened.size == len(data)
    assert opened.named == vouched
    flash.write(opened, target, None, lambda *step: told.append(step))
    new = target.read_bytes()
    assert new[:HEAD] == data[:HEAD]
    if mapped:
        assert new[3 * MIB : 4 * MIB] == old[3 * MIB : 4 * MIB]
        assert new[MIB : 3 * MIB] == data[MIB : 3 * MIB]
        assert new[4 * MIB : 5 * MIB + 100] == data[4 * MIB : 5 * MIB + 100]
    else:
        assert new[: len(data)] == data
    assert new[len(data) : -MIB] == old[len(data) : -MIB]
    assert new[-MIB:] == bytes(MIB)  # where the copy of an old partition table may have been
    stages = [stage for stage, _, _ in told]
    assert stages == sorted(stages, key=["check", "write", "verify"].index)
    for stage in ("write", "verify"):
        shares = [share for each, _, share in told if each == stage and share is not None]
        assert shares == sorted(shares)
        assert shares[-1] == 1


def test_a_loop_device_is_flashed_and_read_back(tmp_path: Path, target: Path, loop: Path) -> None:
    """The same on a block device, and the kernel finds the image's partition there."""
    image = disks.image(tmp_path)
    data = image.read_bytes()
    disks.block_map(image)
    opened = flash.inspect(disks.pack(image), silent)
    assert flash.admit(loop, opened, confirmed=False).startswith(f"{loop}  12.6 MB  loop")
    flash.write(opened, loop, None, silent)
    new = target.read_bytes()
    assert new[: 3 * MIB] == data[: 3 * MIB]
    assert new[4 * MIB : 5 * MIB + 100] == data[4 * MIB : 5 * MIB + 100]


def test_a_device_in_use_is_not_opened(target: Path, loop: Path, tmp_path: Path) -> None:
    """The kernel refuses it, even if lsblk in this mount namespace knows nothing of the use."""
    opened = flash.inspect(disks.image(tmp_path), silent)
    before = target.read_bytes()
    with medium.Medium(loop), pytest.raises(DriveError, match="busy"):
        flash.write(opened, loop, None, silent)
    assert target.read_bytes() == before


def test_a_mounted_device_is_refused(target: Path, loop: Path, tmp_path: Path) -> None:
    """A real file system, really mounted."""
    for tool in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    opened = flash.inspect(disks.image(tmp_path), silent)
    subprocess.run(["mkfs.ext4", "-q", loop], check=True, capture_output=True)
    (tmp_path / "mnt").mkdir()
    if subprocess.run(["mount", loop, tmp_path / "mnt"], check=False, capture_output=True).returncode:
        pytest.skip("this machine may not mount")
    try:
        with pytest.raises(DriveError, match=f"{loop} is mounted at {tmp_path}/mnt"):
            flash.admit(loop, opened, confirmed=True)
        with pytest.raises(DriveError, match="busy"):
            flash.write(opened, loop, None, silent)
    finally:
        subprocess.run(["umount", tmp_path / "mnt"], check=True)


@pytest.mark.parametrize("where", [MIB, 2 * MIB + 5, 5 * MIB + 99])
def test_a_disk_that_gives_back_something_else_is_caught(tmp_path: Path, target: Path, where: int) -> None:
    """One flipped bit, after everything was written; the disk is left without a partition table."""

    def rot() -> None:
        with target.open("r+b") as file:
            file.seek(where)
            byte = file.read(1)
            file.seek(where)
            file.write(bytes([byte[0] ^ 1]))

    image = disks.image(tmp_path)
    disks.block_map(image)
    with pytest.raises(DriveError, match="does not give back"):
        flash.write(flash.inspect(image, silent), target, None, at("verify", rot))
    assert target.read_bytes()[:HEAD] == bytes(HEAD)


def test_a_loop_device_that_rots_is_caught(tmp_path: Path, target: Path, loop: Path) -> None:
    """The same through a block device, whose own cache still has what was written."""

    def rot() -> None:
        with target.open("r+b") as file:
            file.seek(2 * MIB)
            file.write(b"rot")

    with pytest.raises(DriveError, match=f"{loop} does not give back"):
        flash.write(flash.inspect(disks.image(tmp_path), silent), loop, None, at("verify", rot))
    assert target.read_bytes()[:HEAD] == bytes(HEAD)


@pytest.mark.parametrize("device", ["file", "loop"])
def test_a_disk_smaller_than_it_claims_is_caught(
    request: pytest.FixtureRequest, tmp_path: Path, target: Path, device: str
) -> None:
    """As counterfeit cards are: it takes everything, and has only the first 4 MiB."""
    disk: Path = request.getfixturevalue("loop") if device == "loop" else target
    opened = flash.inspect(disks.image(tmp_path), silent)
    with pytest.raises(DriveError, match=r"does not give back|reading at \d MiB failed"):
        flash.write(opened, disk, None, at("verify", lambda: os.truncate(target, 4 * MIB)))
    assert target.read_bytes()[:HEAD] == bytes(HEAD)


@pytest.mark.parametrize("stage", ["write", "verify"])
def test_an_interrupted_flash_starts_nothing(tmp_path: Path, target: Path, stage: str) -> None:
    """Ctrl-C, or a pulled plug: neither the old table nor the new one is there."""

    def stop() -> None:
        raise KeyboardInterrupt

    opened = flash.inspect(disks.image(tmp_path), silent)
    with pytest.raises(KeyboardInterrupt):
        flash.write(opened, target, None, at(stage, stop))
    after = target.read_bytes()
    assert after[:HEAD] == bytes(HEAD)
    assert after[-MIB:] == bytes(MIB)
    flash.write(opened, target, None, silent)
    assert target.read_bytes()[:HEAD] == opened.head


def test_an_image_other_than_its_map_is_caught(tmp_path: Path, target: Path) -> None:
    """Before the disk would start; the message says where."""
    image = disks.image(tmp_path)
    disks.block_map(image)
    opened = flash.inspect(image, silent)
    with image.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"x" * 10)
    with pytest.raises(FormatError, match="not what its block map says, from byte 1048576 to 3145728"):
        flash.write(opened, target, None, silent)
    assert target.read_bytes()[:HEAD] == bytes(HEAD)


@pytest.mark.parametrize("mapped", [True, False], ids=["with a map", "without"])
def test_an_archive_that_is_cut_off_is_caught(tmp_path: Path, target: Path, mapped: bool) -> None:
    """A download that broke off, of an image without a manifest."""
    image = disks.image(tmp_path)
    if mapped:
        disks.block_map(image)
    packed = disks.pack(image)
    os.truncate(packed, packed.stat().st_size // 2)
    opened = flash.inspect(packed, silent)
    with pytest.raises(FormatError, match="cut off"):
        flash.write(opened, target, None, silent)
    assert target.read_bytes()[:HEAD] == bytes(HEAD)


@pytest.mark.parametrize("which", ["hob-test-1.0.img.xz", "hob-test-1.0.img.bmap"])
def test_files_other_than_the_manifest_says_are_refused(tmp_path: Path, which: str) -> None:
    """Before any disk is touched."""
    image = disks.image(tmp_path)
    data = image.read_bytes()
    disks.block_map(image)
    packed = disks.pack(image)
    disks.vouch(packed, data)
    assert flash.inspect(packed, silent).named
    with (tmp_path / which).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(FormatError, match=f"{which} is not the file its manifest describes"):
        flash.inspect(packed, silent)


def test_an_unpacked_image_is_compared_with_the_manifest_too(tmp_path: Path) -> None:
    """Whoever unpacked it first is not worse off."""
    image = disks.image(tmp_path)
    data = image.read_bytes()
    packed = disks.pack(image)
    disks.vouch(packed, data)
    image.write_bytes(data)
    assert flash.inspect(image, silent).named
    image.write_bytes(data[:-1] + b"x")
    with pytest.raises(FormatError, match="not the file its manifest describes"):
        flash.inspect(image, silent)


def test_sizes_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    """A map of another image, renamed."""
    image = disks.image(tmp_path)
    other = disks.block_map(disks.image(tmp_path, "other", 16 * MIB))
    other.rename(tmp_path / "hob-test-1.0.img.bmap")
    with pytest.raises(FormatError, match="the file 8388608, the block map 16777216"):
        flash.inspect(image, silent)


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        (b"PK\x03\x04" + bytes(600), UnsupportedError, "packed by zip"),
        (b"\x1f\x8b" + bytes(600), UnsupportedError, "packed by gzip"),
        (bytes(4096), FormatError, "no boot signature"),
        (b"", FormatError, "no boot signature"),
        (b"\xfd7zXZ\0" + bytes(600), FormatError, "damaged or cut off"),
    ],
)
def test_what_is_no_image_is_refused(
    tmp_path: Path, content: bytes, error: type[Exception], told: str
) -> None:
    """By content, not by name."""
    path = tmp_path / "x.img.xz"
    path.write_bytes(content)
    with pytest.raises(error, match=told):
        flash.inspect(path, silent)


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    """Before it is touched, where the image tells its size; else when it ends."""
    small = tmp_path / "small"
    small.write_bytes(bytes(4 * MIB))
    opened = flash.inspect(disks.image(tmp_path), silent)
    with pytest.raises(DriveError, match="has 4194304 bytes, the image 8388608"):
        flash.admit(small, opened, confirmed=True)
    with pytest.raises(DriveError, match="ends at 4194304 bytes, the image goes on"):
        flash.write(opened, small, None, silent)


@pytest.mark.parametrize("name", ["nothing", "folder", "/dev/null"])
def test_what_is_no_disk_is_refused(tmp_path: Path, name: str) -> None:
    """A name that leads nowhere never becomes a file of many gigabytes."""
    (tmp_path / "folder").mkdir()
    opened = flash.inspect(disks.image(tmp_path), silent)
    with pytest.raises(DriveError):
        flash.admit(tmp_path / name, opened, confirmed=True)
    assert not (tmp_path / "nothing").exists()


def test_an_mbr_image_is_written_too(tmp_path: Path, target: Path) -> None:
    """Images of others have no GPT, and nothing tells how large they are packed; they get no settings."""
    image = tmp_path / "other.img"
    image.write_bytes(bytes(510) + b"\x55\xaa" + random.Random(3).randbytes(5 * MIB + 77))
    data = image.read_bytes()
    opened = flash.inspect(disks.pack(image), silent)
    assert opened.size is None
    assert opened.settings_partition is None
    flash.write(opened, target, None, silent)
    assert target.read_bytes()[: len(data)] == data


def test_an_image_smaller_than_the_head_is_written_too(tmp_path: Path, target: Path) -> None:
    """Nothing but the head is there to write."""
    image = tmp_path / "tiny.img"
    image.write_bytes(bytes(510) + b"\x55\xaa" + b"x" * 1000)
    flash.write(flash.inspect(image, silent), target, None, silent)
    after = target.read_bytes()
    assert after[:1512] == image.read_bytes()
    assert after[1512:HEAD] == bytes(HEAD - 1512)


def test_reading_back_needs_no_page_cache(tmp_path: Path) -> None:
    """On a file system with O_DIRECT, and at odd places: pieces are exactly what was asked for."""
    path = tmp_path / "file"
    data = random.Random(2).randbytes(9 * MIB + 123)
    path.write_bytes(data)
    with medium.Medium(path) as opened:
        for start, end in (
            (0, 10),
            (1, 4097),
            (4096, 8192),
            (4 * MIB - 1, 8 * MIB + 1),
            (0, len(data)),
            (5, 5),
        ):
            assert b"".join(map(bytes, opened.read_back(start, end))) == data[start:end]
        assert b"".join(map(bytes, opened.read_back(9 * MIB, 10 * MIB))) == data[9 * MIB :]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """An error of the system becomes one line with the disk's name and the place."""
    mount = shutil.which("mount")
    with contextlib.ExitStack() as stack:
        if os.geteuid() != 0 or mount is None:
            pytest.skip("a small file system takes root")
        folder = tmp_path / "small"
        folder.mkdir()
        if subprocess.run([mount, "-t", "tmpfs", "-o", "size=3m", "none", folder], check=False).returncode:
            pytest.skip("this machine may not mount")
        stack.callback(lambda: subprocess.run(["umount", folder], check=True))
        (folder / "disk").touch()
        os.truncate(folder / "disk", 12 * MIB)  # sparse, as counterfeit as a card can be
        opened = flash.inspect(disks.image(tmp_path), silent)
        with pytest.raises(DriveError, match=r"small/disk: writing at \d+ MiB failed: No space left"):
            flash.write(opened, folder / "disk", None, silent)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="signing takes openssl")
def test_with_a_keyring_only_what_is_signed(tmp_path: Path) -> None:
    """Without a manifest, without a signature and signed by others it is refused; signed it is taken."""
    own, others = keys.make(tmp_path / "own"), keys.make(tmp_path / "others")
    image = disks.image(tmp_path)
    with pytest.raises(FormatError, match="has no signed manifest beside it"):
        flash.inspect(image, silent, own.keyring)
    path = disks.vouch(image, image.read_bytes())
    with pytest.raises(FormatError, match="is not signed"):
        flash.inspect(image, silent, own.keyring)
    keys.sign(own, path, path.with_name(f"{path.name}.p7s"))
    with pytest.raises(FormatError, match="is not what was signed, or not signed by"):
        flash.inspect(image, silent, others.keyring)
    assert flash.inspect(image, silent, own.keyring).named
