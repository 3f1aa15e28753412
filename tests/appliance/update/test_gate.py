"""The question that a new system must answer."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from appliance.errors import AdminError
from appliance.shipped import GUIDE
from appliance.update import gate, install
from appliance.update.gate import INSISTENCE, PATIENCE, RefusedError, wait_for_answer
from tests.service import MODEL, Hob


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def waited(*answers: str | Exception) -> tuple[str, float]:
    """What comes of a service that answers like this, the last answer for ever; and after how long."""
    clock, left = Clock(), list(answers)

    def ask() -> str:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return wait_for_answer(ask, clock, clock.sleep), clock.now


NOBODY = ConnectionRefusedError("nobody listens")
NO = RefusedError("hob-guide is damaged")


def test_an_answer_is_enough() -> None:
    """However long the service took to come up, and though it said no at first."""
    assert waited("I am Hob.")[0] == ""
    reason, after = waited(*[NOBODY] * 50, *[NO] * 10, "I am Hob.")
    assert reason == ""
    assert after < PATIENCE


def test_nobody_comes_up() -> None:
    """Without a service the patience ends."""
    reason, after = waited(NOBODY)
    assert reason == "the service did not start"
    assert PATIENCE <= after < PATIENCE + 10


def test_a_service_that_says_no() -> None:
    """It may still be starting; after a while it is believed, with its own words."""
    reason, after = waited(NOBODY, NOBODY, NO)
    assert reason == "hob-guide is damaged"
    assert INSISTENCE <= after < INSISTENCE + 20


def test_a_service_that_comes_and_goes() -> None:
    """Refusals between crashes do not count as insistence; in the end the patience does."""
    reason, after = waited(*[NO, http.client.RemoteDisconnected("closed")] * 300)
    assert reason
    assert after >= PATIENCE


def test_a_real_service_is_asked(server: Hob) -> None:
    """The real service's own model answers, to this machine, without a key."""
    if MODEL != GUIDE:
        pytest.skip("the built-in model is not here")
    assert gate.ask(server.port).strip()


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    """A service that says one thing; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield http_server.server_port
        http_server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (503, json.dumps({"error": {"message": "The model is damaged."}}).encode(), "The model is damaged."),
        (500, b"oops", "nothing that can be read"),
        (200, json.dumps({"choices": [{"message": {"content": " "}}]}).encode(), "without a word"),
        (200, json.dumps({"choices": []}).encode(), "nothing that can be read"),
    ],
)
def test_what_is_no_answer(status: int, body: bytes, words: str) -> None:
    """Errors, silence and rubbish are no answer, and say so."""
    with answering(status, body) as port, pytest.raises(RefusedError, match=words):
        gate.ask(port)


class Root:
    """Stands for what root's part does with the verdict: keeps it."""

    def __init__(self, patch: pytest.MonkeyPatch, problem: str = "") -> None:
        self.verdicts: list[str] = []
        self.problem = problem
        patch.setattr(install, "accept", self.accept)
        patch.setattr(install, "give_up", self.give_up)

    async def accept(self) -> None:
        if self.problem:
            raise AdminError(self.problem)
        self.verdicts.append("accepted")

    async def give_up(self, reason: str) -> None:
        self.verdicts.append(reason)


@pytest.mark.parametrize(("reason", "status"), [("", 0), ("hob-guide is damaged", 1)])
def test_the_verdict(monkeypatch: pytest.MonkeyPatch, reason: str, status: int) -> None:
    """An answer is accepted; without one the reason is kept and the unit fails, which restarts the device."""
    root = Root(monkeypatch)
    monkeypatch.setattr(gate, "wait_for_answer", lambda asked: reason)
    assert gate.main() == status
    assert root.verdicts == [reason or "accepted"]


def test_a_slot_that_cannot_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that cannot be made to count (RAUC does not run) is a failure like any other."""
    root = Root(monkeypatch, "rauc cannot be run")
    monkeypatch.setattr(gate, "wait_for_answer", lambda asked: "")
    assert gate.main() == 1
    assert root.verdicts == ["rauc cannot be run"]
