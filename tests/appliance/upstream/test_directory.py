"""Other servers, good and bad, over real sockets: lists, answers, failover, refusals, garbage, cancelling."""

import asyncio
import contextlib
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.domain import Delta, Message
from appliance.engine.messages import Wishes
from appliance.errors import (
    ContextLengthError,
    EngineUnavailableError,
    HobError,
    InvalidRequestError,
    RateLimitError,
    SettingsError,
    UnknownModelError,
)
from appliance.upstream import directory as directory_module
from appliance.upstream import server as server_module
from appliance.upstream.directory import Upstreams, examine
from appliance.upstream.settings import Upstream
from tests.appliance.upstream.wire import (
    END,
    Request,
    Wire,
    chunk,
    events,
    head,
    reply,
    says,
    streams,
    wire,
)

pytestmark = pytest.mark.anyio

HELLO = [Message(role="user", content="Hello")]


@contextlib.asynccontextmanager
async def upstreams(*settings: Any) -> AsyncIterator[Upstreams]:
    """A directory of these servers, after the first look at each."""
    directory = Upstreams([Upstream.model_validate(one) for one in settings])
    directory.start()
    try:
        for one in directory._servers:
            async with asyncio.timeout(30):
                await one.looked.wait()
        yield directory
    finally:
        await directory.close()


async def ask(
    directory: Upstreams,
    model: str = "small@gpu",
    stops: tuple[str, ...] = (),
    max_tokens: int | None = None,
    **wishes: Any,
) -> tuple[str, Delta]:
    """The answer to "Hello", and its last delta."""
    found = await directory.find(model)
    assert found
    text, last = "", Delta()
    asked: Wishes = wishes  # type: ignore[assignment] # written by hand in each test
    async with (
        asyncio.timeout(30),
        contextlib.aclosing(found.answer(HELLO, asked, max_tokens, stops)) as deltas,
    ):
        async for last in deltas:
            text += last.text
    return text, last


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a background task brings about."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)


def dead() -> str:
    """An address at which nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/v1"


def gpu(*servers: Wire | str, **others: Any) -> dict[str, Any]:
    """The settings of a server of that name."""
    return {"name": "gpu", "urls": [one if isinstance(one, str) else one.url for one in servers], **others}


# Lists


async def test_models_are_listed_with_their_servers_name() -> None:
    """Each model appears once, as model@server, with what the server tells of its context."""
    listing = {
        "data": [{"id": "small", "max_model_len": 8192}, {"id": "org/large", "meta": {"n_ctx_train": 4096}}]
    }
    async with wire(models=reply(200, listing)) as one, wire() as two, upstreams(gpu(one, two)) as directory:
        small, large = directory.cards()
        assert (small.name, small.upstream, small.context) == ("small@gpu", "gpu", 8192)
        assert (large.name, large.context) == ("org/large@gpu", 4096)
        assert "gpu answers, not this machine" in small.note
        assert one.url.split("/")[2] in large.note
        assert two.url.split("/")[2] not in large.note


async def test_plain_name_means_the_first_server_that_has_it() -> None:
    """Without @ the order of the settings decides; a name that nobody lists is unknown."""
    async with (
        wire(models=reply(200, {"data": [{"id": "large"}]})) as one,
        wire() as two,
        wire() as three,
        upstreams(
            gpu(one), {"name": "attic", "url": two.url}, {"name": "shed", "url": three.url}
        ) as directory,
    ):
        found = await directory.find("small")
        assert found
        assert found.card.name == "small@attic"
        assert await directory.find("small@gpu") is None
        assert await directory.find("nobody") is None
        assert await directory.find("@gpu") is None
        assert await directory.problem("nobody") is None
        assert await directory.problem("large@gpu") == ""


async def test_dead_server_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """One address that refuses and one that never answers: the third one's models are there all the same."""
    monkeypatch.setattr(server_module, "LOOK_TIMEOUT", 600.0)

    async def silent(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with wire(models=silent) as mute, wire() as well:
        settings = {"name": "gone", "url": dead()}, {"name": "mute", "url": mute.url}, gpu(well)
        directory = Upstreams([Upstream.model_validate(one) for one in settings])
        directory.start()
        try:
            await until(lambda: len(directory.cards()) > 0)
            assert [card.name for card in directory.cards()] == ["small@gpu"]
        finally:
            await directory.close()


async def test_restarted_server_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that dies keeps its models on the list, with a note; when it is back the note goes.

    It is looked at as soon as an answer fails, not at the next turn.
    """
    monkeypatch.setattr(directory_module, "REFRESH", 3600.0)
    async with wire() as one, upstreams(gpu(one)) as directory:
        one.models = one.chat = reply(502, "<html>Bad gateway</html>", "text/html")
        with pytest.raises(EngineUnavailableError, match="502 and no JSON"):
            await ask(directory)
        (card,) = directory.cards()
        assert "At present it does not" in card.note
        assert "502" in (await directory.problem("small@gpu") or "")
        one.models, one.chat = reply(200, {"data": [{"id": "small"}, {"id": "new"}]}), says("Back")
        assert (await ask(directory))[0] == "Back"  # asked all the same: nobody else could answer
        await until(lambda: len(directory.cards()) == 2)
        assert "At present" not in directory.cards()[0].note


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [
        (reply(200, "<html>Welcome</html>", "text/html"), "no list of models"),
        (reply(200, {"models": []}), "no list of models"),
        (reply(200, [1]), "no list of models"),
        (reply(404, "not here", "text/plain"), "404"),
        (reply(401, {"error": "no"}), "wants a key"),
        (
            reply(302, "", location="http://elsewhere.example/v1/models"),
            "sends us on to http://elsewhere.example",
        ),
        (reply(200, {"data": []}, content_encoding="gzip"), "compresses"),
        (reply(500, {"error": {"message": "on\nfire" + "!" * 999}}), "on fire!!"),
    ],
)
async def test_server_that_is_none_is_described(behaviour: Any, problem: str) -> None:
    """Whatever answers in the place of a server, its state says in one short line what is wrong."""
    async with wire(models=behaviour) as one:
        (state,) = await examine([Upstream.model_validate(gpu(one))])
        assert problem in state.problem
        assert len(state.problem) < 400
        assert state.problem.isprintable()


async def test_endless_list_is_cut() -> None:
    """A list without end is given up after a few megabytes."""

    async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "application/json"))
        while True:
            writer.write(b'{"data": [' + b" " * 2**20)
            await writer.drain()

    async with wire(models=endless) as one:
        (state,) = await examine([Upstream.model_validate(gpu(one))])
        assert "more than 8388608 bytes" in state.problem
        await asyncio.wait_for(one.left.wait(), 30)


# Answers


async def test_answer_has_text_counts_and_times() -> None:
    """Text as it comes, then why it ended, the server's own counts, and times measured here."""
    async with wire(says("Hel", "lo")) as one, upstreams(gpu(one)) as directory:
        text, last = await ask(directory)
        assert (text, last.finish) == ("Hello", "stop")
        assert last.usage
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 2)
        assert last.timings
        assert last.timings.prefill >= 0


async def test_request_says_what_was_asked_for_and_no_more() -> None:
    """What the person did not name is left to the server; names that differ are sent in both forms."""
    async with wire() as one, upstreams(gpu(one)) as directory:
        await ask(directory)
        assert set(one.chats[0].json) == {"model", "messages", "stream", "stream_options"}
        assert one.chats[0].json["model"] == "small"
        await ask(
            directory,
            stops=tuple("abcdef"),
            max_tokens=7,
            temperature=0,
            top_k=4,
            min_p=0.1,
            repetition_penalty=1.1,
            logit_bias={5: 1.0},
            top_logprobs=2,
        )
        body = one.chats[1].json
        assert (body["temperature"], body["top_k"], body["min_p"], body["max_tokens"]) == (0, 4, 0.1, 7)
        assert body["repetition_penalty"] == body["repeat_penalty"] == 1.1
        assert (body["logit_bias"], body["logprobs"], body["top_logprobs"]) == ({"5": 1.0}, True, 2)
        assert body["stop"] == list("abcd")
        assert one.chats[1].headers["content-type"] == "application/json"
        assert one.chats[1].headers["via"] == "1.1 hob"
        assert "authorization" not in one.chats[1].headers


async def test_logprobs_come_through() -> None:
    """Scores keep their bytes; where the server gives none they are those of the text."""
    scores = {
        "content": [
            {
                "token": "\ufffd",
                "logprob": -0.5,
                "bytes": [0xC3],
                "top_logprobs": [{"token": "é", "logprob": -1, "bytes": None}],
            }
        ]
    }
    stream = events(chunk("é", logprobs=scores), *END)
    async with wire(streams(stream)) as one, upstreams(gpu(one)) as directory:
        found = await directory.find("small@gpu")
        assert found
        async with contextlib.aclosing(found.answer(HELLO, {"top_logprobs": 1}, None, ())) as deltas:
            (score,) = (await anext(deltas)).logprobs
        assert (score.chosen.raw, score.chosen.logprob) == (b"\xc3", -0.5)
        assert (score.top[0].raw, score.top[0].text) == ("é".encode(), "é")


async def test_stop_strings_hold_for_servers_that_do_not_know_them() -> None:
    """The text ends before a stop string although the server goes on, and the server is hung up on."""

    async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream"))
        while True:
            writer.write(events(chunk("one E")) + events(chunk("ND ")))
            await writer.drain()
            await asyncio.sleep(0.01)

    async with wire(endless) as one, upstreams(gpu(one)) as directory:
        text, last = await ask(directory, stops=("END",))
        assert (text, last.finish) == ("one ", "stop")
        await asyncio.wait_for(one.left.wait(), 30)


async def test_closing_the_answer_hangs_up() -> None:
    """Whoever stops reading ends the work on the other server at once, also before the first token."""

    async def dripping(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream"))
        while True:
            writer.write(events(chunk("drip ")))
            await writer.drain()
            await asyncio.sleep(0.005)

    async def silent(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream"))
        while True:
            writer.write(b": busy\n\n")
            await writer.drain()
            await asyncio.sleep(0.005)

    for behaviour in (dripping, silent):
        async with wire(behaviour) as one, upstreams(gpu(one)) as directory:
            found = await directory.find("small@gpu")
            assert found
            deltas = found.answer(HELLO, {}, None, ())
            first = asyncio.ensure_future(anext(deltas))
            await asyncio.sleep(0.2)
            first.cancel()
            await asyncio.wait([first])
            await deltas.aclose()
            await asyncio.wait_for(one.left.wait(), 30)


# Failover


@pytest.mark.parametrize(
    "bad",
    [
        reply(500, {"error": {"message": "out of memory"}}),
        reply(503, {"error": {"message": "loading"}}, retry_after="300"),
        reply(429, {"error": {"message": "slow down"}}, retry_after="300"),
        reply(401, {"error": {"message": "who are you"}}),
        reply(404, {"error": {"message": "no such model"}}),
        reply(502, "<html>", "text/html"),
        reply(307, "", location="http://127.0.0.1:1/v1"),
        reply(200, {"choices": []}),
        streams(b""),
        streams(b"data: {not json\n\n"),
        streams(events({"error": {"message": "no GPU"}})),
        streams(events(chunk(), chunk())),  # a role, an empty text, and then nothing
    ],
)
async def test_next_address_answers_when_the_first_one_fails_before_the_first_token(bad: Any) -> None:
    """Whatever goes wrong before there is text, the person gets the other address's answer and no more."""
    async with wire(bad) as one, wire(says("From two")) as two, upstreams(gpu(one, two)) as directory:
        assert (await ask(directory))[0] == "From two"
        assert (len(one.chats), len(two.chats)) == (1, 1)
        assert one.chats[0].body == two.chats[0].body


async def test_dead_address_is_passed_over() -> None:
    """Nobody waits for an address that was dead at the last look while another one lives."""
    async with (
        wire(models=reply(502, "", "text/html")) as one,
        wire(says("Alive")) as two,
        upstreams(gpu(dead(), one, two)) as directory,
    ):
        assert (await ask(directory))[0] == "Alive"
        assert one.chats == []
        assert "cannot be reached" in directory.states()[0].problem


async def test_answer_that_is_no_stream_is_described() -> None:
    """A page where events should come is told by its kind."""
    async with wire(reply(200, "<html>", "text/html")) as one, upstreams(gpu(one)) as directory:
        with pytest.raises(EngineUnavailableError, match="text/html instead of a stream of events"):
            await ask(directory)


async def test_mute_address_loses_its_turn() -> None:
    """No token within the time for the first one, comments or not, and the next address is asked."""

    async def humming(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream"))
        while True:
            writer.write(b": busy\n\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with (
        wire(humming) as one,
        wire(says("Awake")) as two,
        upstreams(gpu(one, two, first_token_timeout=0.3)) as directory,
    ):
        assert (await ask(directory))[0] == "Awake"
        await asyncio.wait_for(one.left.wait(), 30)


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        (b"", "ended the stream"),
        (b"data: [DONE]\n\n", "ended the stream"),
        (b"data: {broken\n\n", "no part of an answer"),
        (events({"error": {"message": "out of memory"}}), "out of memory"),
        (events({"choices": [{"delta": {"content": 7}}]}), "no part of an answer"),
        (b"data: " + b"x" * 2**21, "does not answer well"),
    ],
)
async def test_no_other_address_goes_on_with_a_begun_answer(rest: bytes, problem: str) -> None:
    """After the first token a failure ends the answer with an error: the text stays what one server wrote."""
    stream = streams(events(chunk("Once upon")), rest)
    async with wire(stream) as one, wire(says("Never")) as two, upstreams(gpu(one, two)) as directory:
        found = await directory.find("small@gpu")
        assert found
        deltas = found.answer(HELLO, {}, None, ())
        assert (await anext(deltas)).text == "Once upon"
        with pytest.raises(EngineUnavailableError, match=problem) as caught:
            await anext(deltas)
        assert two.chats == []
        assert one.url in caught.value.message
        assert "broke off" in caught.value.message


async def test_server_that_stops_in_the_middle_is_given_up() -> None:
    """No token for the time between two tokens ends the answer with an error."""

    async def stuck(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream") + events(chunk("And then")))
        await writer.drain()
        await asyncio.Event().wait()

    async with wire(stuck) as one, upstreams(gpu(one, token_timeout=0.2)) as directory:
        with pytest.raises(EngineUnavailableError, match="stopped sending tokens in time"):
            await ask(directory)


async def test_thoughts_count_as_tokens() -> None:
    """A model that thinks longer than a token may take is not given up, and its thoughts are not shown."""

    async def thinking(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream"))
        for _ in range(5):
            writer.write(events({"choices": [{"delta": {"reasoning_content": "hm"}}]}))
            await writer.drain()
            await asyncio.sleep(0.2)
        writer.write(events(chunk("42"), *END))

    settings = {"first_token_timeout": 0.6, "token_timeout": 0.6}
    async with wire(thinking) as one, upstreams(gpu(one, **settings)) as directory:
        assert (await ask(directory))[0] == "42"


async def test_counts_that_never_come_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is complete but for its counts is complete."""

    async def forgetful(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream") + events(chunk("Hi"), chunk(finish_reason="length")))
        await writer.drain()
        await asyncio.Event().wait()

    monkeypatch.setattr(server_module, "TRAILER", 0.1)
    async with wire(forgetful) as one, upstreams(gpu(one)) as directory:
        text, last = await ask(directory)
        assert (text, last.finish, last.usage) == ("Hi", "length", None)


@pytest.mark.parametrize(
    ("status", "error", "raised"),
    [
        (400, {"message": "max_tokens is wrong", "param": "max_tokens"}, InvalidRequestError),
        (422, {"message": "no"}, InvalidRequestError),
        (400, {"message": "too long", "code": "context_length_exceeded"}, ContextLengthError),
        (400, {"message": "too long", "type": "exceed_context_size_error"}, ContextLengthError),
        (400, {"message": "This model's maximum context length is 64 tokens."}, ContextLengthError),
    ],
)
async def test_fault_of_the_request_is_asked_once(status: int, error: Any, raised: type[HobError]) -> None:
    """What every server would refuse is not tried with the next one; the person sees the server's words."""
    bad = reply(status, {"error": error})
    async with wire(bad) as one, wire() as two, upstreams(gpu(one, two)) as directory:
        with pytest.raises(raised) as caught:
            await ask(directory)
        assert caught.value.message == f"gpu: {error['message']}"
        assert type(caught.value) is raised
        assert two.chats == []
        assert directory.states()[0].problem == ""


async def test_model_that_is_gone_is_unknown() -> None:
    """A server that no longer has the model it listed says so with 404, and so does Hob."""
    gone = reply(404, {"error": {"message": "small is gone"}})
    async with wire(gone) as one, upstreams(gpu(one)) as directory:
        with pytest.raises(UnknownModelError, match="small is gone"):
            await ask(directory)


async def test_what_a_server_repeats_of_a_question_stays_with_who_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A complaint with the question in it is shown to the person, not to the log or on others' pages."""

    async def repeat(request: Request, writer: asyncio.StreamWriter) -> None:
        await reply(500, {"error": {"message": f"cannot read {request.body!r}"}})(request, writer)

    async with wire(repeat) as one, upstreams(gpu(one)) as directory:
        with pytest.raises(EngineUnavailableError, match="Hello"):
            await ask(directory)
        assert "it answers 500" in caplog.text
        assert "Hello" not in caplog.text + directory.states()[0].problem + directory.cards()[0].note


# Asked to wait


async def test_server_that_wants_rest_gets_it() -> None:
    """Retry-After is obeyed: the server is not asked before, and the person learns how long it takes."""
    busy = reply(429, {"error": {"message": "slow down"}}, retry_after="120")
    async with wire(busy) as one, upstreams(gpu(one)) as directory:
        with pytest.raises(RateLimitError, match="slow down") as caught:
            await ask(directory)
        assert caught.value.retry_after == 120
        with pytest.raises(RateLimitError, match="left alone") as caught:
            await ask(directory)
        assert 100 < (caught.value.retry_after or 0) <= 120
        assert len(one.chats) == 1
        assert directory.states()[0].problem == ""


async def test_short_rest_is_waited_for() -> None:
    """A server that will be there in a second is worth the second."""

    async def starting(request: Request, writer: asyncio.StreamWriter) -> None:
        await (says("Here") if len(one.chats) > 1 else reply(503, {"error": "x"}, retry_after="1"))(
            request, writer
        )

    async with wire(starting) as one, upstreams(gpu(one)) as directory:
        assert (await ask(directory))[0] == "Here"


async def test_all_that_fail_are_named() -> None:
    """When nobody answers, the error has every address with its reason, and when to try again."""
    async with (
        wire(reply(500, {"error": {"message": "out of memory"}})) as one,
        wire(reply(401, {})) as two,
        upstreams(gpu(one, two)) as directory,
    ):
        with pytest.raises(EngineUnavailableError) as caught:
            await ask(directory)
        assert f"{one.url}: out of memory" in caught.value.message
        assert f"{two.url}: it wants a key" in caught.value.message
        assert caught.value.retry_after


# Keys, certificates


async def test_key_is_sent_and_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The key comes from its file, at once when it changes; neither errors nor the log ever have it."""
    file = tmp_path / "gpu.key"
    file.write_text("sk-secret-1\n")
    file.chmod(0o600)

    async def guarded(request: Request, writer: asyncio.StreamWriter) -> None:
        good = request.headers["authorization"] == "Bearer sk-secret-1"
        bad = reply(401, {"error": {"message": f"bad {request.headers['authorization']}"}})
        await (says("Come in") if good else bad)(request, writer)

    caplog.set_level("DEBUG")
    async with wire(guarded) as one, upstreams(gpu(one, key_file=str(file))) as directory:
        assert (await ask(directory))[0] == "Come in"
        file.write_text("sk-secret-2")
        with pytest.raises(EngineUnavailableError) as caught:
            await ask(directory)
        assert f"it refuses the key in {file}" in caught.value.message
        assert one.url in caught.value.message
        assert "secret" not in caught.value.explanation
        file.chmod(0o644)
        with pytest.raises(
            EngineUnavailableError, match=r"open to other users.*chmod 600|open to other users"
        ):
            await ask(directory)
        assert len(one.chats) == 2
    assert "sk-secret" not in caplog.text


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
async def test_certificates_are_checked(tmp_path: Path) -> None:
    """A certificate that nobody vouches for is refused before anything is sent; ca_file vouches for it."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    process = await asyncio.create_subprocess_exec(
        "openssl",
        *make.split(),
        "-addext",
        names,
        "-keyout",
        str(key),
        "-out",
        str(certificate),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    it = Wire(says("Safe"), reply(200, {"data": [{"id": "small"}]}))
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with upstreams(gpu(url)) as directory:
        (state,) = directory.states()
        assert "certificate is not trusted" in state.problem
        assert (it.looks, it.chats) == (0, [])
    async with upstreams(gpu(url, ca_file=str(certificate))) as directory:
        assert (await ask(directory))[0] == "Safe"
    server.close()


async def test_missing_certificates_are_named(tmp_path: Path) -> None:
    """A ca_file that is not there stops the start with its name."""
    with pytest.raises(SettingsError, match=r"missing\.pem"):
        Upstreams([Upstream.model_validate(gpu(dead(), ca_file=str(tmp_path / "missing.pem")))])


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question goes to the address that the owner set, whatever HTTP_PROXY says."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, dead())
    async with wire() as one, upstreams(gpu(one)) as directory:
        assert (await ask(directory))[0] == "Hi"


# Bounded memory


async def test_flood_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that never ends is ended here once it is longer than any real one."""

    async def flood(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream"))
        while True:
            writer.write(events(chunk("x" * 1000)))
            await writer.drain()

    monkeypatch.setattr(server_module, "MAX_STREAM", 2**18)
    async with wire(flood) as one, upstreams(gpu(one)) as directory:
        with pytest.raises(EngineUnavailableError, match="longer than"):
            await ask(directory)
        await asyncio.wait_for(one.left.wait(), 30)


async def test_endless_line_is_cut() -> None:
    """A line without end costs a megabyte and then the connection."""

    async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream") + b"data: ")
        while True:
            writer.write(b"x" * 2**16)
            await writer.drain()

    async with wire(endless) as one, upstreams(gpu(one)) as directory:
        with pytest.raises(EngineUnavailableError, match="exceeded"):
            await ask(directory)
        await asyncio.wait_for(one.left.wait(), 30)
