"""Fixtures for the tests that build images and boot them: one build and one emulator for all of them.

They run where `HOB_TEST_IMAGES` asks for them (`just test-images`), since the first run takes a while and
some gigabytes. It holds words: `pc` for the image for PCs and for what is built for any machine, `arm64`,
`pi`; or the name of a module, `boot` for test_boot, which asks for that one alone.
"""

import os
from pathlib import Path

import pytest

from builder.errors import MirrorError, PrivilegeError, ToolMissingError, UnsupportedError
from builder.image.cache import Cache, default_root
from builder.image.toolbox import host_architecture
from tests.image.boards import PC
from tests.image.building import Release, build, hob_image
from tests.image.disk import Disk
from tests.image.emulator import Emulator, open_emulator
from tests.image.machine import Machine

# Read before the tests forget what the person running them has set.
WANTED = frozenset(os.environ.get("HOB_TEST_IMAGES", "").replace(",", " ").split())
ENVIRONMENT = dict(os.environ)
CACHE = Cache(default_root())


def demand(word: str) -> None:
    """Skip unless these images are asked for."""
    if word not in WANTED:
        pytest.skip(
            f"HOB_TEST_IMAGES does not ask for {word}: see `just test-images` and the recipes beside it"
        )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the modules that nobody asks for, before fixtures of the session build anything for them."""
    name = item.path.stem.removeprefix("test_")
    if name in {"arm64", "pi"}:
        demand(name)
    elif WANTED.isdisjoint({"pc", name}):
        demand("pc")


@pytest.fixture(scope="session")
def cache() -> Cache:
    """The builder's own cache: packages and stages of earlier runs are used again."""
    if not WANTED:
        pytest.skip("HOB_TEST_IMAGES is not set: `just test-images` builds images and boots them")
    if host_architecture() != "amd64":
        pytest.skip("the emulator's tests run on x86-64 alone")
    return CACHE


@pytest.fixture(scope="session")
def emulator(cache: Cache) -> Emulator:
    """QEMU of Debian 13."""
    try:
        return open_emulator(cache)
    except (PrivilegeError, MirrorError, ToolMissingError, UnsupportedError) as error:
        pytest.skip(f"no emulator: {error}")


@pytest.fixture(scope="session")
def keys(cache: Cache) -> Path:
    """A folder of signing keys, the same in every run, so that images made with them stay cached."""
    folder = cache.root / "test-keys"
    if not (folder / "ca.pem").exists():
        hob_image(ENVIRONMENT, "keys", folder)
    return folder


@pytest.fixture(scope="session")
def release(emulator: Emulator, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The image for PCs and what belongs to it, signed."""
    return build("nuc", tmp_path_factory.mktemp("nuc"), ENVIRONMENT, "--keys", keys)


@pytest.fixture(scope="session")
def image(release: Release) -> Path:
    """The image for PCs as it is written to a disk. Not to be changed: `Disk.copy` makes disks of it."""
    return release.unpack()


@pytest.fixture(scope="session")
def accelerator(emulator: Emulator, image: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`kvm` where a kernel really starts with it, else `tcg`: that /dev/kvm can be opened means nothing."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    folder = tmp_path_factory.mktemp("kvm")
    disk = Disk.copy(emulator, image, folder / "disk.img")
    try:
        with Machine(emulator, disk, folder, board=PC, accelerator="kvm") as machine:
            machine.wait_for_serial("Welcome to", 40)
    except AssertionError:
        return "tcg"
    finally:
        disk.path.unlink()
    return "kvm"
