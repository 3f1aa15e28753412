"""Did this request come from one of our own pages, or did a foreign site make the browser send it?

Browsers state the origin of a page in `Origin` (RFC 6454 §7, Fetch §3.2) with every POST, PUT, PATCH and
DELETE and every WebSocket handshake, and, towards HTTPS and loopback, the relation in `Sec-Fetch-Site`
(https://w3c.github.io/webappsec-fetch-metadata/). No page can set either. The check needs no tokens in forms;
it has to refuse requests with neither header where the browser sends credentials by itself (OWASP
Cross-Site Request Forgery Prevention Cheat Sheet, "Fetch Metadata headers" and "Verifying origin").
"""

from collections.abc import Mapping

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def foreign(headers: Mapping[str, str]) -> str | None:
    """Why the request is known to come from a foreign page, or None.

    Origin and Host are compared without the scheme: behind a proxy that ends TLS the page says https where
    the service sees http, and an attacker who can serve our own host name over plain http has already won.
    The origin "null" (sandboxed frames, data: documents) is foreign.
    """
    origin = headers.get("origin")
    if origin is not None and not same_authority(origin, headers.get("host", "")):
        return f"The request comes from another site ({origin[:100]!r})."
    site = headers.get("sec-fetch-site")
    if site in {"cross-site", "same-site"} and not _is_followed_link(headers):
        return "The request comes from another site."
    return None


def proven_own(headers: Mapping[str, str]) -> bool:
    """Whether a browser vouches that one of our own pages, or the person directly, made the request.

    Meaningful only where `foreign` is None.
    """
    return "origin" in headers or headers.get("sec-fetch-site") in {"same-origin", "none"}


def same_authority(origin: str, host: str) -> bool:
    """Whether an Origin names the same host and port as a Host header."""
    scheme, separator, authority = origin.partition("://")
    return bool(separator) and scheme in {"http", "https"} and authority.lower() == host.lower() != ""


def _is_followed_link(headers: Mapping[str, str]) -> bool:
    # Links to a chat in a mail or a wiki stay usable: a whole-page navigation has no side effects (it is a
    # GET, else it carries Origin) and the page it leads to cannot be read by the site that linked to it.
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
