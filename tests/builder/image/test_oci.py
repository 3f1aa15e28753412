"""Container images, from small made-up root file systems."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder.errors import FormatError
from builder.image import oci
from builder.image.cache import Cache, default_root
from builder.image.rootfs import ARCHIVE
from builder.image.toolbox import Toolbox, kept_toolbox

EPOCH = 1_700_000_000
SITE = "opt/hob/lib/python3.13/site-packages"


@pytest.fixture(scope="session")
def toolbox() -> Toolbox:
    """The image builder's tools, for their gzip."""
    found = kept_toolbox(Cache(default_root()))
    if found is None:
        pytest.skip("the image builder's tools are not made yet")
    return found


def base(folder: Path, machine: str, later: int = 0) -> Path:
    """A root file system as mmdebstrap packs one, with what must not get into a container."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / ARCHIVE, "w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, kind: bytes = tarfile.REGTYPE, text: str = "", **more: Any) -> None:
            member = tarfile.TarInfo(f"./{name}")
            member.type, member.size, member.mtime = kind, len(text), EPOCH + later
            member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
            for key, value in more.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(text.encode()) if text else None)

        for name in ("dev", "etc", "proc", "run", "tmp", "usr", "usr/bin", "var", "var/log"):
            add(name, tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755)
        add("bin", tarfile.SYMTYPE, linkname="usr/bin")
        add("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("etc/passwd", text="root:x:0:0::/root:/bin/sh\n")
        add("etc/group", text="root:x:0:\n")
        add("run/lock", text="gone")
        add("etc/apt/sources.list", text=f"deb copy:///{later} ./")
        add("usr/bin/su", text=machine, mode=0o4755, uname="root", pax_headers={"SCHILY.xattr.user.x": "y"})
        add("usr/bin/su2", tarfile.LNKTYPE, linkname="./usr/bin/su")
        add("var/log/dpkg.log", text="gone")
    return folder


def overlay(folder: Path, machine: str) -> Path:
    """A tree as the overlay's, with a package, a model and Hob's own code."""
    files = {
        ".inputs.json": "{}",
        f"{SITE}/numpy/core.so": machine,
        f"{SITE}/numpy-1.dist-info/METADATA": "numpy",
        f"{SITE}/appliance/app.py": "app",
        f"{SITE}/hob_appliance-1.dist-info/METADATA": "hob",
        f"{SITE}/builder/guide/model/params.bin": "weights",
        f"{SITE}/builder/guide/corpus.py": "corpus",
        "opt/hob/bin/hob": "#!",
        "opt/hob/pyvenv.cfg": "home = /usr/bin",
        "usr/share/hob/libraries/x.so": machine,
        "usr/lib/systemd/system/hob.service": "[Unit]",
        "etc/hob/hob.toml": "port = 8080",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "opt/hob/bin/hob").chmod(0o755)
    (folder / "opt/hob/bin/python").symlink_to("/usr/bin/python3")
    return folder


@dataclass
class Layout:
    """An archive that was written, opened by its own index."""

    path: Path

    def file(self, name: str) -> bytes:
        """A file of the layout."""
        with tarfile.open(self.path) as archive:
            content = archive.extractfile(name)
            assert content
            return content.read()

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        """What a descriptor stands for, after comparing digest and size."""
        content = self.file(f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}")
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
        assert len(content) == descriptor["size"]
        return content

    def images(self) -> dict[str, dict[str, Any]]:
        """The manifests by architecture."""
        (top,) = json.loads(self.file("index.json"))["manifests"]
        index = json.loads(self.blob(top))
        return {each["platform"]["architecture"]: json.loads(self.blob(each)) for each in index["manifests"]}

    def layers(self, architecture: str) -> list[dict[str, tarfile.TarInfo]]:
        """What is in each layer, after comparing the unpacked digests."""
        image = self.images()[architecture]
        config = json.loads(self.blob(image["config"]))
        found = []
        for descriptor, unpacked in zip(image["layers"], config["rootfs"]["diff_ids"], strict=True):
            content = gzip.decompress(self.blob(descriptor))
            assert f"sha256:{hashlib.sha256(content).hexdigest()}" == unpacked
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                found.append({member.name: member for member in archive})
        return found


def made(folder: Path, toolbox: Toolbox, later: int = 0) -> Layout:
    """An archive for both architectures."""
    variants = [
        oci.Variant(name, base(folder / f"base-{name}", name, later), overlay(folder / f"over-{name}", name))
        for name in ("amd64", "arm64")
    ]
    out = folder / "hob.tar"
    oci.build(
        out, variants, version="1.0", title="Container", epoch=EPOCH, toolbox=toolbox, tell=lambda *_: None
    )
    return Layout(out)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, toolbox: Toolbox) -> Layout:
    """One archive for all tests that only look at it."""
    return made(tmp_path_factory.mktemp("oci"), toolbox)


def test_the_index_leads_to_an_image_for_each_architecture(layout: Layout) -> None:
    """By descriptors whose digests and sizes are right, with the platform's variant where there is one."""
    assert json.loads(layout.file("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    (top,) = json.loads(layout.file("index.json"))["manifests"]
    assert top["annotations"]["org.opencontainers.image.ref.name"] == "1.0"
    assert top["annotations"]["io.containerd.image.name"] == "localhost/hob:1.0"
    index = json.loads(layout.blob(top))
    assert [each["platform"] for each in index["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux", "variant": "v8"},
    ]
    for image in layout.images().values():
        assert image["mediaType"] == oci.MANIFEST
        assert len(image["layers"]) == 4


def test_it_runs_as_nobody_in_particular(layout: Layout) -> None:
    """Not root; one port, one volume, a look at its health; the account and its folder exist."""
    config = json.loads(layout.blob(layout.images()["amd64"]["config"]))
    assert config["config"]["User"] == "10001:10001"
    assert config["config"]["ExposedPorts"] == {"8080/tcp": {}}
    assert config["config"]["Volumes"] == {"/data": {}}
    assert config["config"]["Entrypoint"] == ["/usr/bin/hob"]
    assert config["config"]["Healthcheck"]["Test"][:2] == ["CMD", "/opt/hob/bin/python"]
    compile(config["config"]["Healthcheck"]["Test"][-1], "health", "exec")
    assert config["created"] == "2023-11-14T22:13:20Z"
    debian = layout.layers("amd64")[0]
    assert (debian["data"].uid, debian["data"].gid, debian["data"].mode) == (10001, 10001, 0o700)


def test_layers_hold_what_belongs_together(layout: Layout) -> None:
    """Debian, packages, models, Hob; nothing twice, and nothing that is of no use in a container."""
    debian, packages, models, own = (
        {name for name, member in layer.items() if not member.isdir()} for layer in layout.layers("amd64")
    )
    assert debian == {"bin", "etc/passwd", "etc/group", "usr/bin/su", "usr/bin/su2"}
    assert packages == {f"{SITE}/numpy/core.so", f"{SITE}/numpy-1.dist-info/METADATA"}
    assert models == {f"{SITE}/builder/guide/model/params.bin", "usr/share/hob/libraries/x.so"}
    assert own == {
        f"{SITE}/appliance/app.py",
        f"{SITE}/builder/guide/corpus.py",
        f"{SITE}/hob_appliance-1.dist-info/METADATA",
        "opt/hob/bin/hob",
        "opt/hob/bin/python",
        "opt/hob/pyvenv.cfg",
        "etc/hob/hob.toml",
    }


def test_nothing_makes_a_program_more_than_who_starts_it(layout: Layout) -> None:
    """No set-uid bits, no extended attributes, no names of users; hard links still lead somewhere."""
    for layer in layout.layers("arm64"):
        for member in layer.values():
            assert not member.mode & 0o6000, member.name
            assert (member.uname, member.gname) == ("", "")
            assert not any(key.startswith("SCHILY") for key in member.pax_headers)
            assert member.mtime <= EPOCH
            if member.islnk():
                assert member.linkname in layer
    assert layout.layers("arm64")[0]["tmp"].mode == 0o1777


def test_architectures_share_what_is_the_same(layout: Layout) -> None:
    """Hob's own layer is one blob, fetched and kept once."""
    amd64, arm64 = (layout.images()[name]["layers"] for name in ("amd64", "arm64"))
    assert amd64[3] == arm64[3]
    assert amd64[0] != arm64[0]
    with tarfile.open(layout.path) as archive:
        blobs = [name for name in archive.getnames() if name.startswith("blobs/sha256/")]
    assert len(blobs) == len(set(blobs)) == 7 + 2 * 2 + 1  # layers, configurations and manifests, the index


def test_two_builds_have_the_same_bytes(layout: Layout, tmp_path: Path, toolbox: Toolbox) -> None:
    """In another folder, at another time, from files with other times and modes of folders."""
    old = os.umask(0o077)
    try:
        again = made(tmp_path, toolbox, later=5000)
    finally:
        os.umask(old)
    assert (
        hashlib.sha256(again.path.read_bytes()).digest() == hashlib.sha256(layout.path.read_bytes()).digest()
    )


def test_what_is_no_root_file_system_is_refused(tmp_path: Path, toolbox: Toolbox) -> None:
    """And nothing is left where the archive would have been."""
    folder = tmp_path / "base"
    folder.mkdir()
    variant = oci.Variant("amd64", folder, overlay(tmp_path / "over", "amd64"))
    arguments: dict[str, Any] = {
        "version": "1", "title": "x", "epoch": EPOCH, "toolbox": toolbox, "tell": lambda *_: None
    }  # fmt: skip
    with pytest.raises(FormatError, match=r"has no rootfs\.tar"):
        oci.build(tmp_path / "out.tar", [variant], **arguments)
    with tarfile.open(folder / ARCHIVE, "w"):
        pass
    with pytest.raises(FormatError, match="lacks /etc/passwd"):
        oci.build(tmp_path / "out.tar", [variant], **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "over"]
