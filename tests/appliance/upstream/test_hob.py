"""A Hob that passes questions on to another Hob: two real services."""

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.conftest import StartHob, fresh
from tests.service import ENDLESS, TINY, Hob, run_hob, start

HELLO: Any = [{"role": "user", "content": "Hello"}]
THERE = f"{TINY}@attic"


def key_of(hob: Hob) -> Path:
    """A file with a key of a Hob: it asks even its own machine for one, once a request was passed on."""
    file = hob.data_dir / "upstream.key"
    made = run_hob(hob.data_dir, "key", "add", "upstream")
    found = re.search(r"hob_\S+", made.stdout)
    assert found, made
    file.write_text(found[0])
    file.chmod(0o600)
    return file


def attic(hob: Hob) -> str:
    """The setting that makes another Hob an upstream."""
    return json.dumps([{"name": "attic", "url": hob.url, "key_file": str(key_of(hob))}])


def client(hob: Hob) -> openai.OpenAI:
    """OpenAI's client; it may not retry, so that errors show."""
    return openai.OpenAI(base_url=f"{hob.url}/v1", api_key="none", max_retries=0, timeout=60)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process brings about."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def lists(hob: Hob, name: str) -> bool:
    """Whether a model is offered."""
    return name in {model["id"] for model in hob.get("/v1/models")[1]["data"]}


def browse(hob: Hob, path: str, form: dict[str, str] | None = None) -> tuple[str, str]:
    """Address and text of a page, as a browser gets it; a form is posted. Refusals are pages too."""
    data = None if form is None else urllib.parse.urlencode(form).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(hob.url + path, data, {"origin": hob.url})
        ) as page:
            return page.url.removeprefix(hob.url).partition("#")[0], page.read().decode()
    except urllib.error.HTTPError as error:
        return path, error.read().decode()


@pytest.fixture
def here(server: Hob, start_hob: StartHob) -> Hob:
    """A Hob that knows the shared one as "attic"."""
    hob = start_hob(HOB_UPSTREAMS=attic(server))
    until(lambda: lists(hob, THERE))
    return hob


def test_answers_of_the_other_hob(server: Hob, here: Hob) -> None:
    """Its models are listed under its name, and answer as if they were asked there: text, counts, scores."""
    (card,) = [card for card in here.get("/v1/models")[1]["data"] if card["id"] == THERE]
    assert (card["owned_by"], card["context_window"]) == ("attic", 4096)
    asked: Any = {"messages": HELLO, "max_tokens": 8, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    there = client(server).chat.completions.create(model=TINY, **asked)
    passed_on = client(here).chat.completions.create(model=THERE, **asked)
    assert passed_on.model == THERE
    assert passed_on.usage == there.usage
    assert passed_on.choices == there.choices
    *pieces, last = client(here).chat.completions.create(
        model=THERE, stream=True, stream_options={"include_usage": True}, **asked
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == there.choices[0].message.content
    assert last.usage == there.usage
    with pytest.raises(openai.NotFoundError, match="nobody@attic"):
        client(here).chat.completions.create(model="nobody@attic", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match=r"attic: .*context window") as caught:
        client(here).chat.completions.create(
            model=THERE, messages=[{"role": "user", "content": "word " * 5000}], max_tokens=8
        )
    assert caught.value.code == "context_length_exceeded"


def test_chat_remembers_who_answered(here: Hob) -> None:
    """The page offers the other Hob's models, says where the words go, and goes on with the same one."""
    assert f">{THERE}</option>" in browse(here, "/")[1]
    promise = "Nothing you write here leaves this house"
    assert promise in browse(here, "/")[1]
    assert promise not in browse(here, "/chats", {"text": " ", "model": THERE})[1]
    address, _ = browse(here, "/chats", {"text": "Hello", "model": THERE})

    def chat() -> str:
        return browse(here, address)[1]

    until(lambda: 'data-state="running"' not in chat())
    assert f'<h2 class="who">{THERE}</h2>' in chat()
    assert "attic answers, not this machine" in chat()
    assert f"<option selected>{THERE}</option>" in chat()
    again = re.search(r'action="(/chats/\d+/messages/\d+/regenerate)"', chat())
    assert again
    browse(here, again[1], {})
    until(lambda: 'data-state="running"' not in chat())
    assert f'<h2 class="who">{THERE}</h2>' in chat()


def test_hanging_up_frees_the_other_engine(start_hob: StartHob, tmp_path: Path, libraries: Path) -> None:
    """Who leaves an endless answer ends it on the other Hob too."""
    other = start(fresh(tmp_path / "other", libraries), HOB_CONTEXT=str(ENDLESS))
    try:
        here = start_hob(HOB_UPSTREAMS=attic(other))
        until(lambda: lists(here, THERE))
        connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
        body = json.dumps({"model": THERE, "messages": HELLO, "stream": True})
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        while b'"content":"' not in response.readline().replace(b'"content":""', b""):
            pass
        assert other.get("/healthz")[1]["running"] == 1
        response.close()
        connection.close()
        until(lambda: bool(other.get("/healthz")[1]["running"] == 0))
    finally:
        other.stop()


def test_other_hob_may_go_and_come_back(start_hob: StartHob, tmp_path: Path, libraries: Path) -> None:
    """While it is away its models stay on the list and say why they do not answer; then all is as before."""
    folder = fresh(tmp_path / "other", libraries)
    other = start(folder)
    try:
        here = start_hob(HOB_UPSTREAMS=attic(other))
        until(lambda: lists(here, THERE))
        other.stop()
        away = r"attic does not answer: .*cannot be reached"
        with pytest.raises(openai.InternalServerError, match=away) as caught:
            client(here).chat.completions.create(model=THERE, messages=HELLO, max_tokens=4)
        assert caught.value.status_code == 503
        assert lists(here, THERE)
        assert "At present it does not" in browse(here, "/chats", {"text": " ", "model": THERE})[1]
        assert client(here).chat.completions.create(model=TINY, messages=HELLO, max_tokens=4).choices
        other = start(folder, "--port", str(other.port))
        answer = client(here).chat.completions.create(model=THERE, messages=HELLO, max_tokens=4)
        assert answer.choices[0].message.content
    finally:
        other.stop()


def test_hob_without_an_engine(server: Hob, start_hob: StartHob) -> None:
    """With engine = "upstream" nothing runs here: no engine process, no local model on offer."""
    hob = start_hob(HOB_UPSTREAMS=attic(server), HOB_ENGINE="upstream", HOB_MODEL=THERE)
    assert hob.get("/healthz")[1]["model"] == THERE
    assert psutil.Process(hob.process.pid).children() == []
    assert not lists(hob, TINY)
    answer = client(hob).chat.completions.create(model="", messages=HELLO, max_tokens=4)
    assert answer.model == THERE
    assert answer.choices[0].message.content


def test_two_hobs_do_not_ask_in_circles(here: Hob) -> None:
    """What one Hob has passed on the next one does not pass on: it offers its own models only."""
    key = key_of(here).read_text()
    via = {"via": "1.0 proxy, 1.1 hob", "authorization": f"Bearer {key}"}
    connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
    connection.request("GET", "/v1/models", headers=via)
    names = {model["id"] for model in json.load(connection.getresponse())["data"]}
    assert TINY in names
    assert THERE not in names
    body = json.dumps({"model": THERE, "messages": HELLO})
    connection.request("POST", "/v1/chat/completions", body, {**via, "content-type": "application/json"})
    assert connection.getresponse().status == 404
    connection.close()
