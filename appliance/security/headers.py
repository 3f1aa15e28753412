"""Response headers that narrow what a browser does with our pages."""

from starlette.datastructures import MutableHeaders

# No inline script or style, nothing from elsewhere, no frames. Pages are written for this policy.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "manifest-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)

ALWAYS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: with that, browsers send "Origin: null" with our own forms (Fetch §3.2.5).
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}

# Browsers heed this one only over https and on loopback, and complain on the console elsewhere.
WHERE_TRUSTWORTHY = {"cross-origin-opener-policy": "same-origin"}


def harden(headers: MutableHeaders, *, private: bool, trustworthy: bool) -> None:
    """Add the headers every response carries; `private` keeps it out of caches.

    `trustworthy`: the page's origin is https or loopback (https://w3c.github.io/webappsec-secure-contexts/).
    A handler's own value wins only for Cache-Control: the rest is policy.
    """
    for name, value in (ALWAYS | WHERE_TRUSTWORTHY if trustworthy else ALWAYS).items():
        headers[name] = value
    if private:
        headers.setdefault("cache-control", "no-store")
