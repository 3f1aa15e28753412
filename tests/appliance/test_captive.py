"""Phones on the set-up network are led to Hob's page; nobody else is led anywhere."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette

from appliance.app import create_app
from appliance.config import load_settings
from appliance.security.captive import leads_home


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Starlette]:
    """The service."""
    app = create_app(load_settings(data_dir=tmp_path, model="absent"))
    yield app
    app.state.store.close()


class At:
    """The application, reached at one of its addresses."""

    def __init__(self, app: Starlette, address: str) -> None:
        self._app, self._address = app, address

    async def __call__(self, scope: dict[str, object], receive: object, send: object) -> None:
        """Serve a request as if it had come to this address."""
        await self._app({**scope, "server": (self._address, 80)}, receive, send)  # type: ignore[arg-type]  # ASGI's


async def look(app: Starlette, address: str, url: str, method: str = "GET") -> httpx2.Response:
    """What a phone gets that asks `address` for `url`."""
    transport = httpx2.ASGITransport(At(app, address), client=("10.42.0.17", 50000))  # type: ignore[arg-type]  # ASGI's
    async with httpx2.AsyncClient(transport=transport) as client:
        return await client.request(method, url)


@pytest.mark.anyio
@pytest.mark.parametrize("address", ["10.42.0.1", "::ffff:10.42.0.1"])
@pytest.mark.parametrize(
    "url",
    ["http://captive.apple.com/hotspot-detect.html", "http://connectivitycheck.gstatic.com/generate_204"],
)
async def test_probes_are_led_to_the_page(app: Starlette, address: str, url: str) -> None:
    """To the address, whatever was asked for: the phone then shows Hob's page by itself."""
    answer = await look(app, address, url)
    assert answer.status_code == 302
    assert answer.headers["location"] == "http://10.42.0.1/"


@pytest.mark.anyio
async def test_on_other_networks_foreign_names_are_refused(app: Starlette) -> None:
    """As ever: a page under a foreign name must not reach Hob."""
    assert (await look(app, "192.168.1.7", "http://captive.apple.com/")).status_code == 403


@pytest.mark.anyio
async def test_forms_are_not_led_anywhere(app: Starlette) -> None:
    """Whoever sends something under a foreign name is refused, there too."""
    assert (await look(app, "10.42.0.1", "http://evil.example/setup", "POST")).status_code == 403


def test_sockets_without_an_address() -> None:
    """A Unix socket and a connection without any are no network."""
    for server in (None, ("/run/hob.sock", None), ("", 80)):
        assert not leads_home({"type": "http", "method": "GET", "server": server})
    assert not leads_home({"type": "websocket", "server": ("10.42.0.1", 80)})
