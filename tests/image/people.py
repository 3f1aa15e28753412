"""What people do with a machine through its page, at the pace of an emulated one."""

import re
from dataclasses import dataclass

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.webui.desk import answer, ask

CODE = "K7WQ-3MZP-8HTR"
"""The set-up code that the tests put into `hob.toml` on the boot partition."""

PASSWORD = "warm bread and butter"

WAIT = 120_000
"""Milliseconds that an emulated machine gets for anything."""

FIRST_BOOT = f'hostname = "hob"\nsetup_code = "{CODE}"\n'


@dataclass
class Owner:
    """Somebody at a browser who owns the machine."""

    context: BrowserContext
    page: Page

    def ask(self, text: str, state: str = "done") -> str:
        """Ask in the chat that is open, wait until the answer is in this state, and return its text."""
        self.page.wait_for_load_state()  # before its script runs, the Enter key only starts a new line
        ask(self.page, text)
        expect(self.page.locator(".turn.user .text").last).to_have_text(text, timeout=WAIT)
        expect(answer(self.page)).to_have_attribute("data-state", state, timeout=WAIT)
        return answer(self.page).locator(".text").inner_text()

    def look_for(self, path: str, sign: Locator) -> None:
        """Open a page again and again until it shows something."""
        for _ in range(WAIT // 1000):
            self.page.goto(path)
            if sign.count():
                return
            self.page.wait_for_timeout(1000)
        expect(sign).to_be_visible()  # says what is there instead

    def close(self) -> None:
        """Close the browser's window."""
        self.context.close()


def visit(browser: Browser, url: str) -> Page:
    """A browser of somebody new, on the machine's first page."""
    context = browser.new_context(base_url=url)
    context.set_default_timeout(WAIT)
    context.set_default_navigation_timeout(WAIT)
    page = context.new_page()
    page.goto("/")
    return page


def set_up(browser: Browser, url: str, code: str = CODE) -> Owner:
    """The first visit: become the owner by the code and a password."""
    page = visit(browser, url)
    page.get_by_label(re.compile("^Code")).fill(code)
    page.get_by_label("Choose a password").fill(PASSWORD)
    page.get_by_role("button", name="Make it mine", exact=True).click()
    expect(page.get_by_label("Message")).to_be_visible(timeout=WAIT)
    return Owner(page.context, page)


def sign_in(browser: Browser, url: str) -> Owner:
    """A later visit: the password opens the page."""
    page = visit(browser, url)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_label("Message")).to_be_visible(timeout=WAIT)
    return Owner(page.context, page)
