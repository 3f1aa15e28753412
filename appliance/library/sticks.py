"""Models on sticks and disks that are plugged in: what a person would point at."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.library.archive import SUFFIX
from builder.compile.mlc import CONFIG

ROOTS: Final = (Path("/media"), Path("/run/media"), Path("/mnt"), Path("/Volumes"))
DEPTH: Final = 5  # /run/media/USER/STICK/FOLDER/MODEL
MOST: Final = 50  # models that are listed
LOOKED_AT: Final = 2_000  # directories at most: a stick may hold a family's photographs
WEIGHTS: Final = (".safetensors", ".bin", ".onnx")


@dataclass(frozen=True, slots=True)
class Found:
    """A file or folder that looks like a model; `size` in bytes."""

    path: Path
    size: int


def find(roots: Sequence[Path] = ROOTS) -> list[Found]:
    """Models under the places where sticks are mounted, by path. Looks at names and sizes only.

    Bounded in work; a stick that is pulled out meanwhile is passed over.
    """
    found: list[Found] = []
    todo = [(root, 0) for root in reversed(roots)]
    for _ in range(LOOKED_AT):
        if not todo or len(found) >= MOST:
            break
        folder, depth = todo.pop()
        models, folders = _look(folder)
        found += models
        if depth < DEPTH:
            todo += [(inner, depth + 1) for inner in reversed(folders)]
    return found[:MOST]


def _look(folder: Path) -> tuple[list[Found], list[Path]]:
    """What in a folder is a model, the folder itself perhaps, and the folders to look into."""
    try:
        entries = sorted(_visible(folder), key=lambda entry: entry.name)
        sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        folders = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # not there, not ours to read, or gone
        return [], []
    if CONFIG in sizes or ("config.json" in sizes and any(name.endswith(WEIGHTS) for name in sizes)):
        return [Found(folder, sum(sizes.values()))], []
    return [
        Found(folder / name, size) for name, size in sizes.items() if name.lower().endswith((".gguf", SUFFIX))
    ], folders


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                yield entry
