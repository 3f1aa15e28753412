"""The gate on a small real application: who gets in, what is refused, what every response carries.

Peers on the LAN are played by driving the application with their address; the server-side parts that need
sockets (bodies, timing of connections) run under a real server.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import httpx2 as httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message
from starlette.websockets import WebSocket

from appliance.config import load_settings
from appliance.errors import (
    AuthenticationError,
    HobError,
    InvalidRequestError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
)
from appliance.security import Gate, SecurityMiddleware, body, caller, sessions
from appliance.security.access import STRANGER_BODY
from appliance.security.headers import ALWAYS
from appliance.security.keys import add_key
from appliance.security.secret import fingerprint
from appliance.store import Store

LAN_PEER = ("192.0.2.7", 50000)
LOCAL_PEER = ("127.0.0.1", 50000)
HOST = "http://hob.local"
MAX_BODY = 64 * 1024
HTML = {"accept": "text/html,*/*;q=0.8"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty database."""
    store = Store(tmp_path / "hob.db")
    yield store
    store.close()


@pytest.fixture
def gate(store: Store, tmp_path: Path) -> Gate:
    """Security with default settings."""
    return Gate.open(load_settings(data_dir=tmp_path), store)


def refuse(connection: HTTPConnection, error: HobError) -> Response:
    """Errors as JSON."""
    return JSONResponse({"code": error.code, "message": error.message}, error.status)


async def handle(request: Request, error: Exception) -> Response:
    """What an application does with errors that its handlers raise."""
    assert isinstance(error, HobError)
    return refuse(request, error)


def make_app(gate: Gate) -> ASGIApp:
    """An application behind the gate that tells who called and how long the body was."""

    async def who(request: Request) -> Response:
        size = len(await request.body())
        return JSONResponse({"kind": caller(request).kind, "size": size})

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(caller(websocket).kind)
        await websocket.close()

    async def script(request: Request) -> Response:
        return PlainTextResponse("1", headers={"cache-control": "max-age=9", "x-frame-options": "ALLOW"})

    routes = [
        Route("/", who, methods=["GET", "POST"]),
        Route("/chats/3", who),
        Route("/v1/models", who, methods=["GET", "POST"]),
        Route("/healthz", who),
        Route("/login", who, methods=["GET", "POST"]),
        Route("/static/app.js", script),
        WebSocketRoute("/live", talk),
    ]
    app = Starlette(routes=routes, exception_handlers={HobError: handle})
    return SecurityMiddleware(app, gate=gate, max_body=MAX_BODY, refuse=refuse)


def client(
    gate: Gate,
    peer: tuple[str, int] = LAN_PEER,
    base_url: str = HOST,
    headers: Mapping[str, str] | None = None,
) -> httpx.AsyncClient:
    """A client at address `peer`."""
    transport = httpx.ASGITransport(make_app(gate), client=peer)
    return httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers)


async def signed_in(gate: Gate) -> dict[str, str]:
    """The cookie header of a browser that is signed in."""
    return {"cookie": f"{sessions.COOKIE}={await gate.sessions.open('test')}"}


@pytest.mark.anyio
async def test_this_machine_needs_nothing(gate: Gate) -> None:
    """From loopback everything is open, with any key or none."""
    async with client(gate, LOCAL_PEER, "http://localhost:8080") as local:
        for path in ("/", "/v1/models", "/healthz"):
            assert (await local.get(path)).json()["kind"] == "local"
        answer = await local.get("/v1/models", headers={"authorization": "Bearer anything"})
        assert answer.json()["kind"] == "local"


@pytest.mark.anyio
async def test_strangers_are_led_to_set_up_and_then_to_sign_in(gate: Gate) -> None:
    """A browser lands on the set-up page while there is no owner, later on sign-in with the way back."""
    async with client(gate, headers=HTML) as browser:
        assert (await browser.get("/chats/3")).headers["location"] == "/setup"
        await gate.owner.set_up(gate.owner.setup_code, "long enough", "192.0.2.7")
        answer = await browser.get("/chats/3?a=1&b=//evil.example")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/login?next=/chats/3%3Fa%3D1%26b%3D//evil.example"
        assert (await browser.get("/")).headers["location"] == "/login"
        assert (await browser.post("/", headers={"origin": HOST})).headers["location"] == "/login"


@pytest.mark.anyio
async def test_strangers_without_a_browser_get_401(gate: Gate) -> None:
    """Programs get a status they understand and the scheme to use, on pages and on the API."""
    async with client(gate) as program:
        for path in ("/", "/v1/models", "/no/such/page"):
            answer = await program.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["code"] == "not_signed_in"
        assert (await program.get("/v1/models", headers=HTML)).status_code == 401
        assert (await program.get("/healthz")).json()["kind"] == "nobody"


@pytest.mark.anyio
async def test_a_session_opens_everything(gate: Gate) -> None:
    """A signed-in browser reaches pages and API."""
    async with client(gate, headers=await signed_in(gate)) as browser:
        assert (await browser.get("/")).json()["kind"] == "owner"
        assert (await browser.get("/v1/models")).json()["kind"] == "owner"


@pytest.mark.anyio
async def test_a_key_opens_the_api_alone(gate: Gate, store: Store) -> None:
    """A key reaches /v1 and no page; revoked, it ends with the next request."""
    record, key = add_key(store, "laptop")
    async with client(gate, headers={"authorization": f"Bearer {key}"}) as program:
        assert (await program.get("/v1/models")).json()["kind"] == "key"
        assert (await program.post("/v1/models", content=b"{}")).json() == {"kind": "key", "size": 2}
        assert (await program.get("/")).status_code == 401
        store.revoke_key(record.id)
        answer = await program.get("/v1/models")
        assert answer.status_code == 401
        assert answer.json()["code"] == "invalid_api_key"


@pytest.mark.anyio
async def test_a_wrong_key_is_refused_even_with_a_session(gate: Gate) -> None:
    """A program that brings a wrong key hears so, instead of passing by a cookie it did not mean."""
    headers = {"authorization": "Bearer hob_wrong", **await signed_in(gate)}
    async with client(gate, headers=headers) as program:
        assert (await program.get("/v1/models")).status_code == 401


@pytest.mark.anyio
async def test_claims_about_the_client_are_not_believed(gate: Gate) -> None:
    """X-Forwarded-For makes nobody local, neither from the LAN nor from a proxy on this machine."""
    for peer in (LAN_PEER, LOCAL_PEER):
        async with client(gate, peer, headers={"x-forwarded-for": "127.0.0.1"}) as proxied:
            assert (await proxied.get("/v1/models")).status_code == 401


@pytest.mark.anyio
@pytest.mark.parametrize("peer", [LAN_PEER, LOCAL_PEER])
async def test_foreign_hosts_are_refused(gate: Gate, peer: tuple[str, int]) -> None:
    """DNS rebinding: a name that is not ours gets nothing, not even the static files, not even locally."""
    cookie = await signed_in(gate)
    async with client(gate, peer, "http://evil.example", cookie) as rebound:
        for path in ("/", "/v1/models", "/healthz", "/static/app.js", "/login"):
            answer = await rebound.get(path)
            assert answer.status_code == 403
            assert answer.json()["code"] == "foreign_host"


@pytest.mark.anyio
async def test_two_host_headers_are_refused(gate: Gate) -> None:
    """Two hosts can mean different things to two readers (RFC 9112 §3.2)."""
    async with client(gate, LOCAL_PEER, "http://localhost") as local:
        answer = await local.get("/", headers=[("host", "localhost"), ("host", "evil.example")])
        assert answer.status_code == 403


@pytest.mark.anyio
@pytest.mark.parametrize("peer", [LAN_PEER, LOCAL_PEER])
@pytest.mark.parametrize("foreign", ["http://evil.example", "null", "http://hob.local:81"])
async def test_foreign_pages_cannot_act(
    gate: Gate, store: Store, peer: tuple[str, int], foreign: str
) -> None:
    """A foreign page's request is refused with cookie, with key, and on the machine itself."""
    _, key = add_key(store, "laptop")
    for proof in (await signed_in(gate), {"authorization": f"Bearer {key}"}, {}):
        async with client(gate, peer, headers={**proof, "origin": foreign}) as page:
            for path in ("/", "/v1/models", "/login"):
                answer = await page.post(path)
                assert answer.status_code == 403
                assert answer.json()["code"] == "foreign_origin"


@pytest.mark.anyio
async def test_a_cookie_needs_proof_of_its_page(gate: Gate) -> None:
    """With a cookie, acting takes Origin or Fetch Metadata; reading does not."""
    async with client(gate, headers=await signed_in(gate)) as browser:
        answer = await browser.post("/")
        assert answer.status_code == 403
        assert answer.json()["code"] == "origin_missing"
        assert (await browser.post("/", headers={"origin": HOST})).status_code == 200
        assert (await browser.post("/", headers={"sec-fetch-site": "same-origin"})).status_code == 200
        assert (await browser.get("/")).status_code == 200


@pytest.mark.anyio
async def test_every_response_is_hardened(gate: Gate) -> None:
    """Policy headers stand on answers, refusals and redirects; no CORS header ever does."""
    async with client(gate, headers=HTML) as stranger, client(gate, LOCAL_PEER, "http://localhost") as local:
        answers = [
            await local.get("/"),
            await local.get("/no/such/page"),
            await local.options("/v1/models", headers={"access-control-request-method": "POST"}),
            await stranger.get("/", headers={"host": "evil.example"}),
            await stranger.get("/"),
            await stranger.get("/v1/models"),
        ]
        for answer in answers:
            for name, value in ALWAYS.items():
                assert answer.headers[name] == value
            # Browsers complain about this one over plain http.
            assert ("cross-origin-opener-policy" in answer.headers) == (answer.url.host == "localhost")
            assert answer.headers["cache-control"] == "no-store"
            assert not any(name.startswith("access-control") for name in answer.headers)
        static = await stranger.get("/static/app.js")
        assert static.headers["cache-control"] == "max-age=9"
        assert static.headers["x-frame-options"] == "DENY"
        assert "unsafe" not in ALWAYS["content-security-policy"]


@pytest.mark.anyio
async def test_sessions_slide_and_end(gate: Gate, store: Store) -> None:
    """A session in use is renewed, one unused for 30 days is over, one signed out is over at once."""
    cookie = await signed_in(gate)
    token = cookie["cookie"].partition("=")[2]
    async with client(gate, headers=cookie) as browser:
        assert "set-cookie" not in (await browser.get("/")).headers
        store.execute("UPDATE sessions SET seen = seen - ?", sessions.TOUCH_SECONDS + 1)
        renewed = (await browser.get("/")).headers["set-cookie"]
        assert f"{sessions.COOKIE}={token};" in renewed
        assert f"Max-Age={sessions.IDLE_SECONDS}" in renewed
        assert "HttpOnly" in renewed
        assert "SameSite=lax" in renewed
        assert "Secure" not in renewed
        assert time.time() - store.list_sessions()[0].seen < 60
        store.execute("UPDATE sessions SET seen = seen - ?", sessions.IDLE_SECONDS + 1)
        assert (await browser.get("/")).status_code == 401
        store.execute("UPDATE sessions SET seen = ?", time.time())
        assert (await browser.get("/")).status_code == 200
        await gate.sessions.close(token)
        assert (await browser.get("/")).status_code == 401
    assert store.list_sessions() == []


@pytest.mark.anyio
async def test_a_session_has_an_absolute_end(gate: Gate, store: Store) -> None:
    """However much it is used, a session ends after a year."""
    await gate.sessions.open("test")
    (session,) = store.list_sessions()
    assert session.expires == pytest.approx(time.time() + sessions.ABSOLUTE_SECONDS, abs=60)


@pytest.mark.anyio
async def test_tokens_are_kept_as_hashes_and_come_from_us(gate: Gate, store: Store) -> None:
    """The database holds no token, each is new, and a made-up one opens nothing."""
    first, second = await gate.sessions.open("a"), await gate.sessions.open("b")
    assert first != second
    assert len(first) == 43
    assert first not in "\n".join(store.db.iterdump())
    assert await gate.sessions.find("made-up") is None
    assert await gate.sessions.find("\udcff") is None
    assert await gate.sessions.find(fingerprint(first)) is None
    found = await gate.sessions.find(first)
    assert found is not None
    assert found.user_agent == "a"


@pytest.mark.anyio
async def test_set_up_takes_the_consoles_code_once(gate: Gate, store: Store) -> None:
    """The right code makes the owner, in whatever case it is typed; afterwards no code does."""
    code = gate.owner.setup_code
    with pytest.raises(InvalidRequestError, match="at least 8"):
        await gate.owner.set_up(code, "short", "192.0.2.7")
    with pytest.raises(InvalidRequestError, match="at most 1024"):
        await gate.owner.set_up(code, "x" * 1025, "192.0.2.7")
    with pytest.raises(PermissionDeniedError, match="code"):
        await gate.owner.set_up("AAAA-AAAA", "long enough", "192.0.2.7")
    with pytest.raises(PermissionDeniedError, match="code"):
        await gate.owner.set_up("", "long enough", "192.0.2.7")
    assert not await gate.owner.exists()
    await gate.owner.set_up(code.lower().replace("-", " "), "long enough", "192.0.2.7")
    assert await gate.owner.exists()
    for again in (code, gate.owner.setup_code):
        with pytest.raises(PermissionDeniedError, match="owner already"):
            await gate.owner.set_up(again, "another password", "192.0.2.7")
    await gate.owner.check("long enough", "192.0.2.7")
    encoded = store.owner_hash()
    assert encoded is not None
    assert encoded.startswith("$argon2id$v=19$m=32768,t=3,p=1$")


@pytest.mark.anyio
async def test_of_two_who_set_up_at_once_one_wins(gate: Gate, store: Store) -> None:
    """Both know the code; only one password is set, and the other hears that there is an owner."""
    code = gate.owner.setup_code
    results = await asyncio.gather(
        gate.owner.set_up(code, "first password", "192.0.2.7"),
        gate.owner.set_up(code, "second password", "192.0.2.8"),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "PermissionDeniedError"]
    winner = "first password" if results[0] is None else "second password"
    await gate.owner.check(winner, "192.0.2.7")


@pytest.mark.anyio
async def test_guessing_is_slowed_down(gate: Gate) -> None:
    """Code and password guesses count together; parallel ones do not slip through; others may still try."""
    for guess in range(2):
        with pytest.raises(PermissionDeniedError):
            await gate.owner.set_up(f"AAAA-AAA{guess}", "long enough", "192.0.2.7")
    await gate.owner.set_up(gate.owner.setup_code, "long enough", "192.0.2.9")
    results = await asyncio.gather(
        *(gate.owner.check(f"wrong password {n}", "192.0.2.7") for n in range(10)), return_exceptions=True
    )
    assert sum(isinstance(result, AuthenticationError) for result in results) == 3
    refused = [result for result in results if isinstance(result, RateLimitError)]
    assert len(refused) == 7
    assert all(error.retry_after is not None and error.retry_after >= 1 for error in refused)
    await gate.owner.check("long enough", "192.0.2.8")


@pytest.mark.anyio
async def test_every_wrong_password_hears_the_same(gate: Gate) -> None:
    """No owner, wrong password, over-long password: one answer."""
    told = set()
    for password in ("wrong password", "x" * 2000):
        with pytest.raises(AuthenticationError) as caught:
            await gate.owner.check(password, "192.0.2.7")
        told.add(str(caught.value))
    await gate.owner.set_up(gate.owner.setup_code, "long enough", "192.0.2.9")
    for password in ("", "Long enough", "x" * 2000, "\0", "\U0001f600" * 8):
        with pytest.raises(AuthenticationError) as caught:
            await gate.owner.check(password, f"192.0.2.{len(password) % 99}")
        told.add(str(caught.value))
    assert len(told) == 1


@pytest.mark.anyio
async def test_an_old_hash_is_renewed_at_sign_in(gate: Gate, store: Store) -> None:
    """When the parameters grow, the next right password brings the hash up to date."""
    from argon2 import PasswordHasher

    store.create_owner(PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash("long enough"))
    await gate.owner.check("long enough", "192.0.2.7")
    encoded = store.owner_hash()
    assert encoded is not None
    assert "m=32768,t=3,p=1" in encoded
    await gate.owner.check("long enough", "192.0.2.7")


async def open_websocket(gate: Gate, peer: tuple[str, int], headers: dict[str, str]) -> list[Message]:
    """What the server sends on a WebSocket handshake with these headers."""
    sent: list[Message] = []
    inbox: list[Message] = [{"type": "websocket.connect"}]

    async def receive() -> Message:
        return inbox.pop() if inbox else {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "scheme": "ws",
        "path": "/live",
        "query_string": b"",
        "headers": [
            (name.encode(), value.encode()) for name, value in {"host": "hob.local", **headers}.items()
        ],
        "client": peer,
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    }
    await make_app(gate)(scope, receive, send)
    return sent


@pytest.mark.anyio
async def test_websockets_pass_the_same_gate(gate: Gate) -> None:
    """Handshakes need a known caller, our own Host, and from browsers our own Origin."""
    cookie = await signed_in(gate)
    own = {"origin": HOST}
    for peer, headers, kind in ((LOCAL_PEER, {}, "local"), (LAN_PEER, cookie | own, "owner")):
        sent = await open_websocket(gate, peer, headers)
        assert [message["type"] for message in sent][:2] == ["websocket.accept", "websocket.send"]
        assert sent[1]["text"] == kind
    for peer, headers, status in (
        (LAN_PEER, {}, 401),
        (LAN_PEER, cookie, 403),
        (LAN_PEER, cookie | {"origin": "http://evil.example"}, 403),
        (LOCAL_PEER, {"origin": "http://evil.example"}, 403),
        (LOCAL_PEER, {"host": "evil.example"}, 403),
    ):
        sent = await open_websocket(gate, peer, headers)
        assert sent[0]["type"] == "websocket.http.response.start"
        assert sent[0]["status"] == status


@pytest.mark.anyio
async def test_a_body_that_stalls_is_given_up() -> None:
    """A client that stops in the middle of its body does not hold a request for ever."""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(RequestTimeoutError):
        await body.limited(receive, 100, stall=0.01)()


@pytest.mark.anyio
async def test_waiting_for_the_client_to_go_away_is_not_a_stall() -> None:
    """Once the body is complete, receive waits as long as the response takes."""
    gone = asyncio.Event()
    messages: list[Message] = [{"type": "http.request", "body": b"x", "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    limited = body.limited(receive, 100, stall=0.01)
    await limited()
    waiting = asyncio.ensure_future(limited())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    gone.set()
    assert (await waiting)["type"] == "http.disconnect"


@contextmanager
def serving(app: ASGIApp) -> Iterator[int]:
    """A real server on a free port of loopback; the port."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="warning", proxy_headers=False, lifespan="off"
        )
    )
    listener = socket.create_server(("127.0.0.1", 0))
    thread = Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def test_large_bodies_are_refused_and_the_connection_stays_sound(gate: Gate) -> None:
    """50 MB, announced or in chunks of unknown total, get 413, and the server goes on serving."""

    async def in_pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield bytes(2**20)

    async def main(port: int) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as local:
            for content in (bytes(50 * 2**20), in_pieces()):
                answer = await local.post("/v1/models", content=content)
                assert answer.status_code == 413
                assert answer.json()["code"] == "request_too_large"
            assert (await local.post("/v1/models", content=bytes(MAX_BODY))).json()["size"] == MAX_BODY
            assert (await local.post("/v1/models", content=bytes(MAX_BODY + 1))).status_code == 413

    with serving(make_app(gate)) as port:
        asyncio.run(main(port))


@pytest.mark.anyio
async def test_strangers_have_little_to_say(gate: Gate) -> None:
    """The forms a stranger may send are small."""
    async with client(gate) as stranger:
        assert (await stranger.post("/login", content=bytes(STRANGER_BODY))).status_code == 200
        assert (await stranger.post("/login", content=bytes(STRANGER_BODY + 1))).status_code == 413


@pytest.mark.parametrize("length", ["-1", "+5", "abc", "٣", "1" * 30])
@pytest.mark.anyio
async def test_a_malformed_length_is_refused(gate: Gate, length: str) -> None:
    """Content-Length is digits, or the request is refused."""
    with pytest.raises(InvalidRequestError):
        body.announced_length({"content-length": length})


def exchange(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Send bytes to a server that closes the connection; status line and body of its first answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(request)
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    head, _, content = answer.partition(b"\r\n\r\n")
    return head.splitlines()[0], content


def test_raw_requests_without_a_host_are_refused(gate: Gate) -> None:
    """HTTP/1.0 without Host, over a real socket: 403 with the reason."""
    with serving(make_app(gate)) as port:
        status, content = exchange(port, b"GET / HTTP/1.0\r\n\r\n")
    assert b" 403 " in status
    assert json.loads(content)["code"] == "foreign_host"


def test_a_client_that_asks_first_need_not_send_its_large_body(gate: Gate) -> None:
    """`Expect: 100-continue` with too large a length is answered by 413, not by 100."""
    request = (
        b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Length: 52428800\r\nExpect: 100-continue\r\n\r\n"
    )
    with serving(make_app(gate)) as port:
        status, content = exchange(port, request)
    assert b" 413 " in status
    assert "52428800" in json.loads(content)["message"]
