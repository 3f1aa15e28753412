"""The API key of another server, from a file: never in a setting, an argument or a log."""

import os
import stat
from pathlib import Path

from appliance.errors import SettingsError

MAX_BYTES = 4096
FOREIGN = stat.S_IWGRP | stat.S_IRWXO


def read_key(path: Path) -> str:
    """The key in a file, without the whitespace around it. Read for each request: a new one counts at once.

    Raises:
        SettingsError: the file is missing, open to others, or holds no key; its content is never told.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"the key file {path} cannot be read: {error.strerror}") from error
    if mode & FOREIGN:
        raise SettingsError(
            f"the key file {path} is open to other users (mode {stat.S_IMODE(mode):04o})",
            hint=f"Close it: chmod 600 {path}",
        )
    key = raw.decode("ascii", "replace").strip()
    if not key or len(raw) > MAX_BYTES or not all("!" <= character <= "~" for character in key):
        raise SettingsError(
            f"the key file {path} does not hold one key", hint="It has a single line of ASCII: the key alone."
        )
    return key
