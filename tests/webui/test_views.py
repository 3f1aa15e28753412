"""The pages' routes as a client without a browser sees them."""

import gc
import html
import json
import re
import time
from collections.abc import Iterator
from types import AsyncGeneratorType

import httpx2
import pytest

from tests.service import MODEL
from tests.webui.site import Site
from webui import live

PLANES = (
    "".join(chr(plane * 0x10000 + 0xAC00 + 7) for plane in range(17) if plane not in {15, 16}) + "🔥\n\té"
)


@pytest.fixture
def client(site: Site) -> Iterator[httpx2.Client]:
    """A client that follows redirects and says that its forms come from our own pages."""
    with httpx2.Client(
        base_url=site.url, headers={"origin": site.url}, follow_redirects=True, timeout=20
    ) as client:
        yield client
    site.engine.release()


def running(client: httpx2.Client, question: str = "Hello!") -> str:
    """Ask in a new chat; the path of the answer, which waits."""
    page = client.post("/chats", data={"text": question})
    assert page.status_code == 200, page.text
    found = re.search(r'data-events="(/chats/\d+/messages/\d+)/events', page.text)
    assert found
    return found[1]


def read(
    client: httpx2.Client, path: str, last: int | None = None, enough: int = 1_000_000, start: int = 0
) -> list[tuple[str, int | None, dict[str, object]]]:
    """Events (name, id, data) of an answer up to its end, or to the first with an id of at least `enough`."""
    headers = {} if last is None else {"last-event-id": str(last)}
    events: list[tuple[str, int | None, dict[str, object]]] = []
    with client.stream("GET", f"{path}/events?from={start}", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        name, number = "", None
        for line in response.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name, number = value, None
            elif key == "id":
                number = int(value)
            elif key == "data":
                events.append((name, number, json.loads(value)))
                if (number or 0) >= enough:
                    break
    return events


def open_streams() -> int:
    """Generators of events in this process that have begun and not ended."""
    return sum(
        isinstance(thing, AsyncGeneratorType) and thing.__name__ == "events" and thing.ag_frame is not None
        for thing in gc.get_objects()
    )


def shown(events: list[tuple[str, int | None, dict[str, object]]]) -> str:
    """The last piece of HTML."""
    return str(events[-1][2]["html"])


def test_an_answer_comes_as_events(client: httpx2.Client, site: Site) -> None:
    """Pieces with growing ids, then the finished message, and the stream ends."""
    path = running(client)
    first = read(client, path, enough=1)
    assert [event[0] for event in first] == ["tail"]
    assert first[0][2]["keep"] == 0
    site.engine.release()
    events = read(client, path)
    assert [event[0] for event in events][-1] == "done"
    assert {event[0] for event in events[:-1]} <= {"tail"}
    ids = [event[1] or 0 for event in events]
    assert ids == sorted(ids)
    assert 'data-state="done"' in shown(events)


def test_a_stream_goes_on_where_a_page_has_been(client: httpx2.Client, site: Site) -> None:
    """With the last id it has seen, a page gets only what is new; that id wins over the address."""
    path = running(client)
    (_, seen, _), *_ = read(client, path, enough=1)
    assert seen
    site.engine.release()
    rest = read(client, path, last=seen)
    assert all((number or 0) > seen for name, number, _ in rest if name == "tail")
    assert rest[-1][0] == "done"


@pytest.mark.parametrize("last", [10_000_000, 0])
def test_a_place_beyond_the_text_begins_anew(client: httpx2.Client, last: int) -> None:
    """A page that has seen more than there is (after a power cut) is given everything."""
    path = running(client)
    events = read(client, path, last=last, enough=1)
    assert events[0][0] == "tail"
    assert events[0][2]["keep"] == 0
    assert events[0][2]["html"]


@pytest.mark.parametrize("place", ["x", "-1", "٣", "1e3", ""])
def test_a_place_that_is_no_number_counts_as_none(client: httpx2.Client, place: str) -> None:
    """Nonsense in the address or the header does no harm."""
    path = running(client)
    with client.stream("GET", f"{path}/events", params={"from": place}) as response:
        assert response.status_code == 200
        assert any(line.startswith("event: tail") for line in response.iter_lines())


def test_a_finished_answer_is_done_at_once(client: httpx2.Client, site: Site) -> None:
    """The stream of a finished message is one event."""
    chat = site.chat("Done?", "Yes, **done**.")
    answer = site.store.thread(int(chat.rpartition("/")[2]))[-1]
    events = read(client, f"/chats/{answer.chat_id}/messages/{answer.id}")
    assert [event[:2] for event in events] == [("done", len("Yes, **done**."))]
    assert "<strong>done</strong>" in shown(events)


def test_stopping_ends_the_stream(client: httpx2.Client) -> None:
    """Stop keeps the text and shows it as stopped; to stop it again does nothing."""
    path = running(client)
    read(client, path, enough=1)
    for _ in range(2):
        page = client.post(f"{path}/stop")
        assert page.status_code == 200
        assert 'data-state="stopped"' in page.text
    events = read(client, path)
    assert [event[0] for event in events] == ["done"]
    assert 'data-state="stopped"' in shown(events)


def test_deleting_a_running_chat_ends_everything(client: httpx2.Client, site: Site) -> None:
    """The answer ends, the chat is gone, and so are its pages and streams."""
    path = running(client, "Soon gone")
    chat = path.partition("/messages")[0]
    with client.stream("GET", f"{path}/events") as response:
        lines = response.iter_lines()
        assert any(line.startswith("event: tail") for line in lines)
        page = client.post(f"{chat}/delete")
        assert page.url.path == "/"
        assert "Soon gone" not in page.text
        assert [line for line in lines if line.startswith("event: ")][-1] in {"event: gone", "event: done"}
    assert client.get(chat).status_code == 404
    assert client.get(f"{path}/events").status_code == 404


def test_silence_is_filled(client: httpx2.Client, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing is written, comments keep the connection alive."""
    monkeypatch.setattr(live, "HEARTBEAT", 0.05)
    path = running(client)
    with client.stream("GET", f"{path}/events") as response:
        assert any(line.startswith(":") for line in response.iter_lines())


def test_followers_leave_without_a_trace(client: httpx2.Client, site: Site) -> None:
    """Readers that hang up do not disturb the answer nor each other."""
    path = running(client)
    for _ in range(20):
        read(client, path, enough=1)
    deadline = time.monotonic() + 20
    while open_streams():
        assert time.monotonic() < deadline, "streams outlive their readers"
        time.sleep(0.02)
    site.engine.release()
    assert 'data-state="done"' in shown(read(client, path))


def test_every_plane_of_unicode_comes_back(client: httpx2.Client) -> None:
    """A question with characters of every plane is shown as it was typed, Windows' line ends included."""
    page = client.post("/chats", data={"text": PLANES.replace("\n", "\r\n")})
    assert PLANES in html.unescape(page.text)


def test_an_empty_question_is_refused_in_the_form(client: httpx2.Client) -> None:
    """Nothing is stored; the form comes back with the reason."""
    page = client.post("/chats", data={"text": " \n"})
    assert page.status_code == 400
    assert "The message is empty." in page.text
    assert 'action="/chats"' in page.text


def test_a_second_question_waits(client: httpx2.Client) -> None:
    """During an answer a question is refused with what to do, and comes back in the form."""
    chat = running(client).partition("/messages")[0]
    page = client.post(f"{chat}/messages", data={"text": "And <this>?"})
    assert page.status_code == 409
    assert "This chat is still being answered." in page.text
    assert "And &lt;this&gt;?</textarea>" in page.text


def test_an_unknown_model_is_an_error_page(client: httpx2.Client) -> None:
    """A model that is not installed is named."""
    page = client.post("/chats", data={"text": "Hi", "model": "no-such-model"})
    assert page.status_code == 404
    assert "no-such-model" in page.text


def test_the_chosen_model_answers(client: httpx2.Client, site: Site) -> None:
    """The picker's model is used and stays chosen in that chat."""
    page = client.post("/chats", data={"text": "Hi", "model": "tiny"})
    chat = int(page.url.path.rpartition("/")[2])
    assert site.store.chat(chat).model == "tiny"
    if MODEL != "tiny":
        assert "<option selected>tiny</option>" in page.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/chats/999999"),
        ("GET", "/chats/999999/messages/1/events"),
        ("POST", "/chats/999999/messages"),
        ("POST", "/chats/999999/rename"),
        ("POST", "/chats/999999/delete"),
        ("POST", "/chats/999999/messages/1/stop"),
        ("POST", "/chats/999999/messages/1/regenerate"),
        ("POST", "/settings/keys/999999/revoke"),
        ("GET", "/chats/x"),
        ("GET", "/nothing"),
        ("GET", "/chats/99999999999999999999999"),
    ],
)
def test_what_is_not_there_is_not_found(client: httpx2.Client, method: str, path: str) -> None:
    """A page says so, with status 404."""
    fields = {"text": "Hi", "title": "T"} if method == "POST" else None
    page = client.request(method, path, data=fields)
    assert page.status_code == 404
    assert "<h1>" in page.text


def test_a_message_belongs_to_its_chat(client: httpx2.Client, site: Site) -> None:
    """A message under another chat's address is not found, and not touched."""
    mine, other = site.chat("Mine", "a"), site.chat("Other", "b")
    answer = site.store.thread(int(mine.rpartition("/")[2]))[-1]
    for action in ("stop", "regenerate"):
        assert client.post(f"{other}/messages/{answer.id}/{action}").status_code == 404
    assert client.get(f"{other}/messages/{answer.id}/events").status_code == 404


def test_an_empty_name_changes_nothing(client: httpx2.Client, site: Site) -> None:
    """A chat always has a name."""
    chat = site.chat("Named", "a")
    assert "<h1>Named</h1>" in client.post(f"{chat}/rename", data={"title": "  "}).text
    assert "<h1>Re&lt;named</h1>" in client.post(f"{chat}/rename", data={"title": "Re<named"}).text


@pytest.mark.parametrize("query", ['"', "a OR", "*", "NEAR(", "-x", "%00", "é🔥", "x" * 5000])
def test_any_query_is_a_search(client: httpx2.Client, query: str) -> None:
    """Searching has no syntax to get wrong."""
    assert client.get("/search", params={"q": query}).status_code == 200


def test_a_key_needs_a_name(client: httpx2.Client) -> None:
    """A key without a name is refused."""
    assert client.post("/settings/keys", data={"name": " "}).status_code == 400


def test_a_page_without_script_looks_again(client: httpx2.Client) -> None:
    """Each look has an address of its own: browsers do not load again an address they are at."""
    path = running(client)
    chat, _, message = path.partition("/messages/")
    looks = []
    address = chat
    for _ in range(3):
        found = re.search(r'content="2; url=([^"]+)"', client.get(address).text)
        assert found
        address = html.unescape(found[1])
        looks.append(address)
    assert looks == [f"{chat}?look={look}#m{message}" for look in (1, 2, 3)]


def test_browsers_that_guess_find_the_icon(client: httpx2.Client) -> None:
    """The address that browsers try without being told."""
    icon = client.get("/favicon.ico")
    assert icon.headers["content-type"] == "image/svg+xml"
    assert icon.text.startswith("<svg")


@pytest.mark.parametrize("path", ["/", "/settings", "/search"])
def test_pages_are_not_kept(client: httpx2.Client, path: str) -> None:
    """Conversations do not lie in the caches of shared computers."""
    assert client.get(path).headers["cache-control"] == "no-store"
