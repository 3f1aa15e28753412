"""Building an image: interrupted, gone on with, with no network, and twice with the same bytes."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.image import packages
from builder.image.cache import Cache
from tests.image.building import Release
from tests.image.conftest import ENVIRONMENT
from tests.service import HOB

pytestmark = pytest.mark.image

# The folder's address is in one of them, and the others have signatures, which never come out the same.
DIFFERING = (".rpi-imager-manifest", ".p7s", ".raucb")
STEP_SECONDS = 900


@pytest.fixture(scope="module")
def fresh(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache with nothing but the tools and the packages, Debian's and Python's, of the ordinary one."""
    if os.geteuid() != 0:
        pytest.skip("cutting the network off takes root")
    root = tmp_path_factory.mktemp("fresh")
    (root / "stages").mkdir()
    (root / "debs").symlink_to(cache.root / "debs")
    for stage in ("toolbox-tools", "wheels"):
        (root / "stages" / stage).symlink_to(cache.root / "stages" / stage)
    yield root
    shutil.rmtree(root)


def offline(fresh: Path, release: Release, out: Path, *flags: str) -> subprocess.Popen[str]:
    """Start a build in the fresh cache, without any network, from the lock of the first build."""
    lock = release.file(".lock.toml")
    return subprocess.Popen(
        ["unshare", "--net", HOB, "image", "build", "nuc", "--out", out, "--lock", lock, "--json", *flags],
        env=ENVIRONMENT | {"HOB_IMAGE_CACHE": str(fresh), "HOB_MIRROR": "http://127.0.0.1:9/debian"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_build_that_is_stopped_leaves_nothing_behind(fresh: Path, release: Release, tmp_path: Path) -> None:
    """Ctrl-C in the middle of the longest stage: no file, no mount, no process, and one line that says so."""
    mounts = Path("/proc/self/mounts").read_text()
    running = offline(fresh, release, tmp_path)
    assert running.stdout is not None
    try:
        for line in running.stdout:
            if "installing" in json.loads(line)["text"]:
                break
        work = list((fresh / "scratch").iterdir())
        assert work, "the stage is under way"
        assert processes(fresh)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 1
    told = json.loads(out.splitlines()[-1])
    assert told["error"] == "stopped"
    assert "goes on from there" in told["hint"]
    assert list((fresh / "scratch").iterdir()) == []
    assert processes(fresh) == []
    assert Path("/proc/self/mounts").read_text() == mounts
    assert list(tmp_path.iterdir()) == []


def processes(fresh: Path) -> list[int]:
    """Processes that work in a cache."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(fresh).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def test_two_builds_from_one_lock_are_the_same_without_a_network(
    fresh: Path, release: Release, keys: Path, tmp_path: Path
) -> None:
    """Everything but the tools and the packages is made anew, in another folder: the same bytes."""
    running = offline(fresh, release, tmp_path, "--keys", str(keys))
    out, told = running.communicate(timeout=STEP_SECONDS)
    assert running.returncode == 0, out[-1000:] + told[-3000:]
    again = {path.name: path for path in tmp_path.iterdir()}
    first = {path.name: path for path in release.folder.iterdir() if path.suffix != ".img"}
    assert again.keys() == first.keys()
    compared = [name for name in sorted(again) if not name.endswith(DIFFERING)]
    assert {".bmap", ".json", ".toml", ".xz"} == {Path(name).suffix for name in compared}
    different = [name for name in compared if sha256(again[name]) != sha256(first[name])]
    # The manifest has the checksum of the bundle, whose signature has a time of its own.
    for name in [name for name in different if name.endswith(".manifest.json")]:
        if without_bundle(again[name]) == without_bundle(first[name]):
            different.remove(name)
    assert different == []


def without_bundle(manifest: Path) -> object:
    """A manifest without the bundle's entry."""
    table = json.loads(manifest.read_text())
    table["files"] = [entry for entry in table["files"] if not entry["name"].endswith(".raucb")]
    return table


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_package_that_is_gone_is_named(fresh: Path, release: Release, tmp_path: Path) -> None:
    """Without a network a lock whose packages are not all kept ends with one line about the mirror."""
    lock = packages.parse(release.file(".lock.toml").read_text(), release.folder)
    debs = fresh / "some-debs"
    shutil.copytree(fresh / "debs", debs, copy_function=os.symlink)
    gone = lock.packages[0]
    (debs / gone.sha256[:2] / f"{gone.sha256}.deb").unlink()
    (fresh / "debs").unlink()
    (fresh / "debs").symlink_to(debs)
    running = offline(fresh, release, tmp_path)
    out, _ = running.communicate(timeout=STEP_SECONDS)
    assert running.returncode == 1
    told = json.loads(out.splitlines()[-1])
    assert told["error"].startswith("the mirror does not give a package of the lock")
    assert "Check the network" in told["hint"]
