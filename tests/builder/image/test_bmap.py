"""Reading block maps."""

import hashlib
from pathlib import Path

import pytest

from builder.errors import BuildError, FormatError, UnsupportedError
from builder.image import bmap
from tests.builder.image.disks import block_map, image, seal


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A block map of a small image."""
    return block_map(image(tmp_path))


def test_a_map_lists_the_runs_that_matter(made: Path) -> None:
    """Runs are in bytes, in order, each with the checksum of what is there; holes are left out."""
    data = made.with_suffix("").read_bytes()
    read = bmap.read(made)
    assert read.size == len(data)
    assert read.hash == "sha256"
    assert read.mapped < len(data) // 2
    covered = bytearray(len(data))
    for run in read.runs:
        assert hashlib.sha256(data[run.start : run.end]).hexdigest() == run.checksum
        covered[run.start : run.end] = data[run.start : run.end]
    assert covered == data


def test_a_real_map_is_read() -> None:
    """One that bmaptool 3.9 of Debian 13 wrote, of an image of 100,000 bytes that ends within a block."""
    read = bmap.read(Path(__file__).with_name("recorded") / "bmaptool.bmap")
    assert read.size == 100_000
    assert [(run.start, run.end) for run in read.runs] == [(0, 8192), (40960, 45056), (98304, 100_000)]


@pytest.mark.parametrize(
    ("old", "new", "error", "told"),
    [
        ('version="2.0"', 'version="3.0"', UnsupportedError, "version 3.0"),
        ("<ImageSize> 8388608", "<ImageSize> 9388608", FormatError, "damaged"),
        ("<BlockMap>", "<BlockMap", FormatError, "not a block map"),
        ("> sha256 <", "> md5 <", UnsupportedError, "md5"),
        ("<BlockSize> 4096 </BlockSize>", "", FormatError, "damaged"),
        ("bmap", "html", UnsupportedError, "<html>"),
    ],
)
def test_a_map_that_was_changed_is_refused(
    made: Path, old: str, new: str, error: type[BuildError], told: str
) -> None:
    """Its own checksum covers everything; version and kind are looked at before."""
    made.write_text(made.read_text().replace(old, new))
    with pytest.raises(error, match=told):
        bmap.read(made)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("<ImageSize> 8388608", "<ImageSize> 9388608", "are not an image"),
        ("<BlockSize> 4096", "<BlockSize> 0", "are not an image"),
        ("<BlockSize> 4096", "<BlockSize> -1", "not a number"),
        ("<BlockSize> 4096 </BlockSize>", "", "BlockSize is missing"),
        ("256-767", "256-9767", "outside the image"),
        ("256-767", "767-256", "outside the image"),
        ("256-767", "0-767", "outside the image"),
        ("256-767", "here", "no range"),
        ("256-767", "257-767", "count says otherwise"),
        ("chksum", "checksum", "has no checksum"),
    ],
)
def test_a_map_that_contradicts_itself_is_refused(made: Path, old: str, new: str, told: str) -> None:
    """Even with a right checksum: nothing in it is taken on trust."""
    text = made.read_text()
    own = text.partition("<BmapFileChecksum> ")[2][:64]
    assert old in text
    seal(made, text.replace(own, "0" * 64).replace(old, new))
    with pytest.raises(FormatError, match=told):
        bmap.read(made)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A wrong file of many gigabytes beside the image does not fill the memory."""
    path = tmp_path / "x.img.bmap"
    with path.open("wb") as file:
        file.truncate(bmap.LARGEST + 1)
    with pytest.raises(FormatError, match="too large"):
        bmap.read(path)
