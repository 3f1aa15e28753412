"""Who may come in.

This machine itself may do everything. Over the LAN, pages need a session that the owner's password opens, and
the API needs a key or such a session; strangers see a sign-in page and a sign of life. Requests that some
other site makes a browser send are refused whoever sends them, the machine itself included.

    gate = Gate.open(settings, store)
    app = SecurityMiddleware(app, gate=gate, max_body=settings.max_body, refuse=error_response)
    caller(request).kind  # "local" | "owner" | "key" | "nobody"
    gate.owner.setup_code  # for the console, while `await gate.owner.exists()` is False
    gate.hosts.announced("hob-2.local")  # what discovery tells

A reverse proxy on the same machine makes every client's connection come from loopback. Requests that bear a
proxy's headers (Forwarded, X-Forwarded-*, X-Real-IP, Via) are therefore never local. A proxy that adds none
of them would open Hob to its clients: configure it to add them. The server must leave the peer's address as
the socket has it (uvicorn: `proxy_headers=False`), or a client could write its own.
"""

from appliance.security.access import Caller
from appliance.security.gate import Gate
from appliance.security.middleware import SecurityMiddleware, caller

__all__ = ["Caller", "Gate", "SecurityMiddleware", "caller"]
