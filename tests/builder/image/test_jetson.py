"""Jetson trees, from a small made-up board support package."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from builder.errors import BuildError, CommandError, FormatError, UnsupportedError
from builder.image import jetson, recipe
from builder.image.cache import Cache, default_root
from builder.image.rootfs import ARCHIVE
from builder.image.toolbox import Toolbox, kept_toolbox

SCRIPT = """#!/bin/bash
set -e
test "$(id -u)" = 0
grep -q "hob" rootfs/etc/hostname
mkdir -p rootfs/boot
echo "# R39 (release)" > rootfs/etc/nv_tegra_release
cp kernel/Image rootfs/boot/Image
echo applied
"""

SERVICE = "[Service]\nExecStart=/x\n[Install]\nWantedBy=multi-user.target\n"


def silent(stage: str, text: str, share: float | None) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="session")
def toolbox() -> Toolbox:
    """The image builder's tools."""
    found = kept_toolbox(Cache(default_root()))
    if found is None:
        pytest.skip("the image builder's tools are not made yet")
    return found


def made_bsp(folder: Path, script: str = SCRIPT) -> Path:
    """A folder with a tree and the archive that it was unpacked from."""
    tree = folder / "Linux_for_Tegra"
    files = {
        "apply_binaries.sh": script,
        "kernel/Image": "linux",
        "nv_tegra/bsp_version": "BSP_BRANCH=39",
        "rootfs/README.txt": "empty",
    }
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "apply_binaries.sh").chmod(0o755)
    (tree / "flash.sh").symlink_to("apply_binaries.sh")
    with tarfile.open(folder / "Jetson_Linux_R39.2.1_aarch64.tbz2", "w:bz2") as archive:
        archive.add(tree, "Linux_for_Tegra")
    return folder


def allowed(folder: Path, extra: str = "") -> Path:
    """A person's own list with the archive in `folder`."""
    (archive,) = folder.glob("*.tbz2")
    path = folder / "allow.toml"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    path.write_text(f'[[release]]\nversion = "made-up"\narchive = "{digest}"\n{extra}')
    return path


def base(folder: Path) -> Path:
    """A root file system with the least that systemd's tools want."""
    folder.mkdir()
    files = {
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\n",
        "etc/shadow": "root::1::::::\n",
        "usr/lib/systemd/system/NetworkManager.service": SERVICE,
        "var/lib/dpkg/status": "",
    }
    with tarfile.open(folder / ARCHIVE, "w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return folder


def layer(folder: Path) -> Path:
    """What Hob adds, as far as the tree's assembly looks at it."""
    system = folder / "usr/lib/systemd/system"
    system.mkdir(parents=True)
    (system / "hob.service").write_text(SERVICE)
    (system / "hob-engine.socket").write_text(
        "[Socket]\nListenStream=/x\n[Install]\nWantedBy=sockets.target\n"
    )
    return folder


def test_nothing_is_made_without_the_package() -> None:
    """The refusal says where it comes from, and that a container needs none of it."""
    with pytest.raises(BuildError, match="--bsp DIR") as caught:
        jetson.check(None)
    assert "Jetson_Linux_R39.2.1_aarch64.tbz2" in caught.value.hint
    assert "oci-jetson" in caught.value.hint


def test_a_listed_archive_is_taken(tmp_path: Path) -> None:
    """By the folder in which it was unpacked, or by the tree itself."""
    bsp = made_bsp(tmp_path)
    for folder in (bsp, bsp / "Linux_for_Tegra"):
        found = jetson.check(folder, allowed(bsp))
        assert found.release.version == "made-up"
        assert found.tree == bsp / "Linux_for_Tegra"
        assert found.archive == bsp / "Jetson_Linux_R39.2.1_aarch64.tbz2"


def test_a_listed_tree_needs_no_archive(tmp_path: Path) -> None:
    """A list of all files does as well; one changed byte does not."""
    bsp = made_bsp(tmp_path)
    (archive,) = bsp.glob("*.tbz2")
    files = "".join(f'"{name}" = "{digest}"\n' for name, digest in jetson.contents(archive).items())
    own = bsp / "own.toml"
    own.write_text(f'[[release]]\nversion = "mine"\n[release.files]\n{files}')
    archive.unlink()
    assert jetson.check(bsp, own).archive is None
    (bsp / "Linux_for_Tegra/kernel/Image").write_text("linuX")
    with pytest.raises(FormatError, match=r"no Jetson_Linux_R\*\.tbz2"):
        jetson.check(bsp, own)


def test_an_unknown_archive_is_refused_by_its_checksum(tmp_path: Path) -> None:
    """With the digest, so that a person can look it up and put it on a list."""
    bsp = made_bsp(tmp_path)
    (archive,) = bsp.glob("*.tbz2")
    with pytest.raises(UnsupportedError, match=hashlib.sha256(archive.read_bytes()).hexdigest()) as caught:
        jetson.check(bsp)
    assert "--bsp-allow" in caught.value.hint


def test_a_folder_without_a_tree_is_refused(tmp_path: Path) -> None:
    """The message names the folder."""
    with pytest.raises(FormatError, match=f"{tmp_path} has no Linux_for_Tegra"):
        jetson.check(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("release = 1", "no list"),
        ('[[release]]\nversion = "1"', "neither an archive nor files"),
        ('[[release]]\nversion = "1"\narchiv = "x"', "archiv"),
        ("[[release", "no list"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, text: str, told: str) -> None:
    """Before anything is compared with it."""
    path = tmp_path / "allow.toml"
    path.write_text(text)
    with pytest.raises(FormatError, match=told):
        jetson.releases(path)


def test_hobs_own_list_is_one() -> None:
    """Each entry has a version and the SHA-256 of an archive."""
    for release in jetson.releases():
        assert len(bytes.fromhex(release.archive)) == 32


def test_a_tree_is_made_ready_to_flash(tmp_path: Path, toolbox: Toolbox) -> None:
    """NVIDIA's script runs over Hob's root: services are enabled there, and nobody has a password."""
    bsp = made_bsp(tmp_path / "bsp")
    (bsp / "Linux_for_Tegra/left-over").write_text("of another build")
    found = jetson.check(bsp, allowed(bsp))
    out = jetson.assemble(
        tmp_path / "hob.tar",
        found,
        base(tmp_path / "base"),
        [layer(tmp_path / "layer")],
        toolbox=toolbox,
        tell=silent,
    )
    with tarfile.open(out) as archive:
        names = {name.removeprefix("Linux_for_Tegra/") for name in archive.getnames()}
        shadow = archive.extractfile("Linux_for_Tegra/rootfs/etc/shadow")
        assert shadow
        assert shadow.read().startswith(b"root:*:")
        assert archive.getmember("Linux_for_Tegra/apply_binaries.sh").mode & 0o111
        assert archive.getmember("Linux_for_Tegra/flash.sh").issym()
        assert archive.getmember("Linux_for_Tegra/rootfs/etc/hostname").uid == 0
    assert {"rootfs/etc/nv_tegra_release", "rootfs/boot/Image", "rootfs/var/lib/dpkg/status"} <= names
    assert "rootfs/etc/systemd/system/multi-user.target.wants/hob.service" in names
    assert "rootfs/etc/systemd/system/sockets.target.wants/hob-engine.socket" in names
    assert "left-over" not in names
    assert "rootfs/README.txt" not in names
    assert "jetson-orin-nano-devkit-super" in jetson.how_to_flash(out)


def test_a_tree_other_than_its_archive_is_refused(tmp_path: Path, toolbox: Toolbox) -> None:
    """Before NVIDIA's script, or what someone made of it, runs."""
    bsp = made_bsp(tmp_path / "bsp")
    (bsp / "Linux_for_Tegra/apply_binaries.sh").write_text("#!/bin/sh\ntouch /evil\n")
    found = jetson.check(bsp, allowed(bsp))
    with pytest.raises(FormatError, match=r"apply_binaries\.sh is not the file that NVIDIA released"):
        jetson.assemble(
            tmp_path / "hob.tar", found, base(tmp_path / "base"), [], toolbox=toolbox, tell=silent
        )
    assert not (tmp_path / "hob.tar").exists()


def test_a_failing_script_is_told(tmp_path: Path, toolbox: Toolbox) -> None:
    """With its own last words."""
    bsp = made_bsp(tmp_path / "bsp", "echo it wants more >&2; exit 3\n")
    found = jetson.check(bsp, allowed(bsp))
    with pytest.raises(CommandError, match="it wants more"):
        jetson.assemble(
            tmp_path / "hob.tar",
            found,
            base(tmp_path / "base"),
            [layer(tmp_path / "layer")],
            toolbox=toolbox,
            tell=silent,
        )


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    """One that was allowed, and broke afterwards."""
    bsp = made_bsp(tmp_path)
    (archive,) = bsp.glob("*.tbz2")
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(FormatError, match="damaged"):
        jetson.contents(archive)


@pytest.mark.parametrize("name", ["jetson-orin", "oci-jetson"])
def test_the_recipes_compile_for_the_gpu_of_an_orin(name: str) -> None:
    """Compute capability 8.7, and the processor beside it; nothing for PCs."""
    made = recipe.load(name)
    assert made.gpu
    assert made.architectures == ["arm64"]
    assert "aarch64-cuda-sm_87" in made.targets
    assert "aarch64-neondot" in made.targets
    assert not any(target.startswith("x86_64") for target in made.targets)
