"""Coming in from elsewhere: set-up, sign-in and sign-out in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.webui.desk import Desk, answer, ask, has_state
from tests.webui.site import Site, serve

pytestmark = pytest.mark.browser

# What came through a proxy is not this machine itself, so its browser is a stranger at first.
STRANGER: dict[str, Any] = {"extra_http_headers": {"x-forwarded-for": "192.0.2.7"}}
PASSWORD = "warm bread and butter"


@pytest.fixture
def home(tmp_path: Path, libraries: Path) -> Iterator[Site]:
    """A service that has no owner yet."""
    folder, sockets = tmp_path / "home", tmp_path / "socket"
    folder.mkdir()
    sockets.mkdir()
    with serve(folder, libraries) as site:
        site.engine.release()
        yield site


@pytest.fixture
def visitor(chromium: Browser, home: Site) -> Iterator[Desk]:
    """Browsers that come from elsewhere."""
    desk = Desk(chromium, home.url)
    yield desk
    desk.close()


def press(page: Page, name: str) -> None:
    """Press a button."""
    page.get_by_role("button", name=name, exact=True).click()


def test_the_first_visit_makes_the_owner(visitor: Desk, home: Site) -> None:
    """A wrong code is refused; the right one and a password let in, and conversation works from there."""
    page = visitor.open(**STRANGER)
    expect(page.get_by_role("heading", level=1)).to_have_text("Hello, I am Hob")
    expect(page.get_by_label("Code from the console")).to_be_focused()
    page.get_by_label("Code from the console").fill("2222-2222")
    page.get_by_label("Choose a password").fill(PASSWORD)
    press(page, "Make it mine")
    expect(page.get_by_role("alert")).to_contain_text("The code is not right.")
    page.get_by_label("Code from the console").fill(home.code.lower())
    page.get_by_label("Choose a password").fill(PASSWORD)
    press(page, "Make it mine")
    expect(page.get_by_role("heading", level=1)).to_have_text("What would you like to know?")
    ask(page, "Hello!")
    has_state(page, "done")
    assert answer(page).locator(".text").inner_text().strip()


def test_signing_out_and_in_again(visitor: Desk, home: Site) -> None:
    """After signing out only the password opens the page, and it leads to where one wanted to go."""
    page = visitor.open(**STRANGER)
    page.get_by_label("Code from the console").fill(home.code)
    page.get_by_label("Choose a password").fill(PASSWORD)
    press(page, "Make it mine")
    page.get_by_role("link", name="Settings").click()
    press(page, "Sign out")
    expect(page.get_by_role("heading", level=1)).to_have_text("Welcome home")
    page.goto("/settings")
    page.get_by_label("Password").fill("wrong password")
    press(page, "Sign in")
    expect(page.get_by_role("alert")).to_contain_text("The password is not right.")
    page.get_by_label("Password").fill(PASSWORD)
    press(page, "Sign in")
    expect(page).to_have_url(f"{home.url}/settings")
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def test_a_session_that_ends_leads_to_the_door(visitor: Desk, home: Site) -> None:
    """When the session is revoked elsewhere, the next question leads to the sign-in page and is not lost."""
    page = visitor.open(**STRANGER)
    page.get_by_label("Code from the console").fill(home.code)
    page.get_by_label("Choose a password").fill(PASSWORD)
    press(page, "Make it mine")
    expect(page.get_by_label("Message")).to_be_focused()
    home.store.revoke_sessions()
    ask(page, "Am I still in?")
    expect(page.get_by_role("heading", level=1)).to_have_text("Welcome home")
    page.get_by_label("Password").fill(PASSWORD)
    press(page, "Sign in")
    expect(page.get_by_label("Message")).to_have_value("Am I still in?")
