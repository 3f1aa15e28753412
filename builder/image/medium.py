"""A disk while it is being written: exclusively ours, honestly synchronised, read back past the page cache.

A regular file stands in for a disk wherever one is named: virtual machines boot from it.
"""

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from builder.errors import DriveError

PIECE = 4 * 2**20
"""Bytes written or read at once; a multiple of every sector and erase block size that divides 4 MiB."""

_ALIGNED = 4096  # what O_DIRECT asks for at most: the page, and the largest sector
_BLKRRPART = 0x125F  # _IO(0x12, 95), linux/fs.h: read the partition table again


class Medium:
    """A disk, or a file, opened for overwriting. Use as a context manager.

    Attributes:
        path: what was opened.
        size: bytes.
    """

    def __init__(self, path: Path) -> None:
        """Open it. The kernel grants a disk only if nothing has mounted or claimed it or a part of it.

        Raises:
            DriveError: in use, not allowed, not there, or neither disk nor file.
        """
        self.path = path
        try:
            block = stat.S_ISBLK(path.stat().st_mode)
            # Without O_CREAT, O_EXCL is Linux's claim on a whole disk: open(2).
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if block else 0))
        except OSError as error:
            raise _refused(path, error) from error
        self._block = block
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> "Medium":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write `data` at `offset`. It is on the medium after `sync` only.

        Raises:
            DriveError: the medium fails or ends.
        """
        view = memoryview(data)
        if offset + len(view) > self.size:
            raise DriveError(
                f"{self.path} ends at {self.size} bytes, the image goes on", hint="Take a larger one."
            )
        while view:
            try:
                done = os.pwrite(self._fd, view[:PIECE], offset)
            except OSError as error:
                raise self._failed("writing", offset, error) from error
            offset, view = offset + done, view[done:]

    def sync(self) -> None:
        """Wait until everything written is on the medium.

        Raises:
            DriveError: the medium fails.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed("writing", None, error) from error

    def clear(self, offset: int, length: int) -> None:
        """Zeros from `offset` on, as far as the medium goes."""
        self.write(offset, bytes(max(0, min(length, self.size - offset))))

    def read_back(self, start: int, end: int) -> Iterator[memoryview]:
        """What the medium really holds from `start` to `end`, in pieces that are valid until the next.

        Stops early where the medium ends.

        Raises:
            DriveError: it cannot be read.
        """
        direct = self._direct()
        buffer = mmap.mmap(-1, PIECE)  # anonymous memory is aligned to pages
        whole = memoryview(buffer)
        try:
            at = start - start % _ALIGNED
            while at < end:
                try:
                    count = os.preadv(
                        direct, [whole[: min(PIECE, -(-(end - at) // _ALIGNED) * _ALIGNED)]], at
                    )
                except OSError as error:
                    raise self._failed("reading", at, error) from error
                with whole[max(0, start - at) : min(count, end - at)] as piece:
                    yield piece
                if count < PIECE:
                    return
                at += count
        finally:
            whole.release()
            buffer.close()
            os.close(direct)

    def reread_table(self) -> None:
        """Have the kernel look at the partition table again. Somebody else's interest in it does no harm."""
        if self._block:
            try:
                fcntl.ioctl(self._fd, _BLKRRPART)
            except OSError as error:
                # EINVAL: a disk that never has partitions, such as a loop device; EBUSY: looked at right now.
                if error.errno not in (errno.EINVAL, errno.EBUSY, errno.ENOTTY, errno.EACCES):
                    raise self._failed("looking at", None, error) from error

    def _direct(self) -> int:
        """A descriptor whose reads come from the medium; where O_DIRECT is unknown, from an emptied cache."""
        path = f"/proc/self/fd/{self._fd}"  # the very same medium, whatever the name means by now
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise self._failed("reading", None, error) from error
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _failed(self, doing: str, offset: int | None, error: OSError) -> DriveError:
        where = "" if offset is None else f" at {offset // 2**20} MiB"
        return DriveError(
            f"{self.path}: {doing}{where} failed: {os.strerror(error.errno or 0)}",
            hint="The medium or its reader fails, or was pulled out. It does not boot as it is; try another.",
        )


def _refused(path: Path, error: OSError) -> DriveError:
    hints = {
        errno.EBUSY: "Something uses it: unmount it, or stop what runs on it.",
        errno.EACCES: "Writing to a disk takes root's rights: sudo.",
        errno.EPERM: "Writing to a disk takes root's rights: sudo.",
        errno.EISDIR: "Name a disk, such as /dev/sdX.",
        errno.ENOENT: "Leave the name out to see which disks there are.",
        errno.EROFS: "A card may have a slider for that.",
        errno.ENOMEDIUM: "Is there a card in the reader?",
    }
    number = error.errno or 0
    return DriveError(f"{path}: {os.strerror(number)}", hint=hints.get(number, ""))
