"""What is shown of what is stored."""

from datetime import datetime, timedelta, timezone
from ipaddress import ip_address

import pytest

from appliance.domain import FinishReason, ModelCard, Role, Timings
from appliance.hardware.memory import Fit
from appliance.jobs import Progress
from appliance.store import ApiKey, Chat, SearchHit, State, StoredMessage
from appliance.system import Health
from appliance.workshop import with_spare
from webui import presenters
from webui.model_presenters import duration, status
from webui.pages import ModelChoice

NOW = datetime(2026, 3, 10, 1, 30, tzinfo=timezone(timedelta(hours=2)))


def message(
    role: Role = "assistant",
    content: str = "Hi *there*",
    state: State = "done",
    *,
    number: int = 7,
    error: str = "",
    finish: FinishReason | None = None,
    tokens: int | None = None,
    decode: float | None = None,
) -> StoredMessage:
    """A stored message of chat 3."""
    timings = None if decode is None else Timings(queue=0, prefill=0.1, decode=decode)
    return StoredMessage(
        number, 3, None, role, content, state, error, "hob-guide", {}, finish, 5, tokens, timings, 0.0
    )


def card(name: str, **more: object) -> ModelCard:
    """An installed model."""
    values = {
        "family": "llama",
        "quantization": "q4f16_1",
        "parameters": 7_340_000,
        "bytes": 5_200_000,
        "context": 1024,
        "created": 0,
    }
    return ModelCard.model_validate({"name": name, **values, **more})


def test_chats_are_grouped_by_local_days() -> None:
    """Days begin at the reader's midnight, not at UTC's; a clock that was set back does no harm."""
    ages = {"now": 0, "an hour": 1, "two hours": 2, "two days": 26, "a week": 7 * 24, "future": -30}
    chats = [
        Chat(number, title, "m", 0.0, (NOW - timedelta(hours=hours)).timestamp())
        for number, (title, hours) in enumerate(ages.items())
    ]
    sidebar = presenters.sidebar(chats, NOW, current=3)
    listed = {group.label: [chat.title for chat in group.chats] for group in sidebar.groups}
    assert listed == {
        "Today": ["now", "an hour", "future"],
        "Yesterday": ["two hours"],
        "Last seven days": ["two days"],
        "Earlier": ["a week"],
    }
    assert [chat.id for group in sidebar.groups for chat in group.chats if chat.current] == [3]


def test_the_picker_offers_sound_models() -> None:
    """Damaged models are not offered; the chosen one is marked."""
    form = presenters.composer([card("a"), card("b", problem="damaged"), card("c")], "c")
    assert form.models == [ModelChoice("a", False), ModelChoice("c", True)]
    assert (form.action, form.stop) == ("/chats", None)


def test_a_running_answer_can_be_stopped() -> None:
    """The form knows where."""
    form = presenters.composer([], "a", 3, message(state="running", number=9))
    assert (form.action, form.stop) == ("/chats/3/messages", "/chats/3/messages/9/stop")


@pytest.mark.parametrize(
    ("health", "shown"),
    [
        (Health("ok", "m", "never shown"), ""),
        (
            Health("starting", "m", "m is being loaded"),
            "Hob is waking up (m is being loaded). You may ask already; the answer comes when it is awake.",
        ),
        (Health("failed", "m", "no such model."), "Hob cannot answer (no such model)."),
        (Health("failed", "m"), "Hob cannot answer."),
    ],
)
def test_the_page_says_why_answers_wait(health: Health, shown: str) -> None:
    """Silent when all is well; else the state and its reason."""
    assert presenters.notice(health) == shown


def test_a_conversation_hides_system_messages() -> None:
    """People see what was asked and answered; the last message is marked."""
    turns = presenters.turns([message("system", number=1), message("user", number=2), message(number=3)])
    assert [(turn.id, turn.role, turn.last) for turn in turns] == [(2, "user", False), (3, "assistant", True)]


def test_questions_stay_as_typed() -> None:
    """A question is text, an answer Markdown."""
    question, answer = presenters.turns([message("user"), message()])
    assert (question.text, question.html) == ("Hi *there*", "")
    assert answer.html == "<p>Hi <em>there</em></p>\n"
    assert answer.offset == len("Hi *there*")


@pytest.mark.parametrize(
    ("stored", "problem", "hint"),
    [
        (message(), "", ""),
        (message(state="running"), "", ""),
        (message(state="error", error="The engine died."), "The answer broke off.", "The engine died."),
        (message(state="error", content="", error="No model."), "No answer.", "No model."),
        (message(state="stopped"), "Stopped.", ""),
        (message(state="stopped", error="Interrupted: power."), "Interrupted: power.", ""),
        (message(finish="length"), "The answer reached its greatest length.", "Ask Hob to go on."),
    ],
)
def test_incomplete_answers_say_why(stored: StoredMessage, problem: str, hint: str) -> None:
    """Failed, stopped, interrupted and cut answers say so; complete ones are silent."""
    turn = presenters.turn(stored, last=True)
    assert (turn.problem, turn.hint) == (problem, hint)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (message(), ""),
        (message(tokens=0, decode=0.0), ""),
        (message(tokens=1, decode=0.5), "1 token"),
        (message(tokens=42), "42 tokens"),
        (message(tokens=101, decode=1.0), "101 tokens · 100 tokens/s"),
        (message(tokens=11, decode=4.0), "11 tokens · 2.5 tokens/s"),
    ],
)
def test_speed_counts_what_decode_made(stored: StoredMessage, shown: str) -> None:
    """The first token comes from prefill, so speed is that of the others."""
    assert presenters.stats(stored) == shown


def test_hits_lead_to_the_message() -> None:
    """A hit in a message leads to it, one in a title to the chat."""
    snippet = (("so ", False), ("bread", True))
    assert presenters.hit(SearchHit(3, "T", 9, snippet)).href == "/chats/3#m9"
    assert presenters.hit(SearchHit(3, "T", None, snippet)).href == "/chats/3"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999 B"),
        (5_200_000, "5.2 MB"),
        (712_345_678, "712 MB"),
        (2_000_000_000_000, "2.0 TB"),
        (10**16, "10000 TB"),
    ],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    """Two or three digits and a unit."""
    assert presenters.size(count) == text


def test_models_say_what_they_are() -> None:
    """Weights, quantisation, size and context; weights only where they are known."""
    assert (
        presenters.model_row(card("a")).facts == "7 million weights, q4f16_1, 5.2 MB, 1,024 tokens of context"
    )
    big = presenters.model_row(card("b", parameters=1_240_000_000, problem="damaged"))
    assert big.facts.startswith("1.2 billion weights, ")
    assert big.problem == "damaged"
    assert presenters.model_row(card("c", parameters=None)).facts.startswith("q4f16_1, ")


def test_keys_say_when_they_were_used() -> None:
    """By day, in local time, never the key itself."""
    key = ApiKey(1, "kitchen", "hob_abc", "hash", 0.0, None)
    assert presenters.key_row(key, NOW).used == "never used"
    key = ApiKey(1, "kitchen", "hob_abc", "hash", 0.0, NOW.timestamp())
    assert presenters.key_row(key, NOW).used == "last used 10 March 2026"


def test_addresses_are_names_and_numbers() -> None:
    """The name first; IPv6 numbers only where there are no others; port 80 goes without saying."""
    v4, v6 = ip_address("10.0.0.2"), ip_address("fd00::2")
    assert presenters.addresses("hob.local", 80, [v4, v6]) == ["http://hob.local", "http://10.0.0.2"]
    assert presenters.addresses("hob.local", 8080, [v6]) == ["http://hob.local:8080", "http://[fd00::2]:8080"]
    assert presenters.addresses("hob.local", 80, []) == ["http://hob.local"]


def test_the_loaded_model_counts_as_room_for_the_next() -> None:
    """What gives way is free; more than there is at all is not."""
    fit = Fit(needed=6, available=4, total=8)
    assert fit.verdict == "not now"
    assert with_spare(fit, 2).verdict == "fits"
    assert with_spare(fit, 100).available == 8
    assert with_spare(Fit(9, 4, 8), 100).verdict == "never"


def test_work_tells_how_far_it_is() -> None:
    """Step, bytes, speed and time that remains, as far as they are known."""
    assert status(Progress("compiling", 0.5)) == "compiling"
    far = Progress("fetching weights", 0.2, 12_000_000, 1_200_000_000, 3_000_000.0)
    assert status(far) == "fetching weights · 12 MB of 1.2 GB · 3 MB/s · 7 minutes left"
    assert [duration(seconds) for seconds in (0.2, 59, 100, 7000)] == [
        "1 second",
        "59 seconds",
        "2 minutes",
        "2 hours",
    ]
