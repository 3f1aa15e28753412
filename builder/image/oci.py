"""A container image for several architectures in one archive, made without a daemon and without unpacking.

The archive holds an image layout of the OCI image specification 1.1 (image-layout.md, image-index.md,
manifest.md, config.md, layer.md), which Podman, containerd, k3s, skopeo and, from version 25 on, Docker read.
Layers are made from one archive to the next, so that no foreign owner ever touches this machine's disk, and
have the same bytes every time.

An image has four layers, from what seldom changes to what often does: Debian, Python's packages, the models
with their libraries, and Hob itself, which is the same layer for all architectures.
"""

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from builder.errors import FormatError
from builder.image import application, wheels
from builder.image.rootfs import ARCHIVE
from builder.image.toolbox import Toolbox

USER = 10001
"""Id of the user and the group that Hob runs as: none of Debian's, and hardly one of the host's."""

DATA = "data"
"""The one folder that Hob writes to."""

PORT = 8080

EMPTIED = ("boot", "dev", "proc", "run", "sys", "tmp", "var/cache", "var/log")
"""Folders whose content is the container runtime's affair, or of no use."""

NAMELESS = ("etc/apt/sources.list",)
"""Files that name a folder of the machine that built."""

SYSTEM = ("usr/lib/systemd", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d")
"""What an overlay has for systemd, which does not run here."""

SITE = f"opt/hob/lib/python{wheels.PYTHON}/site-packages"
MODELS = ("usr/share/hob", f"{SITE}/builder/guide/model")

HEALTH = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}/healthz', timeout=4)"

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

TIMEOUT = 600.0

Tell = Callable[[str, str, float | None], None]


@dataclass(frozen=True)
class Variant:
    """The image for one architecture.

    Attributes:
        architecture: Debian's name, which is OCI's as well: "amd64", "arm64".
        base: folder of `rootfs.build`.
        overlay: folder of `overlay.build`.
    """

    architecture: str
    base: Path
    overlay: Path


@dataclass(frozen=True)
class Blob:
    """A file of the layout: its descriptor's type, digest and size; for a layer also the digest unpacked."""

    kind: str
    digest: str
    size: int
    unpacked: str = ""

    def describe(self, **more: Any) -> dict[str, Any]:
        """The descriptor (descriptor.md)."""
        return {"mediaType": self.kind, "digest": f"sha256:{self.digest}", "size": self.size, **more}


def build(
    out: Path,
    variants: Sequence[Variant],
    *,
    version: str,
    title: str,
    epoch: int,
    toolbox: Toolbox,
    tell: Tell,
) -> Path:
    """Write the archive `out` and return it.

    Args:
        variants: in the order of the index; a runtime takes the first that fits.
        version: of Hob; becomes the tag.
        title: of the image.
        epoch: time of everything in it, in seconds since 1970.
        toolbox: for its gzip, whose bytes are the same everywhere.

    Raises:
        FormatError: a base is no root file system.
        CommandError: gzip failed.
    """
    with toolbox.scratch("oci") as folder:
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        manifests = []
        for number, variant in enumerate(variants):

            def told(text: str, share: float, *, at: int = number, name: str = variant.architecture) -> None:
                tell("oci", f"{name}: {text}", (at + share) / len(variants))

            layers = _layers(blobs, variant, epoch, toolbox, told)
            config = _config(variant.architecture, layers, version, title, epoch)
            labels = config["config"]["Labels"]
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _store(blobs, CONFIG, config).describe(),
                "layers": [layer.describe() for layer in layers],
                "annotations": labels,
            }
            platform = {"architecture": variant.architecture, "os": "linux"}
            if variant.architecture == "arm64":
                platform["variant"] = "v8"
            manifests.append(_store(blobs, MANIFEST, manifest).describe(platform=platform))
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests, "annotations": labels}
        names = {
            "org.opencontainers.image.ref.name": version,
            "io.containerd.image.name": f"localhost/hob:{version}",  # what `ctr` and k3s call it
        }
        top = _store(blobs, INDEX, index).describe(annotations=names)
        (folder / "index.json").write_bytes(
            _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]})
        )
        (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
        _archive(folder, ("oci-layout", "index.json", "blobs"), out, epoch)
    tell("oci", "done", 1.0)
    return out


def _layers(
    blobs: Path, variant: Variant, epoch: int, toolbox: Toolbox, told: Callable[[str, float], None]
) -> list[Blob]:
    """The layers of an image, lowest first; those that another image has already are not made again."""
    archive, overlay = variant.base / ARCHIVE, variant.overlay
    if not archive.is_file():
        raise FormatError(f"{variant.base} has no {ARCHIVE}")
    steps: tuple[tuple[str, Callable[[tarfile.TarFile], None]], ...] = (
        ("Debian", lambda layer: _debian(archive, layer, epoch)),
        ("Python packages", lambda layer: _tree(overlay, layer, epoch, _packages)),
        ("models", lambda layer: _tree(overlay, layer, epoch, _models)),
        ("Hob", lambda layer: _tree(overlay, layer, epoch, _own)),
    )
    layers = []
    for number, (name, fill) in enumerate(steps):
        told(name, number / len(steps))
        raw = blobs / "layer"
        with tarfile.open(raw, "w", format=tarfile.PAX_FORMAT) as layer:
            fill(layer)
        with raw.open("rb") as file:
            unpacked = hashlib.file_digest(file, "sha256").hexdigest()
        toolbox.run(["gzip", "--no-name", "-6", raw], write=[blobs], timeout=TIMEOUT)
        layers.append(_keep(blobs, LAYER, raw.with_name("layer.gz"), unpacked))
    return layers


def _debian(archive: Path, layer: tarfile.TarFile, epoch: int) -> None:
    """The base system without devices and set-uid programs, with Hob's user and folder."""
    found = {"passwd": False, "group": False}
    with tarfile.open(archive, "r|") as source:
        for member in source:
            name = member.name.removeprefix("./").rstrip("/")
            if name in ("", ".", *NAMELESS) or member.isdev():
                continue
            if any(name.startswith(f"{folder}/") for folder in EMPTIED):
                continue
            _settle(member, name, epoch)
            if member.islnk():
                member.linkname = member.linkname.removeprefix("./")
            member.mode &= 0o1777  # nobody becomes someone else by starting a program
            content = source.extractfile(member) if member.isreg() else None
            if name in ("etc/passwd", "etc/group"):
                assert content is not None
                text = content.read() + _account(name.removeprefix("etc/"))
                member.size, content = len(text), io.BytesIO(text)
                found[name.removeprefix("etc/")] = True
            layer.addfile(member, content)
    if not all(found.values()):
        raise FormatError(f"{archive} is no root file system: it lacks /etc/passwd or /etc/group")
    # A new volume takes over owner and mode of the folder it is mounted on.
    folder = tarfile.TarInfo(DATA)
    folder.type, folder.mode, folder.mtime, folder.uid, folder.gid = tarfile.DIRTYPE, 0o700, epoch, USER, USER
    layer.addfile(folder)


def _account(file: str) -> bytes:
    """Hob's line in /etc/passwd or /etc/group."""
    return (
        f"hob:x:{USER}:{USER}:Hob:/{DATA}:/usr/sbin/nologin\n".encode()
        if file == "passwd"
        else f"hob:x:{USER}:\n".encode()
    )


def _packages(name: str) -> bool:
    """Whether a path of the overlay is one of Python's packages."""
    return name.startswith(f"{SITE}/") and not _own(name) and not _models(name)


def _models(name: str) -> bool:
    """Whether a path of the overlay belongs to a model, the built-in one included."""
    return any(name == folder or name.startswith(f"{folder}/") for folder in MODELS)


def _own(name: str) -> bool:
    """Whether a path of the overlay is Hob's own, as opposed to what it needs and what it runs."""
    if _models(name) or any(name == folder or name.startswith(f"{folder}/") for folder in SYSTEM):
        return False
    if name.startswith(f"{SITE}/"):
        part = name.removeprefix(f"{SITE}/").partition("/")[0]
        return part in application.PACKAGES or part.startswith("hob_appliance-")
    return True


def _tree(tree: Path, layer: tarfile.TarFile, epoch: int, wanted: Callable[[str], bool]) -> None:
    """The wanted files of a tree with the folders they lie in, in a fixed order, all of them root's."""
    folders: set[Path] = set()
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if not wanted(name) or name == ".inputs.json" or (path.is_dir() and not path.is_symlink()):
            continue
        for parent in reversed(path.relative_to(tree).parents[:-1]):
            if parent not in folders:
                folders.add(parent)
                _add(layer, tree / parent, parent.as_posix(), epoch)
        _add(layer, path, name, epoch)


def _add(layer: tarfile.TarFile, path: Path, name: str, epoch: int) -> None:
    member = layer.gettarinfo(path, name)
    if member.islnk():  # two names of one file in the cache are two files here
        member.type, member.linkname, member.size = tarfile.REGTYPE, "", path.stat().st_size
    member.uid = member.gid = 0
    member.mode = 0o755 if member.isdir() or member.mode & 0o111 else 0o644
    _settle(member, name, epoch)
    member.mtime = epoch  # the same layer for every architecture, whenever its packages were locked
    with path.open("rb") if member.isreg() else contextlib.nullcontext() as content:
        layer.addfile(member, content)


def _settle(member: tarfile.TarInfo, name: str, epoch: int) -> None:
    """Take away what differs from one machine and one day to the next."""
    member.name, member.uname, member.gname = name, "", ""
    member.mtime = min(int(member.mtime), epoch)
    member.pax_headers = {}


def _config(
    architecture: str, layers: Sequence[Blob], version: str, title: str, epoch: int
) -> dict[str, Any]:
    """How the image is run (config.md)."""
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config: dict[str, Any] = {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "ExposedPorts": {f"{PORT}/tcp": {}},
            "Env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG=C.UTF-8",
                f"HOME=/{DATA}",
                # What a Jetson's or a server's NVIDIA runtime puts into the container; others ignore it.
                "NVIDIA_VISIBLE_DEVICES=all",
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            ],
            "Entrypoint": ["/usr/bin/hob"],
            "Cmd": ["serve"],
            "Volumes": {f"/{DATA}": {}},
            "WorkingDir": f"/{DATA}",
            "StopSignal": "SIGTERM",
            # Docker's addition to the specification, which other runtimes leave alone; times in nanoseconds.
            "Healthcheck": {
                "Test": ["CMD", "/opt/hob/bin/python", "-I", "-c", HEALTH],
                "Interval": 30 * 10**9,
                "Timeout": 5 * 10**9,
                "StartPeriod": 60 * 10**9,
                "Retries": 3,
            },
            "Labels": {
                "org.opencontainers.image.title": title,
                "org.opencontainers.image.description": "An offline LLM appliance for your network",
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.created": created,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.unpacked}" for layer in layers]},
        "history": [
            {"created": created, "created_by": f"hob image build oci: {name}"}
            for name in ("Debian", "Python packages", "models", "Hob")
        ],
    }
    if architecture == "arm64":
        config["variant"] = "v8"
    return config


def _store(blobs: Path, kind: str, content: Any) -> Blob:
    """A JSON document as a blob."""
    path = blobs / "document"
    path.write_bytes(_json(content))
    return _keep(blobs, kind, path)


def _keep(blobs: Path, kind: str, path: Path, unpacked: str = "") -> Blob:
    """A finished file under its digest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kept = path.replace(blobs / digest)
    return Blob(kind, digest, kept.stat().st_size, unpacked)


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _archive(folder: Path, names: Sequence[str], out: Path, epoch: int) -> None:
    """The layout as one tar archive, whole or not at all."""
    part = out.with_name(f".{out.name}.part")
    try:
        with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as archive:
            for path in _files(folder, names):
                member = archive.gettarinfo(path, path.relative_to(folder).as_posix())
                member.uid = member.gid = 0
                member.mode, member.mtime = 0o755 if member.isdir() else 0o644, epoch
                member.uname = member.gname = ""
                with path.open("rb") if member.isreg() else contextlib.nullcontext() as content:
                    archive.addfile(member, content)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Files and folders of the layout in the order they are written."""
    for name in names:
        yield folder / name
        yield from sorted((folder / name).rglob("*"))
