"""What servers may send: anything. Every text is a piece, a list, or an error that people can read."""

import json
from datetime import UTC, datetime
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from appliance.upstream.protocol import (
    MAX_MESSAGE,
    MAX_MODELS,
    Failure,
    parse_event,
    parse_models,
    refusal,
    rest_of,
)
from tests.appliance.upstream.wire import chunk

NOW = datetime(2026, 1, 1, tzinfo=UTC)

# fmt: off
FIELDS = [
    "choices", "delta", "content", "usage", "prompt_tokens", "completion_tokens", "logprobs", "token",
    "top_logprobs", "bytes", "finish_reason", "error", "message", "code", "type", "detail", "param",
    "data", "id", "meta", "n_ctx", "created",
]
# fmt: on

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)
bodies = values.map(json.dumps) | st.text(max_size=50)


@given(bodies)
def test_any_event_is_a_piece_or_an_error(data: str) -> None:
    """No data of an event raises anything else than what the reader of a stream expects."""
    try:
        told = parse_event(data).text
    except Failure as failure:
        told = failure.error.message
    except ValueError:
        return
    told.encode()  # no half of a character, which a database would refuse


@given(bodies | st.binary(max_size=50))
def test_any_list_is_models_or_an_error(body: str | bytes) -> None:
    """A list of models has names that can be shown; everything else is a ValueError."""
    try:
        models = parse_models(body if isinstance(body, bytes) else body.encode(errors="replace"))
    except ValueError:
        return
    assert all(name.isprintable() and name == listed.name for name, listed in models.items())


@given(
    st.integers(400, 599),
    bodies.map(lambda body: body.encode(errors="replace")) | st.binary(max_size=50),
    st.none() | st.text(max_size=30),
)
def test_any_refusal_is_an_error_for_people(status: int, body: bytes, retry_after: str | None) -> None:
    """Whatever comes with a status of refusal, the message is one short line and waiting is bounded."""
    failure = refusal(status, body, retry_after, now=NOW)
    assert 0 < len(failure.error.message) <= MAX_MESSAGE + 1
    assert failure.error.message.isprintable()
    assert 0 <= failure.rest <= 300


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("2", 2),
        (" 7 ", 7),
        ("86400", 300),
        ("9" * 500, 300),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30),
        ("Thu, 01 Jan 2026 00:00:30 -0000", 30),
        ("Wed, 31 Dec 2025 23:00:00 GMT", 0),
        ("Fri, 01 Jan 9999 00:00:00 GMT", 300),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    """Seconds or a date; believed for five minutes at most, and nonsense not at all."""
    assert rest_of(value, NOW) == seconds


@pytest.mark.parametrize(
    ("word", "finish"),
    [(None, None), ("stop", "stop"), ("length", "length"), ("abort", "error"), ("content_filter", "stop")],
)
def test_reasons_for_the_end(word: str | None, finish: str | None) -> None:
    """A server's word becomes one of Hob's."""
    assert parse_event(json.dumps(chunk(finish_reason=word))).finish == finish


@pytest.mark.parametrize(
    "usage",
    [{"prompt_tokens": -1, "completion_tokens": 1}, {"prompt_tokens": 2**60, "completion_tokens": 1}],
)
def test_impossible_counts_are_refused(usage: Any) -> None:
    """Counts that no database column holds are not taken for an answer."""
    with pytest.raises(ValueError, match="usage"):
        parse_event(json.dumps({"choices": [], "usage": usage}))


def test_lists_are_bounded() -> None:
    """A list of a million models is cut, names that cannot be shown are left out, contexts are numbers."""
    rows = [{"id": f"m{number}"} for number in range(MAX_MODELS + 5)]
    assert len(parse_models(json.dumps({"data": rows}).encode())) == MAX_MODELS
    odd = [{"id": "a\nb"}, {"id": "x" * 201}, {"id": 5}, {}, None, {"id": "good", "max_model_len": "8k"}]
    (listed,) = parse_models(json.dumps({"data": odd}).encode()).values()
    assert (listed.name, listed.context) == ("good", 0)
