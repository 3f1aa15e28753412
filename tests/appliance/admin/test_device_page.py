"""The device page: its texts, and the page with a real administration behind it, over a real socket."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from appliance.admin import messages
from appliance.admin.handlers import QUESTIONS
from appliance.admin.messages import Device, Done, Link, WifiNetwork, WifiNetworks
from appliance.admin.server import Server, Tell
from appliance.app import create_app
from appliance.config import load_settings
from appliance.errors import AdminError, HobError
from tests.appliance.setup.device import KEY
from webui import device
from webui.pages import Fact

pytestmark = pytest.mark.anyio

TOLD = Device(
    host_name="kitchen",
    zone="Europe/Berlin",
    seconds=1_770_000_000,
    clock_kept=False,
    ssh_keys=[],
    ssh_host_keys=[],
    wifi=True,
    wifi_network="home",
    wifi_problem="",
    country="DE",
    set_up_network="",
    links=[
        Link(interface="eth0", kind="ethernet", network="", addresses=[]),
        Link(interface="wlan0", kind="wifi", network="wifi", addresses=["192.168.1.7"]),
    ],
    problems=[],
)


def change(**fields: Any) -> Device:
    """The device, with something else about it."""
    return msgspec.structs.replace(TOLD, **fields)


class Administration:
    """Root's side, with handlers that note what they are asked and answer as a test wants."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.told = TOLD
        self.refuse: HobError | None = None
        self.handlers: dict[type, Callable[[Any, Tell], Awaitable[messages.Final]]] = dict.fromkeys(
            (
                messages.SetHostName,
                messages.SetTimeZone,
                messages.SetSshKeys,
                messages.SetClock,
                messages.SetWifi,
                messages.ForgetWifi,
                messages.PowerOff,
            ),
            self._note,
        ) | {messages.DescribeDevice: self._describe, messages.ScanWifi: self._scan}

    async def _note(self, request: Any, tell: Tell) -> messages.Final:
        self.asked.append(request)
        if self.refuse:
            raise self.refuse
        return Done(text="It is done.")

    async def _describe(self, request: Any, tell: Tell) -> messages.Final:
        return self.told

    async def _scan(self, request: Any, tell: Tell) -> messages.Final:
        return WifiNetworks(
            networks=[
                WifiNetwork(ssid="home", signal=80, secure=True),
                WifiNetwork(ssid="<cafe>", signal=20, secure=False),
            ]
        )


@pytest.fixture
async def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser on the machine itself, at a service that has no administration yet."""
    monkeypatch.setenv("HOB_ADMIN_SOCKET", str(tmp_path / "admin.sock"))
    app = create_app(load_settings(data_dir=tmp_path, model="absent"))
    transport = httpx2.ASGITransport(app, client=("127.0.0.1", 50000))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        client.headers["origin"] = "http://localhost"
        yield client
    app.state.store.close()


@pytest.fixture
async def administration(tmp_path: Path, browser: httpx2.AsyncClient) -> AsyncIterator[Administration]:
    """An administration that the pages find, served as root's is."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "admin.sock"))
        listener.listen()
        running = Administration()
        task = asyncio.create_task(
            Server(running.handlers, {os.getuid()}, idle=3600, questions=QUESTIONS).run(listener)
        )
        yield running
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_page_of_a_device(browser: httpx2.AsyncClient, administration: Administration) -> None:
    """Name, network, SSH and clock as they are."""
    page = await browser.get("/device")
    assert page.status_code == 200
    for text in ("kitchen", "192.168.1.7", "Hob joins <strong>home</strong>", "SSH is off", "Europe/Berlin"):
        assert text in page.text
    assert 'value="2026-02-02T03:40"' in page.text  # in the zone where the device stands
    assert "Look for networks" in page.text


async def test_on_a_computer_there_is_nothing_to_see(browser: httpx2.AsyncClient) -> None:
    """The page says so, and every wish is refused with the same words."""
    page = await browser.get("/device")
    assert page.status_code == 200
    assert "This kind of installation does not let Hob change the machine" in page.text
    assert '<form method="post" action="/device' not in page.text
    assert (await browser.post("/device/off")).status_code == 500


@pytest.mark.parametrize(
    ("path", "form", "asked"),
    [
        ("name", {"name": " Attic.local "}, messages.SetHostName(name="attic")),
        ("zone", {"zone": "UTC"}, messages.SetTimeZone(zone="UTC")),
        ("ssh", {"keys": f"{KEY}\r\n\r\n"}, messages.SetSshKeys(keys=[KEY])),
        ("ssh", {"keys": ""}, messages.SetSshKeys(keys=[])),
        ("clock", {"time": "2026-07-01T12:00"}, messages.SetClock(seconds=1_782_900_000)),
        (
            "wifi",
            {"ssid": "home", "password": " with space ", "country": "de", "hidden": "yes"},
            messages.SetWifi(ssid="home", password=" with space ", country="DE", hidden=True),
        ),
        ("wifi", {"ssid": "cafe"}, messages.SetWifi(ssid="cafe")),
        ("wifi/forget", {}, messages.ForgetWifi()),
        ("off", {}, messages.PowerOff()),
    ],
)
async def test_forms_become_wishes(
    path: str,
    form: dict[str, str],
    asked: object,
    browser: httpx2.AsyncClient,
    administration: Administration,
) -> None:
    """Each form asks for one thing, and its page says what came of it."""
    page = await browser.post(f"/device/{path}", data=form)
    assert page.status_code == 200
    assert administration.asked == [asked]
    assert "It is done." in page.text


@pytest.mark.parametrize(
    ("path", "form", "said"),
    [
        ("name", {"name": "a b"}, "letters, digits and hyphens"),
        ("name", {}, "letters, digits and hyphens"),
        ("wifi", {"ssid": ""}, "1 to 32 characters"),
        ("wifi", {"ssid": "home", "country": "Germany"}, "two letters"),
        ("wifi", {"ssid": "home", "password": "x" * 65}, "at most 64"),
        ("ssh", {"keys": "x\n" * 65}, "64 keys"),
        ("clock", {"time": "noon"}, "no date and time"),
        ("clock", {}, "no date and time"),
    ],
)
async def test_what_cannot_be_is_not_even_asked(
    path: str,
    form: dict[str, str],
    said: str,
    browser: httpx2.AsyncClient,
    administration: Administration,
) -> None:
    """The page comes back with a sentence about the field."""
    page = await browser.post(f"/device/{path}", data=form)
    assert page.status_code == 400
    assert said in page.text
    assert administration.asked == []


async def test_a_refusal_is_shown(browser: httpx2.AsyncClient, administration: Administration) -> None:
    """Message and hint of the administration, above the page as it is."""
    administration.refuse = AdminError("home did not let Hob in: the password is not right.", hint="Again?")
    page = await browser.post("/device/wifi", data={"ssid": "home", "password": "wrong password"})
    assert page.status_code == 500
    assert "the password is not right." in page.text
    assert "wrong password" not in page.text


async def test_looking_for_networks(browser: httpx2.AsyncClient, administration: Administration) -> None:
    """What is in reach, strongest first, and names that are no markup."""
    page = await browser.get("/device?wifi=look")
    assert page.text.index("home</strong>") < page.text.index("&lt;cafe&gt;</strong>")
    assert "weak, open: anybody can listen" in page.text


async def test_without_a_radio_wifi_is_not_mentioned(
    browser: httpx2.AsyncClient, administration: Administration
) -> None:
    """A device with nothing but a cable has no form for it."""
    administration.told = change(wifi=False, wifi_network="", clock_kept=True)
    page = await browser.get("/device?wifi=look")
    assert "Wi-Fi network" not in page.text
    assert "Set the clock" not in page.text


async def test_problems_of_the_boot_partition_are_shown(
    browser: httpx2.AsyncClient, administration: Administration
) -> None:
    """What was wrong in hob.toml stands on the page, too."""
    administration.told = change(problems=["hob.toml: hostname: must be letters."])
    assert "hob.toml: hostname: must be letters." in (await browser.get("/device")).text


async def test_links() -> None:
    """Each interface in words; the set-up network is called what it is."""
    assert device.facts(TOLD) == [Fact("Cable", "not connected"), Fact("Wi-Fi", "home, 192.168.1.7")]
    facts = device.facts(change(set_up_network="Hob-3F2A"))
    assert facts[1] == Fact("Wi-Fi", "opens Hob-3F2A, the network for setting Hob up")
    assert device.facts(change(links=[])) == [Fact("Network", "none that can be told")]
