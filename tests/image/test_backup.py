"""A box is lost and another one takes its place: a backup on a stick brings the house back.

Two machines from the same image, both without a network. The first writes a backup to a stick that is in from
the start; the second, freshly flashed, gets the stick while it runs, restores it on its page and answers.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from appliance.backup import folder, header, restore
from tests.image import people
from tests.image.disk import make_stick, read_stick
from tests.image.emulator import Emulator
from tests.image.home import flashed
from tests.image.people import WAIT, Owner

pytestmark = pytest.mark.image

QUESTION = "What is Hob?"
PASSPHRASE = "seven loaves on a windowsill"


@dataclass
class Carried:
    """What left the first box: the stick, the backup as downloaded, and what had been said there."""

    stick: Path
    file: Path
    said: str


@pytest.fixture(scope="module")
def carried(
    emulator: Emulator,
    image: Path,
    accelerator: str,
    chromium: Browser,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Carried]:
    """A chat on the first box, a passphrase, a backup on a stick and one on the owner's computer."""
    place = tmp_path_factory.mktemp("lost")
    stick = make_stick(emulator, place / "stick.img", {})
    home = flashed(emulator, image, place / "box", accelerator, sticks=[stick])
    try:
        owner = people.set_up(chromium, home.on().url)
        said = owner.ask(QUESTION)
        page = owner.page
        page.goto("/backups")
        page.get_by_label("New passphrase").fill(PASSPHRASE)
        page.get_by_label("The same again").fill(PASSPHRASE)
        page.get_by_role("button", name="Set it").click()
        button = page.get_by_role("button", name="Write one to")
        owner.look_for("/backups", button)
        button.click()
        expect(page.get_by_role("status")).to_contain_text("may be pulled out", timeout=WAIT)
        page.get_by_role("button", name="Make one now").click()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").first.click()
        download.value.save_as(place / "downloaded.hobbackup")
        page.screenshot(path=place / "made.png", full_page=True)
        owner.close()
        home.kill()  # the box is lost, with the stick in it
        yield Carried(stick, place / "downloaded.hobbackup", said)
    finally:
        home.kill()


def test_what_left_the_box_is_whole(carried: Carried, emulator: Emulator, tmp_path: Path) -> None:
    """The stick's file and the downloaded one are backups that the passphrase opens."""
    (found,) = [path for path in read_stick(emulator, carried.stick, tmp_path) if path.suffix == ".hobbackup"]
    for file in (found, carried.file):
        checked = restore.verify(file, tmp_path / "nowhere", passphrase=PASSPHRASE)
        assert checked.proven
        assert (checked.manifest.counts.chats, checked.manifest.counts.messages) == (1, 2)
        assert checked.manifest.counts.owner
        assert carried.said.encode() not in file.read_bytes()
        assert header.peek(file).portable
    assert folder.backups(found.parent)


def test_it_comes_back_on_a_new_box(
    carried: Carried,
    emulator: Emulator,
    image: Path,
    accelerator: str,
    chromium: Browser,
    tmp_path: Path,
) -> None:
    """The new box's owner restores from the stick; chat and old password are back, and the model answers."""
    home = flashed(emulator, image, tmp_path / "box", accelerator)
    try:
        page = people.visit(chromium, home.on().url)
        page.get_by_label(re.compile("^Code")).fill(people.CODE)
        page.get_by_label("Choose a password").fill("a password for an hour")
        page.get_by_role("button", name="Make it mine and restore a backup").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Backups", timeout=WAIT)
        owner = Owner(page.context, page)
        with home.machine.stick(carried.stick):
            wish = page.locator("#restore summary", has_text="Restore…")
            owner.look_for("/backups", wish)
            wish.click()
            page.locator("#restore details").get_by_label("Its passphrase").fill(PASSPHRASE)
            page.locator("#restore details").get_by_role("button", name="Look into it").click()
            expect(page.get_by_role("heading", name="Restore this backup?")).to_be_visible(timeout=WAIT)
        page.screenshot(path=tmp_path / "asked.png", full_page=True)
        page.get_by_role("button", name="Restore it").click()
        expect(page.get_by_label("Password")).to_be_visible(timeout=WAIT)  # the old session is over
        owner.close()
        owner = people.sign_in(chromium, home.machine.url)
        owner.page.goto("/chats/1")
        expect(owner.page.get_by_role("main")).to_contain_text(QUESTION, timeout=WAIT)
        assert owner.page.locator(".turn.assistant .text").inner_text() == carried.said
        assert owner.ask("How do I add a model?")
        owner.close()
        home.off()  # checks the disk
    finally:
        home.kill()
