"""The API as OpenAI's own client sees it, through a real server with a real model."""

import http.client
import json
import socket
import time
from typing import Any

import openai
import pytest

from tests.conftest import StartHob
from tests.service import ENDLESS, MODEL, TINY, Hob

HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(server: Hob) -> openai.OpenAI:
    """OpenAI's client, unmodified; it may not retry, so that errors show."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_models_are_listed_and_found_by_name(client: openai.OpenAI) -> None:
    """The installed models, each retrievable by its id."""
    ids = [model.id for model in client.models.list()]
    assert {MODEL, TINY} <= set(ids)
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object) == (MODEL, "model")
    assert 0 < model.created <= time.time()


def test_unknown_model_is_404(client: openai.OpenAI) -> None:
    """A model that is not installed is named in a 404, whether retrieved or asked; slashes are allowed."""
    with pytest.raises(openai.NotFoundError, match="nobody/nothing") as caught:
        client.models.retrieve("nobody/nothing")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="nobody/nothing"):
        client.chat.completions.create(model="nobody/nothing", messages=HELLO)


def test_plain_completion(client: openai.OpenAI) -> None:
    """A completion has text, a reason for its end, and token counts that add up."""
    answer = client.chat.completions.create(model=TINY, messages=HELLO, max_tokens=8, temperature=0)
    (choice,) = answer.choices
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == TINY
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_stream_equals_plain(client: openai.OpenAI) -> None:
    """A stream brings the role first, then the text of the plain answer in pieces, the reason, the usage."""
    plain = client.chat.completions.create(model=TINY, messages=HELLO, max_tokens=8, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=TINY,
            messages=HELLO,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, last = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == plain.choices[0].message.content
    )
    assert [chunk.choices[0].finish_reason for chunk in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in pieces)
    assert last.choices == []
    assert last.usage == plain.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_without_usage_has_none(client: openai.OpenAI) -> None:
    """Usage is streamed only to those who ask for it."""
    chunks = list(client.chat.completions.create(model=TINY, messages=HELLO, max_tokens=3, stream=True))
    assert all(chunk.choices for chunk in chunks)


@pytest.mark.anyio
async def test_async_client(server: Hob) -> None:
    """The asynchronous client streams too."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=TINY, messages=HELLO, max_tokens=4, temperature=0, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        plain = await client.chat.completions.create(model=TINY, messages=HELLO, max_tokens=4, temperature=0)
    assert text == plain.choices[0].message.content


def test_same_seed_same_text(client: openai.OpenAI) -> None:
    """A seed makes sampling repeatable; other seeds give other texts."""

    def text(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=TINY, messages=HELLO, max_tokens=16, temperature=1.5, seed=seed
        )
        return answer.choices[0].message.content

    assert text(7) == text(7)
    assert len({text(seed) for seed in range(1, 5)}) > 1


def test_logprobs(client: openai.OpenAI) -> None:
    """Each token has its logprob, its bytes and the best alternatives, best first."""
    answer = client.chat.completions.create(
        model=TINY, messages=HELLO, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 6
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)  # greedy takes the best
        scores = [other.logprob for other in entry.top_logprobs]
        assert scores == sorted(scores, reverse=True)
        assert entry.logprob <= 0
    raw = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert raw.decode(errors="replace") == answer.choices[0].message.content
    streamed = client.chat.completions.create(
        model=TINY, messages=HELLO, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3, stream=True
    )
    pieces = [chunk.choices[0].logprobs for chunk in streamed]
    assert [entry for piece in pieces if piece for entry in piece.content or ()] == logprobs.content


def test_stop_string_ends_the_answer_before_itself(client: openai.OpenAI) -> None:
    """The answer ends where the stop string would begin, streamed or not."""
    whole = client.chat.completions.create(model=TINY, messages=HELLO, max_tokens=12, temperature=0)
    text = whole.choices[0].message.content
    assert text is not None
    stop = text[5:8]
    for stops in (stop, ["never said by anyone", stop]):
        cut = client.chat.completions.create(
            model=TINY, messages=HELLO, max_tokens=12, temperature=0, stop=stops
        )
        assert cut.choices[0].message.content == text[: text.index(stop)]
        assert cut.choices[0].finish_reason == "stop"


def test_logit_bias_chooses_the_token(client: openai.OpenAI) -> None:
    """A bias of 100 makes one token the likeliest of all, whatever the prompt."""

    def first(token: int, prompt: str) -> str | None:
        answer = client.chat.completions.create(
            model=TINY,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=1,
            temperature=0,
            logit_bias={str(token): 100},
        )
        return answer.choices[0].message.content

    assert first(300, "Hello") == first(300, "Something else") != first(301, "Hello")


def test_text_parts_and_roles_are_taken(client: openai.OpenAI) -> None:
    """Content may be a list of text parts; developer is another word for system."""
    as_parts = client.chat.completions.create(
        model=TINY,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        ],
        max_tokens=4,
        temperature=0,
    )
    as_strings = client.chat.completions.create(
        model=TINY,
        messages=[{"role": "system", "content": "Be brief."}, *HELLO],
        max_tokens=4,
        temperature=0,
    )
    assert as_parts.choices[0].message.content == as_strings.choices[0].message.content
    assert as_parts.usage == as_strings.usage


def test_too_long_context_names_both_numbers(client: openai.OpenAI, server: Hob) -> None:
    """A prompt beyond the context window is refused with its length and the window's."""
    window = {model["id"]: model["context_window"] for model in server.get("/v1/models")[1]["data"]}[TINY]
    long: Any = [{"role": "user", "content": "word " * window}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=rf"take \d+ tokens.* {window}") as caught:
            client.chat.completions.create(model=TINY, messages=long, stream=stream)
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", -1, "temperature"),
        ("temperature", "warm", "temperature"),
        ("temperature", float("nan"), "temperature"),
        ("top_p", 0, "top_p"),
        ("top_p", 1.1, "top_p"),
        ("top_k", -1, "top_k"),
        ("min_p", 2, "min_p"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("frequency_penalty", 3, "frequency_penalty"),
        ("presence_penalty", -3, "presence_penalty"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", 1.5, "max_tokens"),
        ("max_completion_tokens", 0, "max_completion_tokens"),
        ("seed", "seven", "seed"),
        ("seed", 2**64, "seed"),
        ("stop", [1], "stop"),
        ("stream", "yes", "stream"),
        ("logit_bias", {"one": 1}, "logit_bias.one.[key]"),
        ("logit_bias", {"1": 101}, "logit_bias.1"),
        ("logit_bias", {"1000000": 1}, "logit_bias"),
        ("logprobs", 1, "logprobs"),
        ("top_logprobs", 2, "top_logprobs"),
        ("model", 5, "model"),
        ("messages", [], "messages"),
        ("messages", "Hello", "messages"),
        ("messages", [{"role": "wizard", "content": "Hello"}], "messages[0].role"),
        ("messages", [{"role": "tool", "content": "42", "tool_call_id": "1"}], "messages[0].role"),
        ("messages", [{"content": "Hello"}], "messages[0].role"),
        ("messages", [{"role": "user", "content": 5}], "messages[0].content"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content"),
        ("messages", [{"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls"),
        ("n", 2, "n"),
        ("tools", [{"type": "function", "function": {"name": "f"}}], "tools"),
        ("response_format", {"type": "json_schema"}, "response_format"),
    ],
)
def test_bad_parameter_is_named(server: Hob, field: str, value: Any, param: str) -> None:
    """A parameter out of range, of the wrong type or unsupported gives 400 with its name."""
    status, body = server.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1, field: value})
    assert status == 400
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param.partition(".")[0] in error["message"]


def test_harmless_parameters_pass(server: Hob) -> None:
    """Nulls count as absent; unknown and empty fields, and the defaults of other servers, do no harm."""
    request = {
        "messages": HELLO,
        "max_tokens": 1,
        "temperature": None,
        "stop": None,
        "tools": [],
        "n": 1,
        "response_format": {"type": "text"},
        "user": "me",
        "store": False,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
    }
    assert server.post("/v1/chat/completions", request)[0] == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"messages": "\\ud800"}', b"[" * 100_000])
def test_malformed_json_is_400(server: Hob, body: bytes) -> None:
    """A body that is not a JSON object is refused in OpenAI's shape."""
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"


def test_50_mb_body_is_413(server: Hob) -> None:
    """A body far over the limit is refused at its announcement, before it has arrived."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", str(50 * 2**20))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert json.load(response)["error"]["code"] == "request_too_large"
    connection.close()


def test_unicode_of_every_plane(server: Hob) -> None:
    """Characters of all seventeen planes, unassigned ones and controls included, are read and counted."""
    planes = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0x21, 0x1F5, 0xFFFD, 0xFFFF))
    text = planes + "".join(map(chr, range(32))) + "👩‍👩‍👧‍👦 e\u0301 \u202e \ufeff"
    request = {"model": TINY, "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    status, body = server.post("/v1/chat/completions", request)
    assert status == 200
    assert body["usage"]["prompt_tokens"] > len(planes)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/models/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_wrong_routes_answer_in_json(server: Hob, method: str, path: str, status: int) -> None:
    """Unknown addresses and methods of the API give JSON errors, never a page."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    assert response.status == status
    assert response.getheader("content-type") == "application/json"
    assert json.load(response)["error"]["type"] == "invalid_request_error"
    connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_hangs_up_is_cancelled(start_hob: StartHob, stream: bool) -> None:
    """When a client goes away, its generation ends, which else would go on for minutes."""
    server = start_hob(HOB_MODEL=TINY, HOB_CONTEXT=str(ENDLESS))
    body = json.dumps({"model": TINY, "messages": HELLO, "stream": stream, "temperature": 0}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {len(body)}"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        if stream:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        else:
            _until(lambda: _running(server) == 1)
    _until(lambda: _running(server) == 0)


def _running(server: Hob) -> int:
    """Generations that the engine is working on."""
    status, health = server.get("/healthz")
    assert status == 200
    return int(health["running"])


def _until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
