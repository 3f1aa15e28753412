"""One file from another machine, resumable, into a file that is right or is not there.

A transfer that breaks off or stalls goes on where it stopped (RFC 9110 §14, with If-Range, so that what has
changed meanwhile starts anew). What arrives is held against the length and checksum that were announced; one
byte more than announced ends it.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx2 as httpx

from appliance.errors import DamagedError, DownloadError
from appliance.library import space
from appliance.library.remote import USUAL, BrokenOffError, Patience, Remote, opened, reason

log = logging.getLogger(__name__)

CHUNK = 2**18
ATTEMPTS = 6
"""Tries without a megabyte of progress between them."""
PROGRESS = 2**20
LONGEST_PAUSE = 30.0
SETTLE = 64 * 2**20
"""Bytes between two times that a transfer is forced to disk."""


def fetch(
    client: httpx.Client,
    remote: Remote,
    target: Path,
    received: Callable[[int], None] = lambda count: None,
    patience: Patience = USUAL,
) -> None:
    """Fetch a file to `target`, going on with what an earlier attempt left beside it.

    `received` is told, again and again, how many bytes are here.

    Raises:
        DownloadError: the server refuses, stays silent, or sends another length than it announced.
        DamagedError: the content is not what its checksum says, twice.
        AuthenticationError: a key or token is missing or wrong.
        DiskFullError, LibraryError: the disk refuses.
    """
    part = _Part(target)
    with space.writing(target.parent):
        for last in (False, True):
            if not (remote.sha256 or remote.git):  # nothing would show that a part of it is wrong
                part.shorten()
            resumed = part.size > 0
            _complete(client, remote, part, received, patience)
            if (wrong := part.compare(remote)) == "":
                part.finish()
                return
            part.discard()
            # What lay here may have suffered in a power cut: one try from the start.
            if last or not resumed:
                break
            log.warning("%s: %s; it is fetched anew", remote.name, wrong)
    raise DamagedError(
        f"{remote.name} from {remote.host} is not what it should be: {wrong}",
        hint="Try again later; if it stays so, the file is damaged there.",
    )


class _Part:
    """What is here of a file, `NAME.part`, and a note beside it on what that is worth.

    Attributes:
        etag: the server's tag of the version that the bytes belong to; "" when it told none.
        safe: bytes that were forced to disk. After a power cut there may be more in the file, of any content.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.file = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")
        try:
            noted = json.loads(self._note.read_text())
            self.etag, self.safe = str(noted["etag"]), int(noted["safe"])
        except (OSError, ValueError, KeyError, TypeError):  # lost in a power cut, or there was none
            self.etag, self.safe = "", 0

    @property
    def size(self) -> int:
        try:
            return self.file.stat().st_size
        except FileNotFoundError:
            return 0

    def begin(self, etag: str) -> None:
        """Forget what is here and note which version comes now."""
        self.discard()
        self.etag = etag
        self._write()

    def shorten(self) -> None:
        """Give up what may not be on disk."""
        if self.size > self.safe:
            os.truncate(self.file, self.safe)

    def settle(self, stream: BinaryIO) -> None:
        """Force what was written to disk, and note how much that is."""
        stream.flush()
        os.fsync(stream.fileno())
        self.safe = os.fstat(stream.fileno()).st_size
        self._write()

    def discard(self) -> None:
        self.file.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self.etag, self.safe = "", 0

    def compare(self, remote: Remote) -> str:
        """What is wrong with the content; "" when nothing is, as far as anybody told."""
        size = self.size
        if remote.size is not None and size != remote.size:
            return f"{size} bytes instead of {remote.size}"
        digests = {}
        if remote.sha256:
            digests["SHA-256"] = (hashlib.sha256(), remote.sha256)
        elif remote.git:
            blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)  # git's checksum
            digests["git SHA-1"] = (blob, remote.git)
        with self.file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                for digest, _ in digests.values():
                    digest.update(chunk)
        for kind, (digest, wanted) in digests.items():
            if digest.hexdigest() != wanted:
                return f"{kind} {digest.hexdigest()} instead of {wanted}"
        return ""

    def finish(self) -> None:
        self.file.replace(self.target)
        self._note.unlink(missing_ok=True)

    def _write(self) -> None:
        self._note.write_text(json.dumps({"etag": self.etag, "safe": self.safe}))


def _complete(
    client: httpx.Client,
    remote: Remote,
    part: _Part,
    received: Callable[[int], None],
    patience: Patience,
) -> None:
    """Receive until nothing is missing, trying again after what may pass."""
    failures = 0
    while remote.size is None or part.size < remote.size or not part.file.exists():
        before = part.size
        try:
            if _receive(client, remote, part, received, patience):
                return
            continue
        except (BrokenOffError, httpx.TransportError) as error:
            failures = 0 if part.size - before >= PROGRESS else failures + 1
            if failures >= ATTEMPTS:
                raise DownloadError(
                    f"{remote.host} does not send {remote.name}: {reason(error)}",
                    hint="The same command goes on from here later.",
                ) from error
            after = error.after if isinstance(error, BrokenOffError) else 0
            pause = min(LONGEST_PAUSE, max(after, patience.pause * 2 ** max(failures - 1, 0)))
            log.info("%s: %s; going on in %.1f s", remote.name, reason(error), pause)
            time.sleep(pause)


def _receive(
    client: httpx.Client,
    remote: Remote,
    part: _Part,
    received: Callable[[int], None],
    patience: Patience,
) -> bool:
    """One request and what it brings. True when the server has sent all it has."""
    start, etag = part.size, part.etag
    # Without a tag nothing tells whether the rest belongs to the beginning; a checksum at the end does.
    resumable = start > 0 and (etag or remote.sha256 or remote.git)
    asked = {"range": f"bytes={start}-"} if resumable else {}
    if resumable and etag:
        asked["if-range"] = etag
    with opened(client, remote, asked) as answer:
        if answer.status_code == 416:
            part.discard()
            raise BrokenOffError("the file is shorter than what is here")
        total = _check_range(answer, remote, start)
        # What is here stays: this may be the page of a gateway that wants somebody to sign in.
        if remote.size is not None and total is not None and total != remote.size:
            raise DownloadError(
                f"{remote.host} sends {total} bytes as {remote.name}, which should have {remote.size}",
                hint="It has changed there. Try again from the start.",
            )
        if answer.status_code == 200:
            part.begin(_strong(answer.headers.get("etag", "")))
            start = 0
        expected = remote.size if remote.size is not None else total
        if expected is not None:
            space.ensure(part.target.parent, expected - start, reserve=0)
        have = _write(answer, part, start, expected, remote, received, patience)
        if expected is not None and have < expected:
            raise BrokenOffError(f"the connection ended after {have} of {expected} bytes")
    return True


def _write(
    answer: httpx.Response,
    part: _Part,
    start: int,
    expected: int | None,
    remote: Remote,
    received: Callable[[int], None],
    patience: Patience,
) -> int:
    """Append the body to the file; the bytes that are then here."""
    have, since, began = start, start, time.monotonic()
    with part.file.open("ab") as stream:
        try:
            # As it arrives: what is gathered first is lost when the connection breaks off.
            for chunk in answer.iter_raw():
                if expected is not None and have + len(chunk) > expected:
                    raise DownloadError(
                        f"{remote.host} sends more than the {expected} bytes it announced for {remote.name}",
                        hint="Try again; if it stays so, the server is at fault.",
                    )
                stream.write(chunk)
                have += len(chunk)
                received(have)
                if have - part.safe >= SETTLE:
                    part.settle(stream)
                if (now := time.monotonic()) - began > patience.window:
                    if have - since < patience.rate * patience.window:
                        raise BrokenOffError("it comes too slowly")
                    since, began = have, now
        finally:
            part.settle(stream)
    return have


def _check_range(answer: httpx.Response, remote: Remote, start: int) -> int | None:
    """Bytes of the whole file, as far as the headers tell.

    Raises:
        DownloadError: a part was sent that nobody asked for.
    """
    if answer.status_code == 206:
        match = re.fullmatch(
            r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)", answer.headers.get("content-range", "")
        )
        if match is None or int(match[1]) != start:
            raise DownloadError(f"{remote.host} sends another part of {remote.name} than was asked for")
        return None if match[2] == "*" else int(match[2])
    length = answer.headers.get("content-length", "")
    return int(length) if length.isdigit() else None


def _strong(etag: str) -> str:
    """An entity tag that If-Range may carry; a weak one may not (RFC 9110 §13.1.5)."""
    return "" if etag.startswith("W/") else etag
