"""From the file that was built to the first answer: flashed by the command, started, set up with its code."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.image import people
from tests.image.building import Release, hob_image
from tests.image.conftest import ENVIRONMENT
from tests.image.disk import Disk
from tests.image.emulator import Emulator
from tests.image.home import Home

pytestmark = pytest.mark.image

SIZE = 8 * 2**30


def flash(release: Release, disk: Path, *options: str) -> str:
    """Flash the release onto a disk as large as a card; the set-up code."""
    with disk.open("wb") as file:
        file.truncate(SIZE)
    told = hob_image(ENVIRONMENT, "flash", release.file(".img.xz"), disk, "--json", *options)
    done = json.loads(told.splitlines()[-1])
    assert done["device"] == str(disk)
    return str(done["setup_code"])


@pytest.fixture(scope="module")
def home(
    emulator: Emulator, release: Release, accelerator: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Home, str]]:
    """A machine whose disk was flashed with settings, and the code that was printed."""
    folder = tmp_path_factory.mktemp("flashed")
    code = flash(release, folder / "disk.img", "--hostname", "kitchen", "--timezone", "Europe/Berlin")
    home = Home(emulator, Disk(emulator, folder / "disk.img"), folder, accelerator)
    yield home, code
    home.kill()


def test_the_printed_code_opens_the_first_visit(home: tuple[Home, str], chromium: Browser) -> None:
    """And after it the built-in model answers, with no network but the forwarded port."""
    machine, code = home
    owner = people.set_up(chromium, machine.on().url, code)
    assert "language model" in owner.ask("What is Hob?")
    owner.close()


def test_only_what_matters_was_written(release: Release, tmp_path: Path) -> None:
    """The image is flashed by its block map: holes take no room on a sparse disk, and all of it verifies."""
    disk = tmp_path / "disk.img"
    assert flash(release, disk, "--plain") == ""
    assert disk.stat().st_blocks * 512 < 10**9
    image = release.unpack()
    size = image.stat().st_size
    done = subprocess.run(
        ["cmp", f"--bytes={size}", image, disk], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert os.path.getsize(disk) == SIZE
