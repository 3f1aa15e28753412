"""The runner: replies of each request, in order, whatever other requests meet. In one process, with a toy."""

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.messages import Failed, Finished, Generate, Load, Loaded, ModelRef, Reply, Tokens
from appliance.engine.runner import Runner, check_prompt
from appliance.errors import ContextLengthError, HobError, InvalidRequestError
from tests.appliance.engine import toy as toys
from tests.appliance.engine.conftest import generate
from tests.appliance.engine.toy import Toy


class Desk:
    """A runner and what it replied."""

    def __init__(self) -> None:
        self.models: list[Toy] = []
        self.on_reply: Callable[[Reply], None] = lambda _: None
        self._replies: queue.Queue[tuple[int, Reply]] = queue.Queue()
        self.runner = Runner(self.load, self.reply)

    def load(self, model: ModelRef) -> Toy:
        """A toy, remembered."""
        assert all(earlier.closed for earlier in self.models)
        self.models.append(toys.load(model))
        return self.models[-1]

    def reply(self, client: int, reply: Reply) -> None:
        """Called by the runner."""
        self._replies.put((client, reply))
        self.on_reply(reply)

    def next(self) -> tuple[int, Reply]:
        """The next reply."""
        return self._replies.get(timeout=30)

    def until_end(self, *ids: str) -> dict[str, list[Reply]]:
        """Replies by request, until each of `ids` has ended."""
        replies: dict[str, list[Reply]] = {id: [] for id in ids}
        while not all(got and not isinstance(got[-1], Tokens) for got in replies.values()):
            _, reply = self.next()
            replies[reply.id].append(reply)
        return replies

    def silent(self) -> bool:
        """Whether there is no further reply."""
        return self._replies.empty()


@pytest.fixture
def desk() -> Iterator[Desk]:
    """A running desk; its models are closed when it has stopped."""
    desk = Desk()
    desk.runner.start()
    yield desk
    assert desk.runner.stop(30)
    assert all(model.closed for model in desk.models)


def tokens_of(replies: list[Reply]) -> list[int]:
    """Token ids among the replies."""
    return [token.token for reply in replies if isinstance(reply, Tokens) for token in reply.tokens]


def test_a_generation_is_the_models(desk: Desk, toy: ModelRef) -> None:
    """Greedy tokens are those of the model run by hand, one reply each; then one `Finished` with counts."""
    desk.runner.submit(0, generate(toy, prompt=[5] * 20, max_tokens=10))
    replies = desk.until_end("a")["a"]
    by_hand = Toy()
    by_hand.add_sequence(0)
    expected = []
    last = 5
    for _ in range(10):
        last = int(by_hand.prefill(0, [last]).argmax())
        expected.append(last)
    assert tokens_of(replies) == expected
    assert len(replies) == 11
    end = replies[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.prompt_tokens, end.completion_tokens) == ("length", 20, 10)
    assert min(end.queue, end.prefill, end.decode) >= 0


def test_a_stop_token_ends_and_is_not_sent(desk: Desk, toy: ModelRef) -> None:
    """The answer stops before it, with reason "stop"."""
    desk.runner.submit(0, generate(toy, max_tokens=10))
    full = tokens_of(desk.until_end("a")["a"])
    stop = full[4]
    desk.runner.submit(0, generate(toy, max_tokens=10, stop=[stop]))
    replies = desk.until_end("a")["a"]
    assert tokens_of(replies) == full[: full.index(stop)]
    assert isinstance(replies[-1], Finished)
    assert replies[-1].reason == "stop"


def test_requests_run_in_order(desk: Desk, toy: ModelRef) -> None:
    """All of one request's replies come before the next one's first."""
    for number in range(5):
        desk.runner.submit(number % 2, generate(toy, str(number)))
    order: list[int] = []
    while len(order) < 5 * 9:
        client, reply = desk.next()
        assert client == int(reply.id) % 2
        order.append(int(reply.id))
    assert order == sorted(order)


def test_a_cancelled_generation_ends_with_the_token_it_is_at(desk: Desk, toy: ModelRef) -> None:
    """Cancelled when its third token is sent, it sends no fourth, and its sequence is freed."""

    def cancel(reply: Reply) -> None:
        seen.append(reply)
        if len(seen) == 3:
            desk.runner.cancel(0, "a")

    seen: list[Reply] = []
    desk.on_reply = cancel
    desk.runner.submit(0, generate(toy, max_tokens=1000))
    end = desk.until_end("a")["a"][-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.completion_tokens) == ("cancelled", 3)
    assert desk.models[0].sequences == {}
    assert desk.runner.activity().running == 0


def test_a_long_prompt_is_cancelled_between_chunks(
    desk: Desk, make_toy: Callable[..., ModelRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the prompt is not computed."""
    chunks = 0
    plain = Toy.prefill

    def prefill(self: Toy, seq: int, ids: list[int]) -> object:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            desk.runner.cancel(0, "a")
        return plain(self, seq, ids)

    monkeypatch.setattr(Toy, "prefill", prefill)
    desk.runner.submit(0, generate(make_toy(prefill_chunk=4), prompt=[5] * 400))
    (end,) = desk.until_end("a")["a"]
    assert isinstance(end, Finished)
    assert (end.reason, end.completion_tokens) == ("cancelled", 0)
    assert chunks == 2


def test_a_waiting_request_is_cancelled_at_once(desk: Desk, toy: ModelRef) -> None:
    """It need not wait for its turn; the running one does not notice."""
    ready = threading.Event()

    def cancel(reply: Reply) -> None:
        if reply.id == "a" and not ready.is_set():
            desk.runner.cancel(0, "b")
            ready.set()

    desk.on_reply = cancel
    desk.runner.submit(0, generate(toy, "a", max_tokens=50))
    desk.runner.submit(0, generate(toy, "b", max_tokens=50))
    replies = desk.until_end("a", "b")
    assert len(tokens_of(replies["a"])) == 50
    (end,) = replies["b"]
    assert isinstance(end, Finished)
    assert (end.reason, end.prefill, end.decode) == ("cancelled", 0, 0)


def test_a_client_that_goes_away_is_forgotten(desk: Desk, toy: ModelRef) -> None:
    """Its requests end, those of others run on."""
    desk.runner.submit(1, generate(toy, "a", max_tokens=10**6))
    desk.runner.submit(1, generate(toy, "b", max_tokens=10**6))
    desk.runner.submit(2, generate(toy, "c"))
    desk.next()
    desk.runner.forget(1)
    while True:
        client, reply = desk.next()
        if client == 2:
            assert reply.id == "c"
            break
    assert desk.models[0].sequences.keys() <= {0}


def test_models_are_loaded_when_their_request_is_due(desk: Desk, make_toy: Callable[..., ModelRef]) -> None:
    """The old model is closed before the new one is loaded (the desk checks that), and only on a change."""
    one, two = make_toy("one", seed=1), make_toy("two", seed=2)
    requests: list[Load | Generate] = [
        Load(id="0", model=one),
        generate(one, "1"),
        generate(two, "2"),
        generate(two, "3"),
        generate(one, "4"),
        Load(id="5", model=one),
    ]
    for request in requests:
        desk.runner.submit(0, request)
    replies = desk.until_end(*"012345")
    assert len(desk.models) == 3
    (first,), (last,) = replies["0"], replies["5"]
    assert isinstance(first, Loaded)
    assert isinstance(last, Loaded)
    assert first.seconds > 0
    assert last.seconds == 0
    assert tokens_of(replies["1"]) == tokens_of(replies["4"]) != tokens_of(replies["2"])
    assert desk.runner.activity().model == one


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"prompt": [3, 64]}, InvalidRequestError.code, "token 64"),
        ({"prompt": [-1]}, InvalidRequestError.code, "token -1"),
        ({"prompt": [3] * 32}, ContextLengthError.code, "32 tokens; the context window has 32"),
        ({"prompt": [3] * 99, "max_tokens": 0}, ContextLengthError.code, "99 tokens"),
        ({"max_tokens": -1}, InvalidRequestError.code, "max_tokens"),
        ({"temperature": -1.0}, InvalidRequestError.code, "temperature"),
        ({"logit_bias": {64: 1.0}}, InvalidRequestError.code, "logit_bias"),
        ({"prompt": [Toy.broken]}, HobError.code, "RuntimeError: the toy is broken"),
        ({"prompt": [3] * 20 + [Toy.broken]}, HobError.code, "RuntimeError: the toy is broken"),
        ({"prompt": [Toy.hollow]}, "model_output_invalid", "not finite"),
    ],
)
def test_what_is_wrong_with_one_request_ends_it_alone(
    desk: Desk, make_toy: Callable[..., ModelRef], change: dict[str, Any], code: str, text: str
) -> None:
    """It fails with the right code and frees its sequence; the next request is served by the same model."""
    model = make_toy(context=32)
    desk.runner.submit(0, generate(model, "bad", **change))
    desk.runner.submit(0, generate(model, "good"))
    replies = desk.until_end("bad", "good")
    (failed,) = replies["bad"]
    assert isinstance(failed, Failed)
    assert failed.code == code
    assert text in failed.message
    assert len(tokens_of(replies["good"])) == 8
    assert len(desk.models) == 1
    assert desk.models[0].sequences == {}


def test_a_model_that_cannot_be_loaded_fails_its_requests(desk: Desk, toy: ModelRef, tmp_path: Path) -> None:
    """With the loader's message and hint, or as a load failure if the loader broke; others are served."""
    missing = ModelRef(directory=str(tmp_path / "nowhere"), library="", context=16)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "toy.json").write_text("[")
    odd = ModelRef(directory=str(tmp_path / "odd"), library="", context=16)
    for id, model in {"1": missing, "2": toy, "3": odd, "4": toy}.items():
        desk.runner.submit(0, generate(model, id))
    desk.runner.submit(0, Load(id="5", model=missing))
    replies = desk.until_end(*"12345")
    for id, text in {"1": "missing", "3": "JSONDecodeError", "5": "missing"}.items():
        (failed,) = replies[id]
        assert isinstance(failed, Failed)
        assert failed.code == "model_load_failed"
        assert text in failed.message
    assert len(tokens_of(replies["2"])) == len(tokens_of(replies["4"])) == 8
    assert desk.runner.activity().model is None


def test_a_sequence_that_cannot_be_freed_costs_the_model_not_the_engine(
    desk: Desk, toy: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is closed and loaded anew for the next request."""

    def stuck(self: Toy, seq: int) -> None:
        raise RuntimeError("stuck")

    with monkeypatch.context() as patch:
        patch.setattr(Toy, "remove_sequence", stuck)
        desk.runner.submit(0, generate(toy, "a"))
        assert isinstance(desk.until_end("a")["a"][-1], Failed)
    desk.runner.submit(0, generate(toy, "b"))
    assert len(tokens_of(desk.until_end("b")["b"])) == 8
    assert [model.closed for model in desk.models] == [True, False]


def test_an_id_in_use_is_refused(desk: Desk, toy: ModelRef) -> None:
    """For the same client; another client may use it."""
    desk.runner.submit(1, generate(toy, "a", max_tokens=10**6))
    desk.runner.submit(1, generate(toy, "a"))
    while not isinstance(reply := desk.next()[1], Failed):
        pass
    assert "in use" in reply.message
    desk.runner.submit(2, generate(toy, "a", max_tokens=1))
    desk.runner.cancel(1, "a")
    while desk.next()[0] == 1:
        pass


def test_an_empty_prompt_is_refused(toy: ModelRef) -> None:
    """There is nothing to continue."""
    request = Generate(
        id="a", model=toy, prompt_ids=[], max_tokens=1, stop_token_ids=[], sampling=generate(toy).sampling
    )
    with pytest.raises(InvalidRequestError, match="empty"):
        check_prompt(request, 10, 10)


def test_the_same_seed_gives_the_same_text(desk: Desk, toy: ModelRef) -> None:
    """Whatever else the engine does in between; another seed gives another text."""
    wanted: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 40}
    for id, seed in {"1": 5, "2": 6, "3": 5}.items():
        desk.runner.submit(0, generate(toy, id, seed=seed, **wanted))
    replies = desk.until_end(*"123")
    assert tokens_of(replies["1"]) == tokens_of(replies["3"]) != tokens_of(replies["2"])


def test_stopping_does_not_wait_for_a_generation(toy: ModelRef) -> None:
    """The thread ends after the step it is at, without a reply, and closes the model."""
    desk = Desk()
    desk.runner.start()
    desk.runner.submit(0, generate(toy, max_tokens=10**6))
    desk.next()
    assert desk.runner.stop(30)
    assert desk.models[0].closed
    while not desk.silent():
        assert isinstance(desk.next()[1], Tokens)
