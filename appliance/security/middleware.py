"""The gate in front of every route, HTTP and WebSocket alike."""

from collections.abc import Callable
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.errors import AuthenticationError, HobError, PermissionDeniedError
from appliance.security import access, body, captive, headers, hosts, origin, sessions
from appliance.security.access import Area, Caller
from appliance.security.gate import Gate
from appliance.security.keys import bearer

Refusal = Callable[[HTTPConnection, HobError], Response]

FOREIGN = "foreign_host"


def caller(connection: HTTPConnection) -> Caller:
    """Who made this request, as the middleware found out."""
    found: Caller = connection.scope["hob.caller"]
    return found


class SecurityMiddleware:
    """Refuses foreign hosts, foreign pages, strangers and oversized bodies, before any route runs.

    Args:
        gate: owner, sessions, keys and host names.
        max_body: largest request body in bytes.
        refuse: makes the response for an error, in the shape that the client expects.

    Requests that pass carry `scope["hob.caller"]`. Every response gets the headers of `headers.py`.
    """

    def __init__(self, app: ASGIApp, *, gate: Gate, max_body: int, refuse: Refusal) -> None:
        self.app = app
        self.gate = gate
        self.max_body = max_body
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        where = access.area(scope["path"])
        reply = _Reply(send, connection)
        try:
            self._check_host(connection)
            who = await self._identify(connection, where, reply)
            scope["hob.caller"] = who
            if not access.admits(where, who):
                await self._turn_away(connection, where, receive, reply)
                return
            if scope["type"] == "http":
                limit = access.body_limit(scope["path"], who, self.max_body)
                body.check_length(body.announced_length(connection.headers), limit)
                receive = body.limited(receive, limit)
            await self.app(scope, receive, reply)
        except HobError as error:
            if reply.started:
                raise
            if error.code == FOREIGN and captive.leads_home(scope):
                await self._answer(connection, RedirectResponse(captive.HOME, 302), receive, reply)
                return
            await self._answer(connection, self.refuse(connection, error), receive, reply)

    def _check_host(self, connection: HTTPConnection) -> None:
        host = connection.headers.get("host")
        if len(connection.headers.getlist("host")) != 1 or not self.gate.hosts.allows(host):
            raise PermissionDeniedError(
                f"This Hob is not called {(host or '')[:100]!r}.",
                code=FOREIGN,
                hint="Use its own name or address, or add the name to allowed_hosts (HOB_ALLOWED_HOSTS).",
            )
        if (reason := origin.foreign(connection.headers)) is not None:
            raise PermissionDeniedError(
                reason, code="foreign_origin", hint="Open Hob's own page and try again from there."
            )

    async def _identify(self, connection: HTTPConnection, where: Area, reply: "_Reply") -> Caller:
        """Who this is: this machine, then a key, then a session.

        Raises:
            AuthenticationError: a key that does not exist; a session in the same request does not heal that.
            PermissionDeniedError: the browser sent its cookie, but nothing says that our own page made it.
        """
        peer = connection.client.host if connection.client else None
        if access.is_local(peer, connection.headers):
            return access.LOCAL
        key = bearer(connection.headers.get("authorization"))
        if key is not None and where is Area.API:
            if (record := await self.gate.keys.find(key)) is None:
                raise AuthenticationError(
                    "This API key is not valid.",
                    hint="Make one with `hob key add NAME` on the machine Hob runs on.",
                )
            return Caller("key", str(record.id))
        token = connection.cookies.get(sessions.COOKIE)
        session = await self.gate.sessions.find(token)
        if session is None or token is None:
            return access.NOBODY
        acts = (
            connection.scope["type"] == "websocket" or connection.scope["method"] not in origin.SAFE_METHODS
        )
        if acts and not origin.proven_own(connection.headers):
            raise PermissionDeniedError(
                "The request does not say which page it comes from.",
                code="origin_missing",
                hint="Programs use an API key instead of a browser's session: `hob key add NAME`.",
            )
        if await self.gate.sessions.touch(session):
            reply.renew(token)
        return Caller("owner", str(session.id))

    async def _turn_away(
        self, connection: HTTPConnection, where: Area, receive: Receive, reply: "_Reply"
    ) -> None:
        """A browser is led to the sign-in page; everybody else gets 401."""
        scope = connection.scope
        if (
            where is Area.PAGES
            and scope["type"] == "http"
            and "text/html" in connection.headers.get("accept", "")
        ):
            await self._answer(connection, await self._lead_in(connection), receive, reply)
            return
        error = AuthenticationError(
            "Sign in or bring an API key.",
            code="not_signed_in",
            hint="Open Hob's page in a browser, or run `hob key add NAME` on the machine Hob runs on.",
        )
        await self._answer(connection, self.refuse(connection, error), receive, reply)

    async def _lead_in(self, connection: HTTPConnection) -> Response:
        if not await self.gate.owner.exists():
            return RedirectResponse("/setup", 303)
        target = connection.url.path + (f"?{connection.url.query}" if connection.url.query else "")
        if connection.scope["method"] != "GET" or access.local_path(target) == "/":
            return RedirectResponse("/login", 303)
        return RedirectResponse(f"/login?next={quote(target, safe='/')}", 303)

    async def _answer(
        self, connection: HTTPConnection, response: Response, receive: Receive, reply: "_Reply"
    ) -> None:
        if response.status_code == 401:
            response.headers.setdefault("www-authenticate", 'Bearer realm="hob"')  # RFC 9110 §15.5.2
        scope = connection.scope
        if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            await reply({"type": "websocket.close", "code": 1008, "reason": ""})  # before accept: becomes 403
            return
        await response(scope, receive, reply)


class _Reply:
    """`send` that hardens the response's headers, and knows whether a response has started."""

    def __init__(self, send: Send, connection: HTTPConnection) -> None:
        self._send = send
        self._connection = connection
        self._cookie: str | None = None
        self.started = False

    def renew(self, token: str) -> None:
        """Send the session's cookie again, so that its time in the browser starts anew."""
        carrier = Response()
        sessions.set_cookie(carrier, self._connection, token)
        self._cookie = carrier.headers["set-cookie"]

    async def __call__(self, message: Message) -> None:
        if message["type"] in {"http.response.start", "websocket.http.response.start"}:
            self.started = True
            sent = MutableHeaders(scope=message)
            headers.harden(
                sent,
                private=not self._connection.scope["path"].startswith("/static/"),
                trustworthy=self._connection.scope["scheme"] in {"https", "wss"}
                or hosts.is_loopback(self._connection.headers.get("host")),
            )
            # A handler that sets cookies itself (signing in or out) has the last word.
            if self._cookie is not None and "set-cookie" not in sent:
                sent.append("set-cookie", self._cookie)
        elif message["type"] in {"websocket.accept", "websocket.close"}:
            self.started = True
        await self._send(message)
