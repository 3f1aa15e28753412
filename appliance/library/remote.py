"""Files on other machines: where they are, and a response that holds one, or an error that says why not.

Redirects are followed here, so that a token goes to no host but the one that it is for.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2 as httpx

from appliance import __version__
from appliance.errors import AuthenticationError, DownloadError, HobError

REDIRECTS = 5
QUESTIONS = 3
"""How often a small thing is asked for before it is given up."""

Answer = TypeVar("Answer")


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
        with contextlib.suppress(ValueError):  # no address at all; whoever opens it says so
            return urlsplit(self.url).hostname or self.url
        return self.url


class BrokenOffError(Exception):
    """A transfer ended early for a reason that may pass. `after`: seconds that the server asks to wait."""

    def __init__(self, why: str, after: float = 0) -> None:
        super().__init__(why)
        self.after = after


@contextlib.contextmanager
def session(patience: Patience = USUAL) -> Iterator[httpx.Client]:
    """A client for downloads: it follows no redirect by itself and waits no longer than `patience` says."""
    timeout = httpx.Timeout(patience.silence, connect=15)
    # What is fetched is stored as it comes, so nothing may be packed on the way.
    headers = {"accept-encoding": "identity", "user-agent": f"hob/{__version__}"}
    with httpx.Client(timeout=timeout, headers=headers) as client:
        yield client


def read(client: httpx.Client, remote: Remote, limit: int, patience: Patience = USUAL) -> bytes:
    """A small file as bytes.

    Raises:
        DownloadError, AuthenticationError: as `opened`; also when it has more than `limit` bytes.
    """

    def ask() -> bytes:
        with opened(client, remote, {}) as answer:
            data = bytearray()
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > limit:
                    raise DownloadError(f"{remote.name} from {remote.host} is larger than {limit} bytes")
            return bytes(data)

    return patiently(ask, f"{remote.host} does not send {remote.name}", patience)


def look(client: httpx.Client, remote: Remote, patience: Patience = USUAL) -> Remote:
    """The same file with the length that its server tells, if it tells one.

    Raises:
        DownloadError, AuthenticationError: as `opened`.
    """

    def ask() -> Remote:
        with opened(client, remote, {}) as answer:
            length = answer.headers.get("content-length", "")
            return replace(remote, size=int(length) if length.isdigit() else None)

    return patiently(ask, f"{remote.host} does not send {remote.name}", patience)


def patiently(ask: Callable[[], Answer], complaint: str, patience: Patience) -> Answer:
    """What `ask` returns, asked again a few times after what may pass.

    Raises:
        DownloadError: it did not pass; the message is the complaint and the last reason.
    """
    failed: Exception | None = None
    for attempt in range(QUESTIONS):
        try:
            return ask()
        except (BrokenOffError, httpx.TransportError) as error:
            failed = error
        if attempt < QUESTIONS - 1:
            time.sleep(patience.pause * 2**attempt)
    raise DownloadError(
        f"{complaint}: {reason(failed)}", hint="Is this machine connected? Try again."
    ) from failed


@contextlib.contextmanager
def opened(client: httpx.Client, remote: Remote, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    """A response whose status says that content follows (200, 206), or 416.

    Raises:
        BrokenOffError: the server asks to come again.
        DownloadError, AuthenticationError: it refuses.
    """
    url, own = _parsed(remote.url), dict(remote.headers)
    for _ in range(REDIRECTS):
        with client.stream("GET", url, headers={**own, **headers}) as answer:
            if answer.status_code not in (301, 302, 303, 307, 308):
                if answer.status_code not in (200, 206, 416):
                    raise _refusal(answer, remote)
                yield answer
                return
            target = _parsed(answer.headers.get("location", ""), url)
        if url.scheme == "https" and target.scheme != "https":
            raise DownloadError(f"{remote.host} leads from https to {target.scheme}")
        if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port):
            own = {}  # a token is for the host that it was given for
        url = target
    raise DownloadError(f"{remote.host} leads in circles for {remote.name}")


def _parsed(url: str, base: httpx.URL | None = None) -> httpx.URL:
    """An address, of a redirect from `base` too.

    Raises:
        DownloadError: it is none.
    """
    try:
        found = httpx.URL(url) if base is None else base.join(url)
        found.host.encode("idna")  # as the resolver will
    except (httpx.InvalidURL, ValueError) as error:
        raise DownloadError(f"{url[:200]!r} is no address", hint="Check the host's name.") from error
    if found.scheme not in ("http", "https") or not found.host:
        raise DownloadError(f"{url[:200]!r} is no address of a file", hint="Check the host's name.")
    return found


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


def reason(error: Exception | None) -> str:
    """An error of the network in a few words."""
    if isinstance(error, httpx.TimeoutException):
        return "it is silent"
    return str(error) or type(error).__name__
