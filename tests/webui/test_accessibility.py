"""The page for everyone: by keyboard, by ear, by eye, on every width."""

import pytest
from playwright.sync_api import expect

from tests.webui.desk import ANSWER, PHONE, Desk, answer, ask, has_state, writing
from tests.webui.site import Site

pytestmark = pytest.mark.browser


def test_the_keyboard_is_enough(desk: Desk, site: Site) -> None:
    """Skip link, new line, sending, stopping, the menu and the drawer: no pointer needed."""
    page = desk.open("/settings")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the conversation")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.goto("/")
    field = page.get_by_label("Message")
    expect(field).to_be_focused()
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Two")
    expect(field).to_have_value("One\nTwo")
    page.keyboard.press("Enter")
    writing(page)
    page.keyboard.press("Escape")
    has_state(page, "stopped")
    page.locator(".menu > summary").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Name")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("textbox", name="Name")).to_be_hidden()
    expect(page.locator(".menu > summary")).to_be_focused()


@pytest.mark.parametrize(
    "path", ["/", "/settings", "/models", "/system", "/backups", "/search?q=code", "chat"]
)
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_window(desk: Desk, site: Site, path: str, width: int) -> None:
    """No page scrolls sideways, down to 320 CSS pixels (WCAG 2.2, 1.4.10)."""
    if path == "chat":
        path = site.chat(
            "Averyveryveryveryveryveryveryveryveryveryveryverylongword " * 3, ANSWER + "\n\n" + "x" * 200
        )
    page = desk.open(path, viewport={"width": width, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_drawer_on_a_phone(desk: Desk, site: Site) -> None:
    """The list of chats opens and closes; while it is closed, nothing in it can be reached."""
    site.chat("In the drawer", "Yes.")
    page = desk.open(**PHONE)
    chats = page.get_by_role("navigation", name="Chats")
    expect(chats).to_be_hidden()
    page.get_by_role("link", name="Chats", exact=True).click()
    expect(page.get_by_role("link", name="In the drawer")).to_be_visible()
    expect(page.get_by_role("link", name="Close the list of chats")).to_be_focused()
    page.keyboard.press("Escape")
    expect(chats).to_be_hidden()
    page.get_by_role("link", name="Chats", exact=True).click()
    page.get_by_role("link", name="In the drawer").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("In the drawer")


def test_fields_do_not_zoom_on_phones(desk: Desk) -> None:
    """Fields have at least 16 pixels of type, below which iOS zooms into them; targets at least 40."""
    page = desk.open(**PHONE)
    sizes = page.evaluate(
        "[...document.querySelectorAll('input:not([type=hidden]), textarea, select')]"
        ".map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 16
    heights = page.evaluate(
        "[...document.querySelectorAll('main button, .topbar a')].map((e) => e.getBoundingClientRect())"
        ".filter((box) => box.height).map((box) => Math.min(box.width, box.height))"
    )
    assert min(heights) >= 40


def test_an_answer_is_announced_in_paragraphs(desk: Desk, site: Site) -> None:
    """Screen readers are told finished paragraphs, never tokens, and each of them once."""
    page = desk.open()
    page.evaluate(
        """window.said = [];
        new MutationObserver((changes) => changes.forEach((change) =>
            change.addedNodes.forEach((node) => said.push(node.textContent))))
            .observe(document.querySelector('#announcer'), {childList: true});"""
    )
    ask(page, "Say something")
    writing(page)
    said_early = len(page.evaluate("said"))
    shown_early = answer(page).locator(".text > *").count()
    assert said_early < shown_early
    site.engine.release()
    has_state(page, "done")
    said = page.evaluate("said")
    assert len(said) == answer(page).locator(".text > *").count() + 1
    assert said[-1].startswith("The answer reached its greatest length.")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/settings",
        "/models",
        "/system",
        "/backups",
        "/search?q=code",
        "chat",
        "/login",
        "/setup",
        "/chats/999999",
    ],
)
def test_every_control_has_a_name(desk: Desk, site: Site, path: str) -> None:
    """In the browser's own accessibility tree every link, button and field has a name."""
    page = desk.open(site.chat("Names", ANSWER) if path == "chat" else path)
    session = page.context.new_cdp_session(page)
    tree = session.send("Accessibility.getFullAXTree")["nodes"]
    controls = {"link", "button", "textbox", "searchbox", "combobox", "DisclosureTriangle"}
    seen = 0
    for node in tree:
        if node.get("role", {}).get("value") in controls and not node["ignored"]:
            seen += 1
            assert node["name"]["value"].strip(), node
    assert seen
    desk.complaints.clear()  # the browser reports the status 404


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba(getComputedStyle(document.documentElement).backgroundColor);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const [a, b] = [luminance(rgba(getComputedStyle(element).color)), luminance(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([walker.currentNode.data.trim().slice(0, 30), ratio]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/settings",
        "/models",
        "/system",
        "/backups",
        "/search?q=bread",
        "chat",
        "error",
        "/login",
        "/setup",
    ],
)
def test_text_is_readable_in_both_schemes(desk: Desk, site: Site, path: str, scheme: str) -> None:
    """All text has a contrast of at least 4.5 on what is behind it (WCAG 2.2, 1.4.3)."""
    if path == "error":
        _, row = site.store.ask(None, "Broken bread", "tiny", {})
        site.store.finish(row.id, state="error", content="So", error="The engine died.")
        path = f"/chats/{row.chat_id}"
    elif path == "chat":
        path = site.chat("Bread", ANSWER)
    page = desk.open(path, color_scheme=scheme)
    for menu in page.locator(".menu > summary").all():
        menu.click()
    contrasts = page.evaluate(CONTRASTS)
    assert contrasts
    assert [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < 4.5] == []
