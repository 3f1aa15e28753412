"""One file over HTTP, resumable, into a file that is right or is not there.

A transfer that breaks off or stalls goes on where it stopped (RFC 9110 §14, with If-Range, so that what has
changed meanwhile starts anew). What arrives is held against the length and checksum that were announced; one
byte more than announced ends it.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx

from appliance import __version__
from appliance.errors import AuthenticationError, DamagedError, DownloadError, HobError
from appliance.library import space

log = logging.getLogger(__name__)

CHUNK = 2**18
ATTEMPTS = 6
"""Tries without a megabyte of progress between them."""
PROGRESS = 2**20
LONGEST_PAUSE = 30.0
REDIRECTS = 5


@dataclass(frozen=True)
class Patience:
    """Seconds to wait: `silence` for the next byte, `pause` before the first retry (it doubles each time).

    `window` and `rate`: fewer than `rate` bytes a second over a window count as a stall.
    """

    silence: float = 30.0
    pause: float = 1.0
    window: float = 60.0
    rate: float = 500.0


USUAL = Patience()


@dataclass(frozen=True)
class Remote:
    """A file on another machine.

    Attributes:
        url: its address.
        name: what it is called here.
        size: bytes, or None where nobody tells.
        sha256: hex; "" where nobody tells.
        git: hex of git's own SHA-1 of the file; "" where nobody tells.
        headers: sent with each request, and never to another host.
    """

    url: str
    name: str
    size: int | None = None
    sha256: str = ""
    git: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def host(self) -> str:
        """Whom to blame."""
        return urlsplit(self.url).hostname or self.url


class BrokenOffError(Exception):
    """A transfer ended early for a reason that may pass. `after`: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float = 0) -> None:
        super().__init__(reason)
        self.after = after


@contextlib.contextmanager
def session(patience: Patience = USUAL) -> Iterator[httpx.Client]:
    """A client for downloads: it follows no redirect by itself and waits no longer than `patience` says."""
    timeout = httpx.Timeout(patience.silence, connect=15)
    # What is fetched is stored as it comes, so nothing may be packed on the way.
    headers = {"accept-encoding": "identity", "user-agent": f"hob/{__version__}"}
    with httpx.Client(timeout=timeout, headers=headers) as client:
        yield client


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


def read(client: httpx.Client, remote: Remote, limit: int) -> bytes:
    """A small file as bytes.

    Raises:
        DownloadError, AuthenticationError: as `fetch`; also when it has more than `limit` bytes.
    """
    try:
        with _open(client, remote, {}) as answer:
            data = bytearray()
            for chunk in answer.iter_raw():
                data += chunk
                if len(data) > limit:
                    raise DownloadError(f"{remote.name} from {remote.host} is larger than {limit} bytes")
            return bytes(data)
    except (BrokenOffError, httpx.TransportError) as error:
        raise DownloadError(
            f"{remote.host} does not send {remote.name}: {_reason(error)}",
            hint="Is this machine connected? Try again.",
        ) from error


def look(client: httpx.Client, remote: Remote) -> Remote:
    """The same file with the length that its server tells, if it tells one.

    Raises:
        DownloadError, AuthenticationError: as `fetch`.
    """
    try:
        with _open(client, remote, {}) as answer:
            length = answer.headers.get("content-length", "")
            known = int(length) if length.isdigit() else None
    except (BrokenOffError, httpx.TransportError) as error:
        raise DownloadError(
            f"{remote.host} does not send {remote.name}: {_reason(error)}",
            hint="Is this machine connected? Try again.",
        ) from error
    return Remote(remote.url, remote.name, known, remote.sha256, remote.git, remote.headers)


class _Part:
    """What is here of a file: `NAME.part`, and beside it which version on the server it belongs to."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.file = target.with_name(f"{target.name}.part")
        self.notes = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        try:
            return self.file.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def etag(self) -> str:
        """The server's tag of the version that the bytes here belong to; "" when it told none."""
        try:
            noted = json.loads(self.notes.read_text())
            return str(noted["etag"])
        except (OSError, ValueError, KeyError, TypeError):  # lost in a power cut, or there was none
            return ""

    def begin(self, etag: str) -> None:
        """Forget what is here and note which version comes now."""
        self.discard()
        self.notes.write_text(json.dumps({"etag": etag}))

    def discard(self) -> None:
        self.file.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

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
        self.notes.unlink(missing_ok=True)


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
                    f"{remote.host} does not send {remote.name}: {_reason(error)}",
                    hint="The same command goes on from here later.",
                ) from error
            after = error.after if isinstance(error, BrokenOffError) else 0
            pause = min(LONGEST_PAUSE, max(after, patience.pause * 2 ** max(failures - 1, 0)))
            log.info("%s: %s; going on in %.1f s", remote.name, _reason(error), pause)
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
    with _open(client, remote, asked) as answer:
        if answer.status_code == 416:
            part.discard()
            raise BrokenOffError("the file is shorter than what is here")
        total = _check_range(answer, remote, start)
        if answer.status_code == 200:
            part.begin(_strong(answer.headers.get("etag", "")))
            start = 0
        if remote.size is not None and total is not None and total != remote.size:
            part.discard()
            raise DownloadError(
                f"{remote.host} sends {total} bytes as {remote.name}, which should have {remote.size}",
                hint="It has changed there. Try again from the start.",
            )
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
            for (
                chunk
            ) in answer.iter_raw():  # as it arrives: what is gathered first is lost when it breaks off
                if expected is not None and have + len(chunk) > expected:
                    raise DownloadError(
                        f"{remote.host} sends more than the {expected} bytes it announced for {remote.name}",
                        hint="Try again; if it stays so, the server is at fault.",
                    )
                stream.write(chunk)
                have += len(chunk)
                received(have)
                if (now := time.monotonic()) - began > patience.window:
                    if have - since < patience.rate * patience.window:
                        raise BrokenOffError("it comes too slowly")
                    since, began = have, now
        finally:
            stream.flush()
            os.fsync(stream.fileno())
    return have


@contextlib.contextmanager
def _open(client: httpx.Client, remote: Remote, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    """A response whose status says that content follows (200, 206), or 416.

    Raises:
        BrokenOffError: the server asks to come again.
        DownloadError, AuthenticationError: it refuses.
    """
    url, own = httpx.URL(remote.url), dict(remote.headers)
    for _ in range(REDIRECTS):
        with client.stream("GET", url, headers={**own, **headers}) as answer:
            if answer.status_code in (301, 302, 303, 307, 308):
                target = url.join(answer.headers.get("location", ""))
                if url.scheme == "https" and target.scheme != "https":
                    raise DownloadError(f"{remote.host} leads from https to {target.scheme}")
                if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port):
                    own = {}  # a token is for the host that it was given for
                url = target
                continue
            if answer.status_code not in (200, 206, 416):
                raise _refusal(answer, remote)
            yield answer
            return
    raise DownloadError(f"{remote.host} leads in circles for {remote.name}")


def _refusal(answer: httpx.Response, remote: Remote) -> HobError | BrokenOffError:
    """What a status that is no content means."""
    status, asked = answer.status_code, answer.headers.get("retry-after", "")
    after = float(asked) if asked.isdigit() else 0
    if status in (408, 425, 429) or status >= 500:
        return BrokenOffError(f"it answers {status}", after)
    if status in (401, 403):
        return AuthenticationError(
            f"{remote.host} does not let this Hob have {remote.name} ({status})",
            hint="It wants a token or key that may read it; see `hob model add --help`.",
        )
    if status in (404, 410):
        return DownloadError(f"{remote.host} has no {remote.name} ({status})", hint="Check the address.")
    return DownloadError(f"{remote.host} answers {status} for {remote.name}")


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


def _reason(error: Any) -> str:
    """An error of the network in a few words."""
    if isinstance(error, httpx.TimeoutException):
        return "it is silent"
    return str(error) or type(error).__name__
