"""The updates page of a real service, on a device with two slots."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Route, expect

from appliance.admin import updates
from appliance.update import arrivals
from tests.appliance.update.administration import administration
from tests.appliance.update.device import Device, make
from tests.webui.site import Site, serve

SECONDS = 60
"""How long an update of a few kilobytes may take on a busy machine."""


@dataclass
class Desk:
    """The page, the device behind it, and what would have restarted the machine."""

    site: Site
    device: Device
    restarts: list[str]
    client: httpx2.Client

    def page(self) -> str:
        """What the page says, without its mark-up."""
        return words(self.client.get("/updates").text)

    def post(self, path: str, **fields: str) -> str:
        """What the page says after a form was sent."""
        return words(self.client.post(path, data=fields).text)

    def send(self, name: str, data: bytes) -> str:
        """Upload a file; what the page says once the work is done."""
        self.client.post("/updates/upload", files={"bundle": (name, data, "application/octet-stream")})
        return self.settled()

    def settled(self) -> str:
        """What the page says once nothing is under way."""
        deadline = time.monotonic() + SECONDS
        while 'id="work"' in self.client.get("/updates").text:
            assert time.monotonic() < deadline, self.page()
            time.sleep(0.1)
        return self.page()


def words(html: str) -> str:
    """The main part of a page as text."""
    main = html[html.index("<main") :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", main))


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    """Changes that last for all tests of this page."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def desk(
    tmp_path_factory: pytest.TempPathFactory, libraries: Path, patch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    """One service for all tests, in the order of this file."""
    device = make(tmp_path_factory.mktemp("device") / "data", patch)
    media = device.folder / "media"
    patch.setenv("HOB_ADMIN_SOCKET", str(device.folder / "admin"))
    patch.setattr(updates, "FOLDERS", (device.folder / "updates", media))
    patch.setattr(arrivals.sticks, "__defaults__", ((media,),))
    with (
        administration(device.folder / "admin") as restarts,
        serve(device.folder, libraries) as site,
        httpx2.Client(
            base_url=site.url, headers={"origin": site.url}, follow_redirects=True, timeout=SECONDS
        ) as client,
    ):
        yield Desk(site, device, restarts, client)


def test_what_runs(desk: Desk) -> None:
    """The page tells version, slot and device, and that nothing was tried yet."""
    said = desk.page()
    assert "Runs 0.1.0 From slot A Device hob-test" in said
    assert "Hob asks nobody for updates." in said
    assert "Restart now" not in said
    assert "Go back" not in said
    assert 'href="/updates"' in desk.client.get("/settings").text


def test_bad_files(desk: Desk) -> None:
    """Each is refused with its reason, and no copy stays."""
    good = desk.device.bundle("good.raucb").read_bytes()
    for data, complaint in (
        (b"hello", "holiday.raucb is no update, or only a part of one."),
        (good[:9000], "is no update, or only a part of one."),
        (bytes([good[0] ^ 1]) + good[1:], "is damaged: its content is not what was signed."),
    ):
        assert complaint in desk.send("holiday.raucb", data)
    (desk.device.folder / "updates/good.raucb").unlink()
    assert list((desk.device.folder / "updates").iterdir()) == []
    assert desk.device.state["once"] == ""


def test_the_page_tells_by_itself(desk: Desk, chromium: Browser, tmp_path: Path) -> None:
    """In a browser the page follows the work to its end, and then says what came of it, without a reload."""
    file = tmp_path / "holiday.raucb"
    file.write_bytes(b"not an update\n" * 1000)
    page = chromium.new_page()
    page.goto(f"{desk.site.url}/updates")
    page.get_by_label("A file of this computer").set_input_files(file)
    page.get_by_role("button", name="Send and install").click()
    told = "holiday.raucb is no update, or only a part of one."
    expect(page.get_by_role("alert")).to_contain_text(told, timeout=SECONDS * 1000)
    expect(page.get_by_role("button", name="Send and install")).to_be_visible()
    page.close()


@pytest.mark.slow
def test_a_page_that_is_left_without_a_reply_asks_again(desk: Desk, chromium: Browser) -> None:
    """A machine that goes down never answers, or cannot say any more what runs: neither is the end."""
    page = chromium.new_page()
    asked: list[Route] = []

    def going_down(route: Route) -> None:
        asked.append(route)
        if len(asked) == 1:
            return
        if len(asked) > 2:
            route.fallback()
            return
        response = route.fetch()
        nothing = response.text().replace('id="installed"', 'id="installed" data-unknown')
        assert nothing != response.text()
        route.fulfill(response=response, body=nothing)

    def as_if_restarting(route: Route) -> None:
        work = '<section id="work" data-watch>Restarting</section>'
        response = route.fetch()
        route.fulfill(response=response, body=response.text().replace("<h1>", f"{work}<h1>", 1))
        page.route("**/updates", going_down)

    page.route("**/updates", as_if_restarting, times=1)
    page.goto(f"{desk.site.url}/updates")
    expect(page.get_by_text("Restarting")).to_be_visible()
    expect(page.get_by_text("Restarting")).to_be_hidden(timeout=SECONDS * 1000)
    assert len(asked) == 3
    page.close()


def test_no_file(desk: Desk) -> None:
    """A form without a file is told apart from an empty update."""
    answer = desk.client.post("/updates/upload", files={"bundle": ("", b"", "application/octet-stream")})
    assert "No file was chosen" in words(answer.text)


def test_a_path_that_was_not_offered(desk: Desk, tmp_path: Path) -> None:
    """Only what is on a stick is installed by its path: the page is no way to read other files."""
    assert "is not on a stick." in desk.post("/updates", source="/etc/shadow")


def test_an_upload_goes_in(desk: Desk) -> None:
    """It is streamed to the disk, checked, written, and waits for the restart."""
    file = desk.device.bundle("new.raucb", size=100 * 4096)
    data = file.read_bytes()
    file.unlink()
    said = desk.send("C:\\Users\\me\\..\\new (1).raucb", data)
    assert "0.2.0 is installed, and will be tried at the next start." in said
    assert "Restart now" in said
    assert list((desk.device.folder / "updates").iterdir()) == []


def test_larger_than_other_forms(desk: Desk) -> None:
    """An update may be larger than any other request, up to the room that there is."""
    answer = desk.client.post("/settings/keys", content=bytes(5 * 2**20))
    assert answer.status_code == 413
    assert "is no update" in desk.send("large.raucb", os.urandom(5 * 2**20))


def test_a_trial_in_vain(desk: Desk) -> None:
    """After the way back the page says what was tried and why it failed."""
    desk.device.boot("0.2.0")
    said = desk.page()
    assert "Trying 0.2.0" in said
    assert "0.2.0 runs on trial, until it has answered a question." in said
    assert "Restart now" not in said
    assert "Install an update" not in said
    desk.device.boot("0.1.0")
    said = desk.page()
    assert "0.2.0 was tried on" in said
    assert "and 0.1.0 runs again: it did not start" in said
    assert "Restart now" not in said


def test_from_a_stick(desk: Desk) -> None:
    """What lies on a stick is offered by name, and installed from there."""
    stick = desk.device.folder / "media/STICK"
    stick.mkdir(parents=True)
    file = desk.device.bundle("hob.raucb", version="0.4.0")
    file.rename(stick / "hob.raucb")
    assert f"{stick}/hob.raucb" in desk.page()
    desk.client.post("/updates", data={"source": str(stick / "hob.raucb")})
    assert "0.4.0 is installed" in desk.settled()
    assert (stick / "hob.raucb").exists()


def test_going_back(desk: Desk) -> None:
    """The version before is offered by name; the device restarts into it, and the page waits for that."""
    desk.device.set(booted="b", default="b", once="", states={"a": "good", "b": "good"})
    (desk.device.folder / "image.toml").write_text('version = "0.4.0"\n')
    assert "Go back to 0.1.0" in desk.page()
    assert "This page goes on by itself when Hob is back" in desk.post("/updates/back")
    assert desk.restarts == ["reboot"]
    assert desk.device.state["once"] == "a"
