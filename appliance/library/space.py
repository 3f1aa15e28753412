"""Room on the disk: asked for before work starts, and said plainly when it runs out."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import DiskFullError, LibraryError

RESERVE = 200 * 2**20
"""Bytes that always stay free: chats and a compiled library need them."""

FULL = {errno.ENOSPC, errno.EDQUOT}


def free(folder: Path) -> int:
    """Bytes that this user may still write on the disk of `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def missing(needed: int, available: int, reserve: int) -> int:
    """Bytes that are missing for `needed` more beside the reserve; 0 when there is room."""
    return max(0, needed + reserve - available)


def ensure(folder: Path, needed: int, reserve: int) -> None:
    """See that `needed` bytes fit and `reserve` stay free.

    Raises:
        DiskFullError: they do not; says how much is missing.
    """
    available = free(folder)
    if short := missing(needed, available, reserve):
        raise DiskFullError(
            f"not enough room in {folder}: {size(needed)} needed, {size(available)} free,"
            f" {size(reserve)} stay reserved",
            hint=f"Free {size(short)}: `hob model list` shows what takes room, `hob model remove` frees it.",
        )


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn the errors of a disk into errors for people; they name `place` where the system names no file.

    Raises:
        DiskFullError: no room.
        LibraryError: a file that is too large for the disk's format, no permission, a device that is gone.
    """
    try:
        yield
    except OSError as error:
        raise explained(error, place) from error


def explained(error: OSError, place: Path) -> LibraryError | DiskFullError:
    """An error of the system as one of ours."""
    file = error.filename if isinstance(error.filename, str) else place
    if error.errno in FULL:
        return DiskFullError(
            f"the disk is full: {file} cannot be written",
            hint=f"{size(free(place))} are free in {place}; `hob model remove` frees more.",
        )
    if error.errno == errno.EFBIG:
        return LibraryError(
            f"{file} is too large for the disk's format",
            hint="FAT32 holds no file over 4 GiB: format the stick as exFAT or ext4.",
        )
    if error.errno in (errno.ENOENT, errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE):
        return LibraryError(
            f"{file} cannot be read or written: {error.strerror}", hint="Was the disk or stick removed?"
        )
    return LibraryError(f"{file}: {error.strerror}", hint="Look at the disk and its permissions.")


def size(count: int) -> str:
    """Bytes for people: "12 MB", "1.2 GB"."""
    if count < 10**6:
        return f"{count / 10**3:,.0f} kB"
    return f"{count / 10**6:,.0f} MB" if count < 10**9 else f"{count / 10**9:,.1f} GB"
