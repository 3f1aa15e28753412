"""The model that answers when nobody chooses, where the settings leave that open."""

import os
from pathlib import Path

from appliance.library import space
from appliance.library.shelf import put

FILE = "default-model"
MAX_NAME = 400


def read(data_dir: Path) -> str:
    """The name that was chosen; "" when none was, or the file cannot be read."""
    try:
        with (data_dir / FILE).open(encoding="utf-8") as stream:
            return stream.read(MAX_NAME).strip()
    except (OSError, ValueError):
        return ""


def write(data_dir: Path, name: str) -> None:
    """Choose a model; "" leaves it to the settings again.

    Raises:
        LibraryError, DiskFullError: the disk refuses.
    """
    file = data_dir / FILE
    with space.writing(data_dir):
        if not name:
            file.unlink(missing_ok=True)
            return
        data_dir.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{FILE}.{os.getpid()}.part")
        partial.write_text(f"{name}\n", encoding="utf-8")
        put(partial, file)
