"""An update file from another machine, resumable, as models are fetched."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from appliance.library import download, remote, space
from appliance.library.remote import Remote
from appliance.update.arrivals import folder


def fetch(file: Remote, data_dir: Path, received: Callable[[int, int | None], None]) -> Path:
    """Fetch a file, going on with what an earlier attempt left. `received` hears bytes, and of how many.

    Raises:
        DownloadError, DamagedError, AuthenticationError, DiskFullError: as `library.download.fetch`.
    """
    place = folder(data_dir)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    with remote.session() as client:
        if file.size is None:
            file = remote.look(client, file)
        if file.size is not None:
            space.ensure(place, file.size - _here(place / file.name), space.RESERVE)
        target = place / file.name
        download.fetch(client, file, target, lambda count: received(count, file.size))
    return target


def _here(target: Path) -> int:
    """Bytes of a file that an earlier attempt left."""
    with contextlib.suppress(OSError):
        return target.with_name(f"{target.name}.part").stat().st_size
    return 0
