"""Devices on a desk: browser contexts, what their consoles say, and what people do with a chat."""

from typing import Any

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

WAIT = 20_000
"""Milliseconds that a browser test waits for anything: enough for a slow machine, and bounded."""

expect.set_options(timeout=WAIT)

CODE = "def bread():\n    return 'butter'\n"
ANSWER = f"Try *this*:\n\n```python\n{CODE}```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> [elsewhere](http://example.org)"

PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}


def ask(page: Page, text: str) -> None:
    """Type a question and send it by the Enter key."""
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def answer(page: Page) -> Locator:
    """The last answer."""
    return page.locator(".turn.assistant").last


def has_state(page: Page, state: str) -> None:
    """Wait until the last answer is in this state."""
    expect(answer(page)).to_have_attribute("data-state", state)


def writing(page: Page) -> None:
    """Wait until some of the answer is to be seen, but not all."""
    expect(answer(page).locator(".text > *").first).to_be_attached()
    has_state(page, "running")


class Desk:
    """Opens browser contexts, one per device, and keeps what their consoles say."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []

    def open(self, path: str = "/", **options: Any) -> Page:
        """A page in a context of its own; `options` are those of Playwright's `new_context`."""
        context = self._browser.new_context(base_url=self._url, **options)
        context.set_default_timeout(WAIT)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))
        page.goto(path)
        return page

    def close(self) -> None:
        """Close everything."""
        for context in self._contexts:
            context.close()

    def _heard(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(text)

    def _asked(self, url: str) -> None:
        if not url.startswith((self._url, "data:")):
            self.complaints.append(f"request to {url}")
