"""The Debian package in Debian: installed, upgraded, removed, purged, with systemd running and without."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import BuildError, MirrorError, PrivilegeError, ToolMissingError
from builder.image import deb, overlay
from builder.image.cache import Cache, default_root
from builder.image.toolbox import Toolbox, host_architecture, open_toolbox
from tests.systemd.container import NOTHING, Container, booted

pytestmark = pytest.mark.image

WANTED = not {"pc", "package"}.isdisjoint(os.environ.get("HOB_TEST_IMAGES", "").replace(",", " ").split())
ROOT = Path(__file__).parents[2]
CACHE = Cache(default_root())
EPOCH = 1_767_225_600
TARGETS = {"amd64": ["x86_64-generic"], "arm64": ["aarch64-generic"]}


@pytest.fixture(scope="module")
def toolbox() -> Toolbox:
    """Debian 13, in which nothing of Hob is installed."""
    if not WANTED:
        pytest.skip("HOB_TEST_IMAGES does not ask for package: `just test-images` does")
    if os.geteuid() != 0 or shutil.which("nsenter") is None:
        pytest.skip("booting in namespaces needs root and nsenter")
    try:
        return open_toolbox(CACHE)
    except (PrivilegeError, MirrorError, ToolMissingError) as error:
        pytest.skip(f"no toolbox: {error}")


def package(toolbox: Toolbox, version: str, folder: Path) -> Path:
    """The package in a version, without the compiler: what dpkg does with it is the same, and sooner done."""
    architecture = host_architecture()
    contents = overlay.Contents(
        arch=architecture,
        version=version,
        epoch=EPOCH,
        targets=TARGETS[architecture],
        settings=(ROOT / "systemd/hob.toml").read_text(),
    )
    return deb.build(
        folder / f"hob_{version}_{architecture}.deb",
        overlay=overlay.build(contents, CACHE, toolbox),
        checkout=ROOT,
        architecture=architecture,
        version=version,
        compiler=False,
        epoch=EPOCH,
        toolbox=toolbox,
    )


@pytest.fixture(scope="module")
def old(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 0.1.0."""
    return package(toolbox, "0.1.0", tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def new(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 0.2.0."""
    return package(toolbox, "0.2.0", tmp_path_factory.mktemp("new"))


@pytest.fixture
def debian(toolbox: Toolbox, tmp_path: Path) -> Iterator[Container]:
    """A booted Debian."""
    (tmp_path / "system").mkdir()
    with booted([toolbox.tree], tmp_path / "system") as container:
        yield container


def dpkg(container: Container, *arguments: str | Path) -> str:
    """Run dpkg on packages of this machine, as root of the container and without a terminal."""
    inside = []
    for argument in arguments:
        if isinstance(argument, Path):
            shutil.copyfile(argument, f"/proc/{container.init}/root/tmp/{argument.name}")
        inside.append(f"/tmp/{argument.name}" if isinstance(argument, Path) else argument)  # noqa: S108 - in the container
    return container.run("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *inside, timeout=300)


def test_from_installing_to_purging(debian: Container, old: Path, new: Path) -> None:
    """It runs once installed, keeps data and settings when upgraded and removed, and none when purged."""
    dpkg(debian, "--install", old)
    debian.wait("hob.service", "StatusText", "hob-guide answers")
    assert debian.run("stat", "-c", "%a %U:%G", "/var/lib/hob").strip() == "700 hob:hob"
    assert debian.run("hob", "--version").split()[-1] == "0.1.0"
    debian.run("hob", "key", "add", "laptop")
    debian.run("sh", "-c", "echo 'name = \"kitchen\"' >> /etc/hob/hob.toml")

    dpkg(debian, "--install", new)
    debian.wait("hob.service", "StatusText", "hob-guide answers")
    assert debian.run("hob", "--version").split()[-1] == "0.2.0"
    assert "laptop" in debian.run("hob", "key", "list")
    assert "kitchen" in debian.run(
        "cat", "/etc/hob/hob.toml"
    )  # a configuration file stays as its owner left it

    dpkg(debian, "--remove", "hob")
    assert debian.show("hob.service", "ActiveState") == "inactive"
    assert "No such file" in debian.run("ls", "/opt/hob", check=False)
    assert "hob.db" in debian.run("ls", "/var/lib/hob")
    assert "kitchen" in debian.run("cat", "/etc/hob/hob.toml")

    dpkg(debian, "--install", new)
    debian.wait("hob.service", "StatusText", "hob-guide answers")
    assert "laptop" in debian.run("hob", "key", "list")

    dpkg(debian, "--purge", "hob")
    assert debian.run("find", "/etc", "/usr", "/var/lib", "-name", "*hob*") == ""
    assert "No such file" in debian.run("ls", "/opt/hob", check=False)


def test_what_the_owner_disabled_stays_so(debian: Container, old: Path, new: Path) -> None:
    """An upgrade neither enables nor starts a service that its owner has disabled."""
    dpkg(debian, "--install", old)
    debian.run("systemctl", "disable", "--now", "hob.service")
    dpkg(debian, "--install", new)
    assert debian.run("systemctl", "is-enabled", "hob.service", check=False).strip() == "disabled"
    assert debian.run("systemctl", "is-enabled", "hob-engine.socket").strip() == "enabled"


def test_without_systemd_running(toolbox: Toolbox, old: Path, new: Path, tmp_path: Path) -> None:
    """In a chroot, as an image is made of, the package installs, and starts nothing."""
    (tmp_path / "chroot").mkdir()
    with booted([toolbox.tree], tmp_path / "chroot", NOTHING) as chroot:
        dpkg(chroot, "--install", old)
        assert chroot.run("stat", "-c", "%U", "/var/lib/hob").strip() == "hob"
        assert chroot.run("readlink", "/etc/systemd/system/multi-user.target.wants/hob.service").endswith(
            "/usr/lib/systemd/system/hob.service\n"
        )
        assert "hob-guide" in chroot.run("hob", "model", "list")
        dpkg(chroot, "--install", new)
        dpkg(chroot, "--remove", "hob")
        dpkg(chroot, "--purge", "hob")
        assert "No such file" in chroot.run("ls", "/var/lib/hob", check=False)


def test_twice_the_same(toolbox: Toolbox, old: Path, tmp_path: Path) -> None:
    """Two builds give the same bytes."""
    assert (
        package(toolbox, "0.1.0", tmp_path).read_bytes() == package(toolbox, "0.1.0", old.parent).read_bytes()
    )


def test_what_lintian_says(old: Path, tmp_path: Path) -> None:
    """Debian's own checks find no error that has not its reason in the package."""
    try:
        lintian = open_toolbox(CACHE, name="lintian", packages=("lintian",))
    except BuildError as error:
        pytest.skip(f"no lintian: {error}")
    found = lintian.run(
        ["lintian", "--fail-on=none", "--no-tag-display-limit", "--allow-root", old],
        read=[old.parent],
        timeout=600,
    )
    assert [line for line in found.splitlines() if line.startswith("E:")] == []
