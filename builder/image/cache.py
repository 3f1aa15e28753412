"""What the stages of an image leave behind, kept by the content they were made from.

A stage's key is the hash of everything its result depends on. A result appears under its key whole or not
at all, so a build that was interrupted goes on where it stopped, and two builds at once make each result
only once.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from builder.errors import SpaceError

CHUNK = 1 << 20


def default_root() -> Path:
    """$HOB_IMAGE_CACHE, or `hob/image` in the user's cache folder."""
    chosen = os.environ.get("HOB_IMAGE_CACHE")
    return Path(chosen).absolute() if chosen else user_cache_path("hob") / "image"


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(path: Path, ignored: tuple[str, ...] = ("__pycache__",)) -> str:
    """SHA-256 of a folder: names, kinds, modes and contents; times and owners do not count."""
    found = hashlib.sha256()
    for entry in sorted(path.rglob("*")):
        if not set(entry.relative_to(path).parts).isdisjoint(ignored):
            continue
        name = entry.relative_to(path).as_posix()
        if entry.is_symlink():
            found.update(f"l {name}\0{os.readlink(entry)}\0".encode())
        elif entry.is_file():
            found.update(f"f {name}\0{entry.stat().st_mode & 0o7777:o}\0{file_digest(entry)}\0".encode())
        else:
            found.update(f"d {name}\0".encode())
    return found.hexdigest()


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise `SpaceError` unless the disk under `folder` has `needed` bytes free."""
    nearest = folder
    while not nearest.exists():
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise SpaceError(
            f"{purpose} needs {needed / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free",
            hint="Free some room, or set HOB_IMAGE_CACHE to a folder on a larger disk.",
        )


@dataclass(frozen=True)
class Kept:
    """One result in the cache: its stage, key, place, size in bytes and when it was last used (Unix time)."""

    stage: str
    key: str
    path: Path
    size: int
    used: float


@dataclass(frozen=True)
class Cache:
    """The folder of results. `remove` deletes a tree, and is other than `rmtree` where owners are mapped."""

    root: Path
    remove: Callable[[Path], None] = shutil.rmtree

    def place(self, stage: str, key: str) -> Path:
        """Where the result of a stage lies or will lie."""
        return self.root / "stages" / stage / key[:32]

    def has(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the result made from these inputs is there."""
        return self.place(stage, digest(inputs)).exists()

    def get(self, stage: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder with the result made from `inputs` (JSON values), making it first if it is not there.

        `make` fills an empty folder; if it raises, nothing is kept. The folder has an `.inputs.json` beside
        the result's own files, which tells a person what it was made from.
        """
        place = self.place(stage, digest(inputs))
        with self.lock(f"{stage}-{place.name}"):
            if not place.exists():
                with self.scratch(stage) as scratch:
                    made = scratch / "result"
                    made.mkdir()
                    make(made)
                    (made / ".inputs.json").write_text(json.dumps(inputs, indent=2, sort_keys=True) + "\n")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    made.rename(place)
            os.utime(place / ".inputs.json")
        return place

    @contextlib.contextmanager
    def scratch(self, purpose: str) -> Iterator[Path]:
        """An empty folder on the cache's disk, removed at the end, however it comes."""
        work = self.root / "scratch"
        with self.lock("scratch"):
            work.mkdir(parents=True, exist_ok=True)
            self.sweep(work)
            folder = Path(tempfile.mkdtemp(prefix=f"{purpose}.", dir=work))
            held = os.open(folder, os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            if folder.exists():
                self.remove(folder)
            os.close(held)

    def sweep(self, work: Path) -> None:
        """Remove what processes that are no more have left: kill -9 leaves no time to tidy up.

        Who works in a folder holds a lock on it, which ends with the process.
        """
        for folder in work.iterdir():
            found = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                self.remove(folder)
            finally:
                os.close(found)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock that the kernel lets go of when this process ends."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def kept(self) -> list[Kept]:
        """Everything in the cache, the longest unused first."""
        found = []
        for place in sorted((self.root / "stages").glob("*/*")):
            size = sum(file.lstat().st_size for file in place.rglob("*") if not file.is_dir())
            used = (place / ".inputs.json").stat().st_mtime
            found.append(Kept(place.parent.name, place.name, place, size, used))
        return sorted(found, key=lambda kept: kept.used)
