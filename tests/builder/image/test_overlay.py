"""The layers of an image: what of a lock file and of a checkout goes in, and how a tree is settled."""

import os
from pathlib import Path

import pytest

from builder.errors import FormatError
from builder.image import application, overlay, wheels

ROOT = Path(__file__).parents[3]
HASH = "--hash=sha256:" + "0" * 64


def test_requirements_are_those_of_the_device(tmp_path: Path) -> None:
    """Markers are compared with the device's Python and processor, not with this machine's."""
    lock = tmp_path / "lock.txt"
    lock.write_text(
        f"a==1 ; python_full_version < '3.12' \\\n    {HASH}\n"
        f"a==2 ; python_full_version >= '3.12' \\\n    {HASH} \\\n    {HASH}\n"
        f"b==1 ; platform_machine == 'aarch64' {HASH}\n"
        f"c==1 ; sys_platform == 'win32' {HASH}\n"
    )
    arm = list(wheels.applicable(lock, wheels.marker_environment("arm64")))
    assert [line.split()[0] for line in arm] == ["a==2", "b==1"]
    assert arm[0].count("--hash=") == 2
    assert [line.split()[0] for line in wheels.applicable(lock, wheels.marker_environment("amd64"))] == [
        "a==2"
    ]


@pytest.mark.parametrize("line", ["a>=1 " + HASH, "a==1", "a==1.* " + HASH, "==1 " + HASH])
def test_a_lock_that_locks_nothing(line: str, tmp_path: Path) -> None:
    """Every requirement has one exact version and hashes."""
    (tmp_path / "lock.txt").write_text(line + "\n")
    with pytest.raises(FormatError, match=r"lock\.txt"):
        list(wheels.applicable(tmp_path / "lock.txt", wheels.marker_environment("amd64")))


def test_the_projects_own_lock_applies() -> None:
    """The lock file of this project has everything for both architectures."""
    for architecture in wheels.MACHINES:
        lines = list(
            wheels.applicable(ROOT / "requirements/service.txt", wheels.marker_environment(architecture))
        )
        assert any(line.startswith("apache-tvm==") for line in lines)


def test_sources_get_another_version(tmp_path: Path) -> None:
    """A build may call Hob otherwise; that stands in the package and in its description."""
    application.copy_sources(ROOT, tmp_path, "9.8.7")
    assert 'version = "9.8.7"' in (tmp_path / "pyproject.toml").read_text()
    assert '__version__ = "9.8.7"' in (tmp_path / "appliance/__init__.py").read_text()
    assert not list(tmp_path.rglob("__pycache__"))


def test_no_checkout(tmp_path: Path) -> None:
    """A folder that is not Hob's is named, with what it lacks."""
    with pytest.raises(FormatError, match=r"lacks pyproject\.toml"):
        application.sources(tmp_path)


def test_a_settled_tree(tmp_path: Path) -> None:
    """Modes and times do not depend on who made the files, and when."""
    (tmp_path / "bin").mkdir(mode=0o700)
    (tmp_path / "bin/run").write_text("")
    (tmp_path / "bin/run").chmod(0o700)
    (tmp_path / "lib.so").write_text("")
    (tmp_path / "lib.so").chmod(0o777)
    (tmp_path / "link").symlink_to("nowhere")
    overlay.settle(tmp_path, 1_000)
    modes = {path.name: path.lstat().st_mode & 0o777 for path in tmp_path.rglob("*") if not path.is_symlink()}
    assert modes == {"bin": 0o755, "run": 0o755, "lib.so": 0o644}
    assert {int(path.lstat().st_mtime) for path in tmp_path.rglob("*")} == {1_000}


def test_two_layers_with_one_file(tmp_path: Path) -> None:
    """Layers never hide each other's files; what a system adds may replace one."""
    for layer in ("a", "b"):
        (tmp_path / layer / "etc").mkdir(parents=True)
        (tmp_path / layer / "etc/x").write_text(layer)
    overlay.copy_tree(tmp_path / "a", tmp_path / "out")
    with pytest.raises(FormatError, match="etc/x comes from two layers"):
        overlay.copy_tree(tmp_path / "b", tmp_path / "out")
    overlay.copy_tree(tmp_path / "b", tmp_path / "out", replace=True)
    assert (tmp_path / "out/etc/x").read_text() == "b"


@pytest.mark.parametrize("gpu", [False, True])
def test_units_and_users(gpu: bool, tmp_path: Path) -> None:
    """All units of the project are there; the drop-in for GPUs only where there is one."""
    overlay.copy_units(ROOT / "systemd", tmp_path, gpu=gpu)
    units = {path.name for path in (tmp_path / "usr/lib/systemd/system").iterdir() if path.is_file()}
    assert {"hob.service", "hob-engine.service", "hob-engine.socket"} <= units
    assert (tmp_path / "usr/lib/sysusers.d/hob.conf").is_file()
    assert (tmp_path / "usr/lib/systemd/system/hob-engine.service.d/gpu.conf").is_file() == gpu
    assert os.listdir(tmp_path / "usr/lib/tmpfiles.d") == ["hob.conf"]
