"""The page in a real browser, talking to a real model."""

import re

import pytest
from playwright.sync_api import Route, expect

from tests.conftest import StartHob
from tests.service import TINY
from tests.webui.desk import ANSWER, CODE, PHONE, Desk, answer, ask, has_state, writing
from tests.webui.site import Site

pytestmark = pytest.mark.browser


def test_an_answer_streams_and_stays(desk: Desk, site: Site) -> None:
    """A question is answered in pieces on the same page; after a reload the conversation is still there."""
    page = desk.open()
    ask(page, "What is Hob?")
    writing(page)
    assert re.search(r"/chats/\d+$", page.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("What is Hob?")
    expect(page.locator("#list a[aria-current=page]")).to_have_text("What is Hob?")
    expect(page.get_by_label("Message")).to_be_focused()
    expect(page.get_by_label("Message")).to_have_value("")
    site.engine.release()
    has_state(page, "done")
    expect(answer(page).locator(".stats")).to_contain_text("token")
    expect(page.get_by_role("button", name="Stop the answer")).to_have_count(0)
    said = answer(page).locator(".text").inner_text()
    assert said.strip()
    page.reload()
    expect(page.locator(".turn.user .text")).to_have_text("What is Hob?")
    assert answer(page).locator(".text").inner_text() == said


def test_a_conversation_goes_on(desk: Desk, site: Site) -> None:
    """A second question lands below the first, in the same chat."""
    site.engine.release()
    page = desk.open()
    ask(page, "Hello!")
    has_state(page, "done")
    first = page.url
    ask(page, "And what is your name?")
    expect(page.locator(".turn.user")).to_have_count(2)
    expect(page.locator(".turn.assistant")).to_have_count(2)
    has_state(page, "done")
    assert page.url == first
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("What would you like to know?")


def test_a_reload_and_a_second_device_take_up_a_running_answer(desk: Desk, site: Site) -> None:
    """Whoever opens the chat meanwhile sees what was written, then the rest as it comes; all see the same."""
    page = desk.open()
    ask(page, "Where are my chats kept?")
    writing(page)
    page.reload()
    writing(page)
    phone = desk.open(page.url, **PHONE)
    writing(phone)
    site.engine.release()
    has_state(page, "done")
    has_state(phone, "done")
    texts = [answer(device).locator(".text").inner_text() for device in (page, phone, desk.open(page.url))]
    assert texts[0].strip()
    assert texts[0] == texts[1] == texts[2]


def test_a_lost_connection_is_taken_up_again(desk: Desk, site: Site) -> None:
    """A page that loses the stream says so, comes back by itself and misses nothing."""
    page = desk.open()
    ask(page, "What can you do?")
    writing(page)
    page.route("**/events*", lambda route: route.abort())
    page.evaluate("[...streams.values()].forEach((s) => { s.close(); s.dispatchEvent(new Event('error')); })")
    expect(answer(page).locator(".status")).to_contain_text("Reconnecting")
    site.engine.release()
    page.unroute("**/events*")
    has_state(page, "done")
    said = answer(page).locator(".text").inner_text()
    page.reload()
    assert answer(page).locator(".text").inner_text() == said
    desk.complaints.clear()  # the browser reports the connection that the test cut


def test_a_page_outlives_a_power_cut(desk: Desk, start_hob: StartHob) -> None:
    """When Hob dies during an answer, the page says so, comes back with it, and shows what was saved."""
    hob = start_hob(HOB_MODEL=TINY)
    page = desk.open(hob.url)
    ask(page, "Go on and on")
    writing(page)
    hob.kill()
    expect(answer(page).locator(".status")).to_contain_text("Reconnecting")
    start_hob("--port", str(hob.port), HOB_MODEL=TINY)
    has_state(page, "stopped")
    expect(answer(page).locator(".remark")).to_contain_text("Interrupted")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    desk.complaints.clear()  # the browser reports the lost connection, and this service's own address


def test_stop_works_after_a_reload(desk: Desk) -> None:
    """A running answer is stopped from a page that did not start it; its text is kept."""
    page = desk.open()
    ask(page, "Tell me everything")
    writing(page)
    page.reload()
    writing(page)
    page.get_by_role("button", name="Stop the answer").click()
    has_state(page, "stopped")
    expect(answer(page)).to_contain_text("Stopped.")
    expect(answer(page).locator(".text > *").first).to_be_attached()
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_stopping_keeps_what_is_being_typed(desk: Desk) -> None:
    """The next question may be typed during an answer; to stop the answer does not lose it."""
    page = desk.open()
    ask(page, "First question")
    writing(page)
    page.keyboard.type("Second que")
    page.keyboard.press("Enter")  # nothing happens while an answer is under way
    page.keyboard.press("Escape")
    has_state(page, "stopped")
    expect(page.get_by_label("Message")).to_have_value("Second que")
    expect(page.locator(".turn.user")).to_have_count(1)


def test_a_late_reply_leaves_an_open_menu_alone(desk: Desk) -> None:
    """The reply to a press of Stop may come while someone types a new name: menu, text and focus stay."""
    page = desk.open()
    ask(page, "Tell me about bread")
    writing(page)
    with page.expect_request("**/stop") as stopping:
        held: list[Route] = []
        page.route("**/stop", lambda route: held.append(route))
        page.get_by_role("button", name="Stop").click()
    has_state(page, "running")
    page.locator(".menu > summary").click()
    name = page.get_by_role("textbox", name="Name")
    name.fill("Bread")
    held[0].continue_()
    response = stopping.value.response()
    assert response is not None
    response.finished()
    has_state(page, "stopped")
    expect(page.locator("#composer .stop")).to_have_count(0)
    expect(name).to_be_focused()
    expect(name).to_have_value("Bread")


def test_stop_on_one_device_is_seen_on_the_other(desk: Desk) -> None:
    """Both pages show the answer stopped."""
    page = desk.open()
    ask(page, "Tell me more")
    writing(page)
    other = desk.open(page.url)
    writing(other)
    other.keyboard.press("Escape")
    has_state(other, "stopped")
    has_state(page, "stopped")


def test_an_answer_can_be_given_again(desk: Desk, site: Site) -> None:
    """Another answer takes the place of the last one."""
    site.engine.release()
    page = desk.open()
    ask(page, "Who are you?")
    has_state(page, "done")
    before = answer(page).get_attribute("id")
    page.get_by_role("button", name="Answer again").click()
    expect(answer(page)).not_to_have_attribute("id", before or "")
    has_state(page, "done")
    expect(page.locator(".turn.assistant")).to_have_count(1)
    expect(page.locator(".turn.user")).to_have_count(1)


def test_a_failed_answer_says_why_and_can_be_tried_again(desk: Desk, site: Site) -> None:
    """When the engine fails, what was written stays, with the reason and a way on."""
    page = desk.open()
    ask(page, "Will this fail?")
    writing(page)
    site.engine.fail()
    has_state(page, "error")
    expect(answer(page).locator(".problem")).to_contain_text("The engine has stopped")
    site.engine.release()
    page.get_by_role("button", name="Try again").click()
    has_state(page, "done")


def test_a_refused_question_stays_in_the_form(desk: Desk, site: Site) -> None:
    """A second question during an answer is refused with a reason, and nothing typed is lost."""
    page = desk.open()
    ask(page, "First")
    writing(page)
    other = desk.open(page.url)
    other.evaluate("document.querySelector('.stop').remove()")  # a page that has not heard of the answer
    ask(other, "Second")
    expect(other.get_by_role("alert")).to_contain_text("still being answered")
    expect(other.get_by_label("Message")).to_have_value("Second")
    desk.complaints.clear()  # the browser reports the status 409


def test_a_service_that_is_gone_loses_no_text(desk: Desk) -> None:
    """Without a connection the page says so and keeps what was typed."""
    page = desk.open()
    page.route("**/chats", lambda route: route.abort())
    ask(page, "Are you there?")
    expect(page.get_by_role("alert")).to_contain_text("Hob does not answer.")
    expect(page.get_by_label("Message")).to_have_value("Are you there?")
    desk.complaints.clear()  # the browser reports the connection that the test cut


def test_suggestions_are_questions(desk: Desk, site: Site) -> None:
    """Where the model has suggestions, one touch asks."""
    site.engine.release()
    page = desk.open()
    if page.locator(".suggestions").count() == 0:
        pytest.skip("the built-in guide is not there")
    page.get_by_role("button", name="What is Hob?").click()
    expect(page.locator(".turn.user .text")).to_have_text("What is Hob?")
    has_state(page, "done")


def test_the_guide_says_what_it_is(desk: Desk) -> None:
    """A chat with the built-in guide says that it is no general model, and how to get one."""
    page = desk.open()
    if (
        page.locator(".picker").first.inner_text() != "hob-guide"
        and page.locator(".suggestions").count() == 0
    ):
        pytest.skip("the built-in guide is not there")
    note = page.get_by_role("complementary", name="About this model")
    expect(note).to_contain_text("not a general model")
    note.get_by_role("link").click()
    expect(page.get_by_role("heading", name="Add a model")).to_be_in_viewport()


def test_rename_and_delete(desk: Desk, site: Site) -> None:
    """A chat gets another name; deleting it asks first and then takes it away."""
    page = desk.open(site.chat("An old name", ANSWER))
    menu = page.locator(".menu > summary")
    menu.click()
    page.get_by_role("textbox", name="Name").fill("A better name")
    page.get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("A better name")
    expect(page.locator("#list")).to_contain_text("A better name")
    menu.click()
    expect(page.get_by_role("button", name="Delete for good")).to_be_hidden()
    page.get_by_text("Delete this chat…").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page).to_have_url(f"{site.url}/")
    expect(page.locator("#list")).not_to_contain_text("A better name")


def test_search_finds_words_in_answers(desk: Desk, site: Site) -> None:
    """The slash key leads to the search; a result shows the words around the match and leads there."""
    site.chat("About the pantry", "The **marmalade** stands on the top shelf.")
    page = desk.open("/settings")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("marmala")
    page.keyboard.press("Enter")
    expect(page.locator("mark")).to_have_text("marmalade")
    page.get_by_role("link", name="About the pantry").last.click()
    expect(page.locator(".turn:target")).to_contain_text("top shelf")
    page.keyboard.press("Control+k")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("nothing has this word xyzzy")
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_contain_text("Nothing found")


def test_code_is_copied(desk: Desk, site: Site) -> None:
    """The copy button copies the code as it is, with the clipboard of HTTPS and without."""
    page = desk.open(site.chat("Code please", ANSWER), permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the code").click()
    expect(page.get_by_role("button", name="Copy the code")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == CODE.rstrip("\n")
    page.evaluate("navigator.clipboard.writeText('')")
    page.reload()
    page.evaluate("window.board = navigator.clipboard")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.get_by_role("button", name="Copy the code").click()
    expect(page.get_by_role("button", name="Copy the code")).to_have_text("Copied")
    assert page.evaluate("board.readText()") == CODE.rstrip("\n")


def test_everything_works_without_javascript(desk: Desk, site: Site) -> None:
    """Ask, watch by reloading, stop, ask again, rename, search, delete: with forms and links alone."""
    page = desk.open(java_script_enabled=False, **PHONE)
    page.get_by_label("Message").fill("A question without script")
    page.get_by_role("button", name="Send").click()
    has_state(page, "running")
    expect(answer(page).locator(".text > *").first).to_be_attached()  # by the page's own reloads
    page.get_by_role("button", name="Stop the answer").click()
    has_state(page, "stopped")
    site.engine.release()
    page.get_by_role("button", name="Try again").click()
    has_state(page, "done")
    page.locator(".menu > summary").click()
    page.get_by_role("textbox", name="Name").fill("Scriptless")
    page.get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Scriptless")
    page.get_by_role("link", name="Chats", exact=True).click()
    page.get_by_role("searchbox").fill("scriptless")
    page.get_by_role("searchbox").press("Enter")
    page.get_by_role("main").get_by_role("link", name="Scriptless").first.click()
    page.locator(".menu > summary").click()
    page.get_by_text("Delete this chat…").click()
    page.get_by_role("button", name="Delete for good").click()
    page.get_by_role("link", name="Chats", exact=True).click()
    expect(page.get_by_role("navigation", name="Chats")).not_to_contain_text("Scriptless")


def test_a_reader_further_up_is_left_alone(desk: Desk, site: Site) -> None:
    """New text scrolls the page only for a reader who is at its end."""
    page = desk.open(
        site.chat("A long one", "\n\n".join(["Paragraph."] * 60)), viewport={"width": 800, "height": 600}
    )
    ask(page, "More")
    writing(page)
    assert page.evaluate("atEnd()")
    page.evaluate("scrollTo(0, 100)")
    site.engine.release()
    has_state(page, "done")
    assert page.evaluate("scrollY") == 100


def test_a_key_is_shown_once_and_revoked(desk: Desk) -> None:
    """A new API key is shown in full once; afterwards only its beginning is, until it is revoked."""
    page = desk.open("/settings")
    page.get_by_label("Name of the new key").fill("kitchen radio")
    page.get_by_role("button", name="Make a key").click()
    shown = page.locator(".fresh code").inner_text()
    assert shown.startswith("hob_")
    page.goto("/settings")
    expect(page.get_by_text(shown)).to_have_count(0)
    expect(page.locator("#keys")).to_contain_text(f"kitchen radio {shown[:10]}")
    page.get_by_role("button", name="Revoke the key kitchen radio").click()
    expect(page.locator("#keys")).not_to_contain_text("kitchen radio")
