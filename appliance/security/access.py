"""Who is asking, and what may they do: pure decisions on a connection's address, headers and path."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address, ip_address
from typing import Literal
from urllib.parse import urlsplit

# What a stranger may see: whether the service lives, and what the sign-in pages are made of.
OPEN_PATHS = frozenset({"/healthz", "/login", "/setup", "/favicon.ico"})
OPEN_PREFIXES = ("/static/",)

# What programs use. API keys open this and nothing else, so that a leaked key makes no further keys.
API_PREFIXES = ("/v1/", "/api/library/")
API_PATHS = frozenset({"/api/library", "/api/system", "/api/models", "/api/catalogue", "/api/jobs"})

# Forms that bring a file. Their handlers take it piece by piece to the disk, whose free room is the limit.
UPLOADS = frozenset({"/backups/look", "/updates/upload"})
UPLOAD_BODY = 64 * 2**30

# Room for a sign-in form; a stranger has nothing longer to say.
STRANGER_BODY = 16 * 1024

# Headers that a proxy adds for the client behind it (RFC 7239 and its predecessors).
PROXY_HEADERS = ("forwarded", "x-forwarded-", "x-real-ip", "via")


class Area(Enum):
    """The parts of the service that differ in who may enter."""

    OPEN = "open"
    API = "api"
    PAGES = "pages"


@dataclass(frozen=True)
class Caller:
    """Who a connection belongs to.

    Attributes:
        kind: "local" (this machine itself), "owner" (signed in), "key" (a program with an API key), "nobody".
        id: the session's or key's id in the store; "" for the others.
    """

    kind: Literal["local", "owner", "key", "nobody"]
    id: str = ""

    @property
    def known(self) -> bool:
        """Whether this is somebody at all."""
        return self.kind != "nobody"


NOBODY = Caller("nobody")
LOCAL = Caller("local")


def area(path: str) -> Area:
    """The part of the service a path belongs to. Whatever nobody thought of is private."""
    if path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
        return Area.OPEN
    return Area.API if path in API_PATHS or path.startswith(API_PREFIXES) else Area.PAGES


def admits(where: Area, caller: Caller) -> bool:
    """Whether a caller may enter an area."""
    match where:
        case Area.OPEN:
            return True
        case Area.API:
            return caller.known
        case Area.PAGES:
            return caller.kind in {"local", "owner"}


def body_limit(path: str, caller: Caller, usual: int) -> int:
    """Bytes that a request's body may have, where known callers may usually send `usual`."""
    if not caller.known:
        return STRANGER_BODY
    return UPLOAD_BODY if path in UPLOADS else usual


def is_local(peer: str | None, headers: Mapping[str, str]) -> bool:
    """Whether the other end of the connection is this machine itself, and not a proxy on it.

    `peer` is the address of the TCP connection; what headers say about other addresses is never believed.
    A request that came through a proxy carries a proxy's headers; its real client is somebody unknown, so
    it needs a session or key like any request from the LAN. A Unix socket has no peer address: not local.
    """
    if peer is None or any(name.startswith(PROXY_HEADERS) for name in headers):
        return False
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def local_path(target: str | None) -> str:
    """`target` where it is a path on this server, else "/": what `?next=` may lead to.

    Refused are other schemes and hosts, `//host`, backslashes (browsers read them as slashes) and control
    characters (browsers drop them), and the sign-in pages themselves.
    """
    if not target or not target.startswith("/") or target.startswith("//") or "\\" in target:
        return "/"
    if not target.isprintable() or " " in target:
        return "/"
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or parts.path in {"/login", "/setup", "/logout"}:
        return "/"
    return target
