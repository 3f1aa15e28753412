"""The image for Arm computers with UEFI, on QEMU's `virt` board: from its first start to an answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.image import people
from tests.image.boards import VIRT
from tests.image.building import build
from tests.image.conftest import ENVIRONMENT
from tests.image.emulator import Emulator
from tests.image.home import Home, flashed

pytestmark = pytest.mark.image


@pytest.fixture(scope="module")
def home(emulator: Emulator, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A freshly flashed machine with a set-up code."""
    folder = tmp_path_factory.mktemp("arm64")
    release = build("arm64", folder / "out", ENVIRONMENT, "--keys", keys)
    home = flashed(emulator, release.unpack(), folder, board=VIRT)
    yield home
    home.kill()


def test_it_boots_to_an_answer(home: Home, chromium: Browser) -> None:
    """Without a network it comes up, lets its owner in, answers from the built-in model, and shuts down."""
    owner = people.set_up(chromium, home.on().url)
    assert "Hob" in owner.ask("What is Hob?")
    owner.page.screenshot(path=home.folder / "answer.png")
    owner.close()
    home.off()
