"""Takes docs/screenshot.png, the built-in guide in a real browser: `python -m tests.webui.screenshot`."""

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.service import start

PICTURE = Path(__file__).parents[2] / "docs" / "screenshot.png"
EARLIER = ("What is Hob?", "How do I make an API key?", "How do I back up my chats?")
QUESTIONS = ("How do I reach Hob from my phone?", "How do I add a model?")


def ask(page: Page, question: str) -> None:
    """Ask and wait for the end of the answer."""
    page.get_by_label("Message").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".turn.user .text").last).to_have_text(question)
    expect(page.locator(".turn.assistant").last).to_have_attribute("data-state", "done", timeout=60_000)


def main() -> None:
    """Start a service of its own, talk to it, take the picture."""
    with tempfile.TemporaryDirectory(prefix="hob-") as folder, sync_playwright() as playwright:
        hob = start(Path(folder))
        try:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(base_url=hob.url, viewport={"width": 1200, "height": 760})
            for question in EARLIER:
                page.goto("/")
                ask(page, question)
            page.goto("/")
            for question in QUESTIONS:
                ask(page, question)
            page.evaluate("scrollTo(0, 0)")
            PICTURE.parent.mkdir(exist_ok=True)
            page.screenshot(path=PICTURE)
            browser.close()
        finally:
            hob.stop()


if __name__ == "__main__":
    main()
