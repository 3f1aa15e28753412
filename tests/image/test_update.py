"""A machine's updates: one whose power fails, a good one, a broken one that is taken back, and the way back.

One disk lives through it all, in the order of this file. Everything is done on the page, as an owner does it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.image import people
from tests.image.building import Release, hob_image
from tests.image.conftest import ENVIRONMENT
from tests.image.disk import MEBIBYTE, make_stick
from tests.image.emulator import Emulator
from tests.image.home import Home, flashed
from tests.image.people import Owner

pytestmark = pytest.mark.image

QUESTION = "What is Hob?"

WRITTEN = 600_000
"""Milliseconds for a bundle to be sent, checked and written by an emulated machine."""

DECIDED = 900_000
"""Milliseconds for a restart, a trial and, where it fails, another restart."""

BROKEN = """\
extends = "nuc"

# A release that was never tried: on a computer without a GPU its model answers nobody.
[settings]
devices = ["cuda"]
device_fallback = "refuse"
"""


@dataclass
class Updated:
    """The machine with its owner at the page, and the chat that must survive everything."""

    home: Home
    browser: Browser
    owner: Owner
    chat: str
    said: str

    @property
    def page(self) -> Page:
        """The owner's page."""
        return self.owner.page

    def look(self) -> str:
        """What the updates page says of this device."""
        self.page.goto("/updates")
        return self.page.locator("#installed").inner_text()

    def send(self, bundle: Path) -> None:
        """Choose an update file and send it; returns when the device has all of it and works on it."""
        self.page.goto("/updates")
        self.page.get_by_label("A file of this computer").set_input_files(bundle)
        with self.page.expect_navigation(timeout=WRITTEN):
            self.page.get_by_role("button", name="Send and install").click()

    def is_refused(self, bundle: Path, reason: str) -> None:
        """Send a file that is not taken, and read why."""
        self.send(bundle)
        expect(self.page.locator("#work")).to_be_hidden(timeout=WRITTEN)
        self.look()
        expect(self.page.get_by_role("alert")).to_contain_text(reason)

    def install(self, bundle: Path, version: str) -> None:
        """Send an update and wait until it waits for a restart."""
        self.send(bundle)
        self.installed(version)

    def install_from(self, stick: Path, version: str) -> None:
        """Put in a stick with an update, have it installed from there, and pull it out."""
        with self.home.machine.stick(stick):
            button = self.page.get_by_role(
                "button", name=f"Install /run/media/system/STICK/hob-nuc-{version}"
            )
            self.owner.look_for("/updates", button)
            button.click()
            self.installed(version)

    def installed(self, version: str) -> None:
        """Wait until an update waits for a restart."""
        waits = f"{version} is installed, and will be tried at the next start."
        expect(self.page.locator("#installed")).to_contain_text(waits, timeout=WRITTEN)

    def restart(self, button: str, outcome: str) -> str:
        """Press a button that restarts the machine, and wait until the page tells this outcome."""
        self.page.get_by_role("button", name=button).click()
        return self.wait(outcome)

    def wait(self, outcome: str) -> str:
        """Wait until the page tells an outcome: it looks by itself, also while nobody answers."""
        expect(self.page.locator("#installed")).to_contain_text(re.compile(outcome), timeout=DECIDED)
        return self.page.locator("#installed").inner_text()

    def again(self) -> None:
        """Switch the machine on after a power cut, and sign in."""
        self.home.kill()
        self.owner.close()
        self.owner = people.sign_in(self.browser, self.home.on().url)

    def keeps_the_chat(self) -> None:
        """What was said before all updates is there, and the conversation goes on."""
        self.page.goto(self.chat)
        expect(self.page.locator(".turn.assistant").first.locator(".text")).to_have_text(self.said)
        assert self.owner.ask("Are you well?")


@pytest.fixture(scope="module")
def good(release: Release, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The update to 0.2.0; depends on the image so that the two are not built at once."""
    folder = tmp_path_factory.mktemp("good")
    hob_image(ENVIRONMENT, "bundle", "nuc", "--version", "0.2.0", "--keys", keys, "--out", folder)
    return folder / "hob-nuc-0.2.0.raucb"


@pytest.fixture(scope="module")
def broken(good: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An update to 0.3.0 that comes up and cannot answer."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "broken.toml").write_text(BROKEN)
    recipe = folder / "broken.toml"
    hob_image(ENVIRONMENT, "bundle", recipe, "--version", "0.3.0", "--keys", keys, "--out", folder)
    return folder / "hob-broken-0.3.0.raucb"


@pytest.fixture(scope="module")
def updated(
    emulator: Emulator,
    image: Path,
    accelerator: str,
    chromium: Browser,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Updated]:
    """A freshly flashed machine whose owner has asked something."""
    home = flashed(emulator, image, tmp_path_factory.mktemp("up"), accelerator)
    owner = people.set_up(chromium, home.on().url)
    said = owner.ask(QUESTION)
    updated = Updated(home, chromium, owner, re.sub(r"^https?://[^/]+", "", owner.page.url), said)
    yield updated
    home.kill()


def test_as_flashed(updated: Updated) -> None:
    """What runs is told; there is nothing to go back to, and nobody is asked for updates."""
    told = updated.look()
    assert "0.1.0" in told
    assert "slot A" in told
    assert "Go back" not in told
    expect(updated.page.locator("#automatic")).to_contain_text("Hob asks nobody for updates.")


def test_what_is_no_update(updated: Updated, tmp_path: Path) -> None:
    """A file that only has the name of one is refused, with the reason, and the room is given back."""
    file = tmp_path / "hob-nice.raucb"
    file.write_bytes(b"not an update\n" * 100_000)
    updated.is_refused(file, "is no update, or only a part of one")
    assert "0.1.0" in updated.look()


def test_a_power_cut_while_it_is_written(updated: Updated, good: Path) -> None:
    """The plug is pulled in the middle of writing: what ran runs, the chat is there, and the page tells."""
    updated.send(good)
    expect(updated.page.locator("#work")).to_contain_text("Copying image to rootfs", timeout=WRITTEN)
    updated.again()
    told = updated.look()
    assert "0.1.0" in told
    assert "0.2.0 could not be installed" in told
    assert "switched off, or restarted, while the update was being written" in told
    updated.keeps_the_chat()


def test_a_good_update(updated: Updated, good: Path, emulator: Emulator, tmp_path: Path) -> None:
    """From a stick it goes in, is tried, answers its question, and stays."""
    size = (good.stat().st_size // MEBIBYTE + 64) * MEBIBYTE
    stick = make_stick(emulator, tmp_path / "stick.img", {good.name: good}, size)
    updated.install_from(stick, "0.2.0")
    stick.unlink()
    told = updated.restart("Restart now", "0.2.0 was installed on .*, and works")
    assert "slot B" in told
    updated.page.screenshot(path=updated.home.folder / "updated.png")
    updated.keeps_the_chat()


def test_the_way_back(updated: Updated) -> None:
    """The version before is a button away, boots, and is what boots from then on; and the other way again."""
    for slot, version in (("A", "0.1.0"), ("B", "0.2.0")):
        updated.look()
        updated.page.get_by_text(f"Go back to {version}").click()
        told = updated.restart(f"Restart into {version}", f"{version} was installed on .*, and works")
        assert f"slot {slot}" in told
    updated.keeps_the_chat()


def test_what_runs_is_no_update(updated: Updated, good: Path) -> None:
    """The same version again is refused, and an older one would be."""
    updated.is_refused(good, "0.2.0 is what runs here")


def test_a_broken_update_is_taken_back(updated: Updated, broken: Path) -> None:
    """It comes up, cannot answer, and the machine goes back by itself; the page tells why."""
    updated.install(broken, "0.3.0")
    told = updated.restart("Restart now", "0.3.0 was tried on .*, and 0.2.0 runs again")
    assert "cuda" in told.lower()
    assert "slot B" in told
    updated.page.screenshot(path=updated.home.folder / "taken-back.png")
    updated.keeps_the_chat()


def test_it_stays_there(updated: Updated) -> None:
    """Switched off and on again, it is the version that answered, and nothing is tried anew."""
    updated.owner.close()
    updated.home.off()
    updated.owner = people.sign_in(updated.browser, updated.home.on().url)
    told = updated.look()
    assert "0.2.0 runs again" in told
    assert "Restart now" not in told
    assert "Go back" not in told  # the other slot holds what failed
