"""Every route of the service against everybody who might knock. A new route fails until it has its line."""

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import pytest
from argon2 import PasswordHasher
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from appliance.app import create_app
from appliance.config import load_settings
from appliance.security import Gate, sessions
from appliance.security.keys import add_key
from appliance.store import Store

PEER = ("192.0.2.7", 50000)
HOST = "http://hob.local"

# A hundred tests need not wait for a hundred slow hashes; set-up has a test of its own.
QUICK = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


@dataclass(frozen=True)
class Line:
    """The statuses a route answers with, to a visitor on the LAN.

    Attributes:
        nobody: without session and key; 303 leads to sign-in.
        owner: with a session, from Hob's own page.
        key: with an API key.
        send: form fields or JSON text for requests that act.
        browser: what a browser gets as nobody, where that differs from what a program gets.
    """

    nobody: int
    owner: int
    key: int
    send: dict[str, str] | str | None = None
    browser: int | None = None


def page(owner: int, send: dict[str, str] | None = None) -> Line:
    """For the owner alone; browsers are led to sign-in."""
    return Line(nobody=401, owner=owner, key=401, send=send, browser=303)


def api(status: int, send: str | None = None) -> Line:
    """For programs with a key, and for the owner."""
    return Line(nobody=401, owner=status, key=status, send=send)


def anyone(status: int, send: dict[str, str] | None = None) -> Line:
    """For strangers too."""
    return Line(nobody=status, owner=status, key=status, send=send)


# There is an owner, a chat with a finished answer and a model that is not installed, and no engine runs.
# The owner's statuses show that a request came through; what pages do with good input, their own tests say.
TABLE = {
    "GET /healthz": anyone(503),
    "GET /static/{path}": anyone(200),
    "GET /favicon.ico": anyone(200),
    "GET /setup": anyone(303),
    "POST /setup": anyone(403, {"code": "AAAA-AAAA", "password": "long enough"}),
    "GET /login": anyone(200),
    "POST /login": anyone(401, {"password": "wrong password"}),
    "POST /logout": page(303),
    "GET /v1/models": api(200),
    "GET /v1/models/{id}": api(404),
    "POST /v1/chat/completions": api(400, "{}"),
    "GET /api/library": api(200),
    "GET /api/library/{model}/{file}": api(404),
    "GET /": page(200),
    "POST /chats": page(400, {"text": ""}),
    "GET /chats/{chat}": page(200),
    "POST /chats/{chat}/messages": page(400, {"text": ""}),
    "POST /chats/{chat}/rename": page(303, {"title": "New title"}),
    "POST /chats/{chat}/delete": page(303),
    "GET /chats/{chat}/messages/{message}/events": page(200),
    "POST /chats/{chat}/messages/{message}/stop": page(303),
    "POST /chats/{chat}/messages/{message}/regenerate": page(404),
    "GET /search": page(200),
    "GET /settings": page(200),
    "POST /settings/keys": page(201, {"name": "laptop"}),
    "POST /settings/keys/{key}/revoke": page(303),
    "GET /api/system": api(200),
    "GET /api/models": api(200),
    "GET /api/catalogue": api(200),
    "GET /api/jobs": api(200),
    "GET /models": page(200),
    "POST /models": page(400, {"source": ""}),
    "POST /models/look": page(400, {"source": ""}),
    "GET /models/file": page(404),
    "POST /models/{verb}": page(404, {"model": "absent"}),
    "GET /jobs/{job}": page(200),
    "POST /jobs/{job}/cancel": page(303),
    "POST /jobs/{job}/again": page(303),
    "GET /updates": page(200),
    "POST /updates": page(500, {"source": "http://192.0.2.1/x.raucb"}),
    "POST /updates/upload": page(400),
    "POST /updates/look": page(500),
    "POST /updates/restart": page(500),
    "POST /updates/back": page(500),
    "GET /device": page(200),
    "POST /device/name": page(500, {"name": "kitchen"}),
    "POST /device/zone": page(500, {"zone": "UTC"}),
    "POST /device/ssh": page(500, {"keys": ""}),
    "POST /device/clock": page(500, {"time": "2026-01-01T12:00"}),
    "POST /device/wifi": page(500, {"ssid": "home"}),
    "POST /device/wifi/forget": page(500),
    "POST /device/off": page(500),
    "GET /backups": page(200),
    "POST /backups/make": page(303),
    "POST /backups/passphrase": page(
        303, {"passphrase": "correct horse battery", "again": "correct horse battery"}
    ),
    "GET /backups/file": page(404),
    "POST /backups/remove": page(404, {"name": "absent"}),
    "POST /backups/look": page(404, {"backup": "absent"}),
    "POST /backups/restore": page(404, {"token": "absent"}),
    "POST /backups/models": page(404, {"model": "absent"}),
    "GET /system": page(200),
    "POST /system/measure": page(303),
}


def endpoints(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[str]:
    """Every method and path that an application answers; HEAD goes with GET."""
    for route in routes:
        if isinstance(route, Route):
            for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
                yield f"{method} {prefix}{without_types(route.path)}"
        elif isinstance(route, Mount):
            if route.routes:
                yield from endpoints(route.routes, prefix + route.path)
            else:
                yield f"GET {prefix}{route.path}/{{path}}"
        elif isinstance(route, WebSocketRoute):
            yield f"WEBSOCKET {prefix}{without_types(route.path)}"
        else:
            pytest.fail(f"cannot tell what {route!r} answers")


def without_types(path: str) -> str:
    """A route's path with the names of its parameters alone."""
    return re.sub(r":\w+}", "}", path)


class House:
    """The real service without a running engine, an owner, and everybody who knocks."""

    def __init__(self, app: Starlette) -> None:
        self.app = app
        self.store: Store = app.state.store
        self.gate: Gate = app.state.gate

    async def path(self, pattern: str) -> str:
        """A route's path with a chat, message, key and file that exist, made anew for each request."""
        question, answer = self.store.ask(None, "Who are you?", "absent", {})
        self.store.finish(answer.id, state="done", content="I am Hob.", finish="stop")
        key, _ = add_key(self.store, "phone")
        for parameter, value in {
            "{chat}": question.chat_id,
            "{message}": answer.id,
            "{key}": key.id,
            "{verb}": "default",
            "{job}": self.store.end_job(
                self.store.add_job("verify", "absent", ["--", "absent"]).id, "failed"
            ).id,
            "{id}": "absent",
            "{path}": "app.js",
            "{model}": "absent",
            "{file}": "mlc-chat-config.json",
        }.items():
            pattern = pattern.replace(parameter, str(value))
        assert "{" not in pattern, f"{pattern}: tell path() what to put in"
        return pattern

    async def knock(
        self, endpoint: str, headers: dict[str, str], peer: tuple[str, int] = PEER
    ) -> httpx.Response:
        """Send a request for an endpoint of the table, with what its line says to send."""
        method, _, pattern = endpoint.partition(" ")
        send = TABLE[endpoint].send
        transport = httpx.ASGITransport(self.app, client=peer)
        async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
            return await client.request(
                method,
                await self.path(pattern),
                data=send if isinstance(send, dict) else None,
                content=send if isinstance(send, str) else None,
                headers=headers,
            )

    async def cookie(self) -> dict[str, str]:
        """A browser that is signed in."""
        return {"cookie": f"{sessions.COOKIE}={await self.gate.sessions.open('test')}"}

    def key(self) -> dict[str, str]:
        """A program with a key."""
        return {"authorization": f"Bearer {add_key(self.store, 'laptop')[1]}"}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A service that has its owner."""
    house = House(create_app(load_settings(data_dir=tmp_path, model="absent")))
    house.store.create_owner(QUICK.hash("long enough"))
    yield house
    house.store.close()


@pytest.mark.anyio
async def test_every_route_has_its_line(house: House) -> None:
    """The table and the application name the same routes."""
    assert sorted(endpoints(house.app.routes)) == sorted(TABLE)


@pytest.mark.anyio
@pytest.mark.parametrize("endpoint", TABLE)
async def test_who_gets_in(house: House, endpoint: str) -> None:
    """Nobody, the owner and a program with a key each get what the route's line says."""
    line = TABLE[endpoint]
    own = {"origin": HOST}
    nobody = await house.knock(endpoint, {})
    assert nobody.status_code == line.nobody
    browser = await house.knock(endpoint, {"accept": "text/html", **own})
    assert browser.status_code == (line.browser or line.nobody)
    if browser.status_code == 303 and line.nobody == 401:
        assert browser.headers["location"].startswith("/login")
    owner = await house.knock(endpoint, {**await house.cookie(), **own})
    assert owner.status_code == line.owner
    assert (await house.knock(endpoint, house.key())).status_code == line.key


@pytest.mark.anyio
@pytest.mark.parametrize("endpoint", TABLE)
async def test_foreign_hosts_and_origins_get_nothing(house: House, endpoint: str) -> None:
    """A rebound name and another site's page are refused everywhere, whoever the browser is, here too."""
    for who in ({}, await house.cookie(), house.key()):
        for peer in (PEER, ("127.0.0.1", 50000)):
            for trick in (
                {"host": "evil.example"},
                {"origin": "http://evil.example"},
                {"origin": "null"},
                {"host": "evil.example", "origin": "http://evil.example"},
            ):
                answer = await house.knock(endpoint, {**who, **trick}, peer)
                assert answer.status_code == 403, (trick, peer)
                assert "set-cookie" not in answer.headers


@pytest.mark.anyio
@pytest.mark.parametrize("endpoint", [endpoint for endpoint in TABLE if not endpoint.startswith("GET")])
async def test_a_cookie_alone_acts_nowhere(house: House, endpoint: str) -> None:
    """A request that acts and does not show its page is refused, even with a session."""
    assert (await house.knock(endpoint, await house.cookie())).status_code == 403


@pytest.mark.anyio
async def test_strangers_learn_nothing_from_what_does_not_exist(house: House) -> None:
    """An unknown path, an unknown chat and a real one look the same to a stranger."""
    transport = httpx.ASGITransport(house.app, client=PEER)
    async with httpx.AsyncClient(transport=transport, base_url=HOST) as stranger:
        answers = [
            await stranger.get(path)
            for path in (await house.path("/chats/{chat}"), "/chats/999", "/no/such/page", "/v2/models")
        ]
        assert {(answer.status_code, answer.text) for answer in answers} == {(401, answers[0].text)}


@pytest.mark.anyio
async def test_errors_of_the_api_have_openais_shape(house: House) -> None:
    """What the gate refuses under /v1, programs can read."""
    for headers, status, code in (
        ({}, 401, "not_signed_in"),
        ({"authorization": "Bearer hob_wrong"}, 401, "invalid_api_key"),
        ({"host": "evil.example"}, 403, "foreign_host"),
        ({"origin": "http://evil.example"}, 403, "foreign_origin"),
    ):
        answer = await house.knock("GET /v1/models", headers)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["code"] == code
        assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.anyio
async def test_signing_in_and_out(house: House) -> None:
    """The right password opens a new session and leads back; signing out ends it on the server."""
    transport = httpx.ASGITransport(house.app, client=PEER)
    async with httpx.AsyncClient(
        transport=transport, base_url=HOST, headers={"origin": HOST, "accept": "text/html"}
    ) as browser:
        browser.cookies.set(sessions.COOKIE, "planted", domain="hob.local")
        led = await browser.get("/search?q=tea")
        assert led.headers["location"] == "/login?next=/search%3Fq%3Dtea"
        form = await browser.get(led.headers["location"])
        assert 'value="/search?q=tea"' in form.text
        wrong = await browser.post("/login", data={"password": "wrong password"})
        assert wrong.status_code == 401
        assert "not right" in wrong.text
        right = await browser.post("/login", data={"password": "long enough", "next": "/search?q=tea"})
        assert right.status_code == 303
        assert right.headers["location"] == "/search?q=tea"
        token = browser.cookies[sessions.COOKIE]
        assert token != "planted"
        assert (await browser.get("/")).status_code == 200
        away = await browser.post("/login", data={"password": "long enough", "next": "//evil.example"})
        assert away.headers["location"] == "/"
        assert browser.cookies[sessions.COOKIE] != token
        assert [session.id for session in house.store.list_sessions()] == [2]
        token = browser.cookies[sessions.COOKIE]
        out = await browser.post("/logout")
        assert out.headers["location"] == "/login"
        assert sessions.COOKIE not in browser.cookies
        assert house.store.list_sessions() == []
        browser.cookies.set(sessions.COOKIE, token, domain="hob.local")
        assert (await browser.get("/")).status_code == 303


@pytest.mark.anyio
async def test_the_first_visit(tmp_path: Path) -> None:
    """Before there is an owner every page leads to set-up; the console's code makes the owner, once."""
    house = House(create_app(load_settings(data_dir=tmp_path, model="absent")))
    transport = httpx.ASGITransport(house.app, client=PEER)
    async with httpx.AsyncClient(
        transport=transport, base_url=HOST, headers={"origin": HOST, "accept": "text/html"}
    ) as browser:
        for path in ("/", "/login", "/chats/1"):
            assert (await browser.get(path)).headers["location"] == "/setup"
        form = await browser.get("/setup")
        assert form.status_code == 200
        assert house.gate.owner.setup_code not in form.text
        wrong = await browser.post("/setup", data={"code": "AAAA-AAAA", "password": "long enough"})
        assert wrong.status_code == 403
        short = await browser.post("/setup", data={"code": house.gate.owner.setup_code, "password": "short"})
        assert short.status_code == 400
        assert "at least 8" in short.text
        code = house.gate.owner.setup_code
        done = await browser.post("/setup", data={"code": code, "password": "long enough"})
        assert done.status_code == 303
        assert (await browser.get("/")).status_code == 200
        again = await browser.post("/setup", data={"code": code, "password": "another one"})
        assert again.status_code == 403
    house.store.close()


@pytest.mark.anyio
async def test_too_many_guesses_are_told_to_wait(house: House) -> None:
    """The sixth wrong password in a row gets 429 and the time to wait, on a page for people."""
    transport = httpx.ASGITransport(house.app, client=PEER)
    async with httpx.AsyncClient(transport=transport, base_url=HOST) as stranger:
        for _ in range(5):
            assert (await stranger.post("/login", data={"password": "wrong password"})).status_code == 401
        refused = await stranger.post("/login", data={"password": "long enough"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "Wait" in refused.text
