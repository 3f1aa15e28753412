"""The models folder: versions side by side, and how one comes and goes whole, whatever happens meanwhile.

    models/NAME/               copied or converted by hand; no manifest until it is adopted
    models/NAME@VERSION/       added; all files listed in its manifest, none ever changed in place
    models/.incoming/KEY/      what one source has sent so far; kept for a while, so that it can go on
    models/.gone-*/            being deleted

A version appears by one rename of a directory that is complete and on disk, and vanishes by one. Whoever
reads a version's files holds a shared lock on its directory, whoever removes it needs an exclusive one.
The kernel ends locks with their process, so a crash leaves none.
"""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.errors import ConflictError, DamagedError, InvalidRequestError, UnknownModelError
from appliance.library import manifest, space
from appliance.library.lock import in_use, locked
from appliance.library.manifest import MANIFEST, File, Manifest
from builder.compile.mlc import CONFIG

log = logging.getLogger(__name__)

INCOMING = ".incoming"
GONE = ".gone-"

KEPT = 7 * 24 * 3600
"""Seconds that what an interrupted download has fetched waits for it to go on."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a model on disk.

    Attributes:
        name: the model's name, without version.
        path: its directory.
        manifest: None for a directory that was copied by hand; see `Shelf.adopt`.
        problem: why there is no manifest although the file is there; else "".
        current: whether the bare name means this version.
    """

    name: str
    path: Path
    manifest: Manifest | None
    problem: str
    current: bool

    @property
    def version(self) -> str:
        """Twelve hex digits, or "" for a directory without a manifest."""
        return self.manifest.version if self.manifest else ""

    @property
    def reference(self) -> str:
        """The shortest name that means this version and no other."""
        return self.name if self.current or not self.version else f"{self.name}@{self.version}"


class Shelf:
    """The models of one folder. Several processes may use it at the same time."""

    def __init__(self, folder: Path, reserved: frozenset[str] = frozenset()) -> None:
        """Work on `folder`, which need not exist. Nothing is ever added under a `reserved` name."""
        self.folder = folder
        self._reserved = reserved
        self._read: dict[Path, tuple[tuple[int, int], Manifest | None, str]] = {}

    def entries(self) -> list[Entry]:
        """Every version of every model, by name, the one added last first."""
        found: defaultdict[str, list[tuple[int, Path, Manifest | None, str]]] = defaultdict(list)
        for path in self._directories():
            kept, problem = self._manifest(path)
            name = path.relative_to(self.folder).as_posix()
            if kept is not None and name.endswith(f"@{kept.version}"):
                name = name.removesuffix(f"@{kept.version}")
            added = kept.added if kept else 0
            found[name].append((added, path, kept, problem))
        entries = []
        for name in sorted(found):
            # One without a manifest was put there by hand, under the bare name: that is what it means.
            versions = sorted(found[name], key=lambda v: (v[2] is None, v[0], v[1]), reverse=True)
            entries += [
                Entry(name, path, kept, problem, current=position == 0)
                for position, (_, path, kept, problem) in enumerate(versions)
            ]
        return entries

    def versions(self, name: str) -> list[Entry]:
        """The versions of one model, the one that the bare name means first."""
        return [entry for entry in self.entries() if entry.name == name]

    def find(self, reference: str) -> Entry:
        """The version that NAME, NAME@VERSION or NAME@REVISION means; both may be cut short.

        Raises:
            UnknownModelError: none, or several.
        """
        name, at, wanted = reference.rpartition("@")
        if not at:
            name, wanted = reference, ""
        entries = self.entries()
        for entry in entries:
            if entry.name == reference and entry.current:
                return entry
        matching = [
            entry
            for entry in entries
            if entry.name == name and entry.manifest and entry.manifest.is_meant_by(wanted)
        ]
        if len(matching) == 1:
            return matching[0]
        known = ", ".join(entry.reference for entry in entries if entry.name == name)
        raise UnknownModelError(
            f"model {reference!r} is not installed",
            param="model",
            hint=f"There is {known}." if known else "`hob model list` shows what is.",
        )

    def holding(self, wanted: File) -> Path | None:
        """A file on the shelf with this content, by the manifests; None where there is none."""
        for entry in self.entries():
            for file in entry.manifest.files if entry.manifest else ():
                if (file.sha256, file.size) == (wanted.sha256, wanted.size):
                    return entry.path / file.name
        return None

    def borrow(self, wanted: File, target: Path) -> bool:
        """Make `target` the same file as one on the shelf with this content, if there is a sound one.

        Where the file system has no hard links, the content is copied.
        """
        known = self.holding(wanted)
        if known is None:
            return False
        try:
            if manifest.digest(known).sha256 != wanted.sha256:
                return False  # damaged there; a sound one is fetched
            target.unlink(missing_ok=True)
            try:
                os.link(known, target)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP):
                    raise
                shutil.copyfile(known, target)
        except FileNotFoundError:  # removed this moment
            return False
        return True

    @contextlib.contextmanager
    def incoming(self, key: str) -> Iterator[Path]:
        """Yield the folder for what the source `key` sends, with what it sent before; ours alone meanwhile.

        An empty folder is removed afterwards. Leftovers of others that are too old are removed as well.

        Raises:
            ConflictError: another process is adding the same.
            LibraryError: the folder cannot be made.
        """
        folder = self.folder / INCOMING / key
        with space.writing(self.folder):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, exclusive=True, busy="another process is adding this model") as held:
            self.sweep()
            os.utime(held)
            try:
                yield folder
            finally:
                with contextlib.suppress(OSError):  # not empty, or gone: committed
                    folder.rmdir()

    def sweep(self, *, seconds: float = KEPT) -> None:
        """Remove what killed processes left, and downloads that nobody has gone on with for so long."""
        now = time.time()
        for stale in [*self.folder.glob(f"{GONE}*"), *self.folder.glob(f"{INCOMING}/*")]:
            try:
                if stale.name.startswith(GONE) or now - stale.stat().st_mtime >= seconds:
                    with locked(stale, exclusive=True, busy=str(stale)):
                        shutil.rmtree(stale)
            except ConflictError:
                pass  # in use
            except OSError as error:  # it takes room and does no other harm
                log.warning("%s cannot be removed: %s", stale, error.strerror)

    def commit(self, directory: Path, new: Manifest) -> Entry:
        """Put a complete directory on the shelf, by a rename. Everything in it is on disk before.

        Where the same version is there already, its files are replaced one by one by these: that repairs it.

        Raises:
            InvalidRequestError, ConflictError: as `check_free`.
            LibraryError, DiskFullError: the disk refuses.
        """
        self.check_free(new.name)
        with space.writing(self.folder), self._changing():
            before = self.versions(new.name)
            # A clock that was set back must not make the new version the older one.
            latest = max((entry.manifest.added for entry in before if entry.manifest), default=-1)
            new = msgspec.structs.replace(new, added=max(new.added, latest + 1))
            (directory / MANIFEST).write_bytes(manifest.encode(new))
            settle(directory)
            same = next((entry.path for entry in before if entry.version == new.version), None)
            if same is None:
                target = self.folder / f"{new.name}@{new.version}"
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.parent != self.folder:
                    target.parent.chmod(0o755)  # as the folders of models: for the engine's user
                directory.rename(target)
                sync(target.parent)
                sync(self.folder)
            else:
                for file in sorted(directory.iterdir(), key=lambda file: file.name == MANIFEST):
                    file.replace(same / file.name)
                sync(same)
                shutil.rmtree(directory)  # a link to the same file stays where it was
        return self.find(f"{new.name}@{new.version}")

    def adopt(self, name: str, origin: manifest.Origin, licence: str = "") -> Entry:
        """Give a directory that was copied by hand a manifest, in place.

        Raises:
            UnknownModelError: there is none of this name.
            ConflictError: it is being removed, or adopted by another process.
            LibraryError, DiskFullError: the disk refuses.
        """
        entry = self.find(name)
        if entry.manifest is not None:
            return entry
        with space.writing(self.folder), in_use(entry.path):
            described = describe(entry.path, manifest.checked_name(name), origin, licence)
            with self._changing():
                partial = entry.path / f".{MANIFEST}.part"
                partial.write_bytes(manifest.encode(described))
                sync(partial)
                partial.replace(entry.path / MANIFEST)
                sync(entry.path)
        return self.find(name)

    def remove(self, entry: Entry, *, force: bool = False) -> None:
        """Take a version off the shelf. Files that other versions share stay theirs.

        Raises:
            ConflictError: it is in use, and not `force`. With `force` whoever has it open goes on with it.
            LibraryError: the disk refuses.
        """
        with space.writing(self.folder), self._changing():
            self._discard(entry.path, force=force, name=entry.reference)
            if entry.path.parent != self.folder:
                with contextlib.suppress(OSError):  # the owner has other models
                    entry.path.parent.rmdir()

    def check_free(self, name: str) -> None:
        """See that a version may be added under a name.

        Raises:
            InvalidRequestError: not a name.
            ConflictError: the built-in model's, or that of a directory put there by hand.
        """
        manifest.checked_name(name)
        if name in self._reserved:
            raise InvalidRequestError(
                f"{name} is the built-in model", param="name", hint="Choose another name: --name NAME."
            )
        if any(entry.manifest is None for entry in self.versions(name)):
            raise ConflictError(
                f"{self.folder / name} is there already and has no manifest",
                hint=f"`hob model add {name}` takes it into the library; or choose another --name.",
            )

    def _discard(self, path: Path, *, force: bool, name: str = "") -> None:
        """Rename a directory out of sight, then delete it; the rename is what counts."""
        # A rename alone: on a full disk there may be no room for so much as a new folder.
        gone = self.folder / f"{GONE}{secrets.token_hex(8)}"
        with contextlib.ExitStack() as stack:
            if not force:
                busy = f"{name} is in use"
                hint = "Stop Hob or let it load another model; --force removes it all the same."
                stack.enter_context(locked(path, exclusive=True, busy=busy, hint=hint))
            path.rename(gone)
            sync(path.parent)
        shutil.rmtree(gone)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the shelf while a version appears or vanishes; others wait their turn."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield
        finally:
            os.close(held)

    def _directories(self) -> Iterator[Path]:
        for pattern in ("*", "*/*"):
            for config in self.folder.glob(f"{pattern}/{CONFIG}"):
                # Directories in the making begin with a dot.
                if not any(part.startswith(".") for part in config.parent.relative_to(self.folder).parts):
                    yield config.parent

    def _manifest(self, path: Path) -> tuple[Manifest | None, str]:
        """A directory's manifest or what is wrong with it; read again when the file has changed."""
        try:
            state = (path / MANIFEST).stat()
        except OSError:
            return None, ""
        signature = (state.st_mtime_ns, state.st_ino)
        known = self._read.get(path)
        if known is None or known[0] != signature:
            try:
                known = signature, manifest.read(path), ""
            except DamagedError as error:
                known = signature, None, error.message
            self._read[path] = known
        return known[1], known[2]


def describe(directory: Path, name: str, origin: manifest.Origin, licence: str) -> Manifest:
    """The manifest of a directory as it is now; reads every file.

    Raises:
        OSError: a file cannot be read.
        DamagedError: a file has a name that no manifest can hold.
    """
    files = [manifest.digest(path) for path in sorted(directory.iterdir()) if listed(path)]
    made = Manifest(1, name, int(time.time()), origin, licence, manifest.named(files))
    return manifest.decode(manifest.encode(made), str(directory))


def listed(path: Path) -> bool:
    """Whether a file of a model's directory belongs to the model: regular, not hidden, not the manifest."""
    return path.is_file() and not path.name.startswith(".") and path.name != MANIFEST


def settle(directory: Path) -> None:
    """Force a directory's files and then itself to disk, readable for others and for nobody to change."""
    for file in directory.iterdir():
        file.chmod(0o444)
        sync(file)
    directory.chmod(0o755)
    sync(directory)


def put(partial: Path, target: Path) -> None:
    """Give a finished file its name, in place of what has it; a power cut leaves either of them, whole."""
    sync(partial)
    partial.replace(target)
    sync(target)  # FAT keeps size and place of a file beside its name: those of a new name are yet to be
    sync(target.parent)


def sync(path: Path) -> None:
    """Force a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
