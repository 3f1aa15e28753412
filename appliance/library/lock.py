"""Who uses a model's directory: readers share a lock on it, whoever removes it needs it alone (flock(2)).

The kernel ends a lock with its process, so none outlives a crash. Imported by the engine process: nothing
heavy here.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import ConflictError


@contextlib.contextmanager
def in_use(directory: Path) -> Iterator[None]:
    """Hold a model's directory, so that nobody removes it.

    Raises:
        ConflictError: it is being removed at this moment.
        OSError: it is not there.
    """
    with locked(directory, exclusive=False, busy=f"{directory.name} is being removed"):
        yield


@contextlib.contextmanager
def locked(path: Path, *, exclusive: bool, busy: str, hint: str = "Wait until it is done.") -> Iterator[int]:
    """Hold a lock on a directory and yield its descriptor.

    Raises:
        ConflictError: another process holds it; the message is `busy`.
        OSError: it is not there.
    """
    held = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(held, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(busy, hint=hint) from error
        if not os.path.samestat(os.stat(path), os.fstat(held)):  # another one was made in its place meanwhile
            raise ConflictError(busy, hint=hint)
        yield held
    finally:
        os.close(held)
