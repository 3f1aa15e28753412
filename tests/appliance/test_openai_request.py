"""Reading a chat completion request: pure, so that anything can be thrown at it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.openai_request import SAMPLING_FIELDS, ChatRequest, parse
from appliance.domain import Message
from appliance.engine.messages import Sampling, Wishes
from appliance.errors import InvalidRequestError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
turns = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name"]), values)
    | st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]), "content": st.text()}
    ),
    max_size=3,
)
fields = st.dictionaries(st.sampled_from([*ChatRequest.model_fields, "unknown"]), values, max_size=6)


def outcome(body: bytes) -> ChatRequest | InvalidRequestError:
    """The request, or what is said about it."""
    try:
        return parse(body)
    except InvalidRequestError as error:
        return error


@given(st.binary() | values.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_a_request_or_an_error_for_the_client(body: bytes) -> None:
    """No body, JSON or not, is anything but a request or an error that the client can read."""
    got = outcome(body)
    assert isinstance(got, ChatRequest) or (got.status == 400 and got.message)


@given(turns, fields)
def test_any_field_is_taken_or_named(messages: list[Any], others: dict[str, Any]) -> None:
    """What is taken can be used; what is not is an error about a field that was sent, or a missing one."""
    sent = {"messages": messages, **others}
    request = outcome(json.dumps(sent).encode())
    if isinstance(request, InvalidRequestError):
        lone_surrogates = request.code == "invalid_json"
        field = (request.param or "").partition("[")[0].partition(".")[0]
        assert lone_surrogates or field in {*sent, "messages"}
        return
    sampling = msgspec.structs.replace(Sampling(temperature=0.3, top_p=0.4), **request.wishes())
    assert 0 <= sampling.temperature <= 2
    assert 0 < sampling.top_p <= 1
    assert all(message.role in ("system", "user", "assistant") for message in request.conversation())
    assert request.length() is None or request.length() >= 1  # type: ignore[operator] # None is excluded
    assert all(request.stops())


def _request(**others: Any) -> ChatRequest:
    return parse(json.dumps({"messages": [{"role": "user", "content": "Hello"}], **others}).encode())


def test_what_is_asked_for_overrides_the_models_own_settings() -> None:
    """Fields that are given win, zero included; the others stay the model's."""
    own = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1)
    assert _request().wishes() == {}
    asked = _request(temperature=0, seed=3, logit_bias={"5": -1}).wishes()
    assert msgspec.structs.replace(own, **asked) == Sampling(
        temperature=0, top_p=0.9, repetition_penalty=1.1, seed=3, logit_bias={5: -1.0}
    )


def test_every_sampling_field_reaches_the_engine() -> None:
    """The API offers everything the engine can do, under the engine's names."""
    assert (
        {*SAMPLING_FIELDS, "top_logprobs"} == set(Sampling.__struct_fields__) == set(Wishes.__annotations__)
    )
    assert set(SAMPLING_FIELDS) < set(ChatRequest.model_fields)


@pytest.mark.parametrize(
    ("others", "top"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 4}, 4),
    ],
)
def test_logprobs(others: dict[str, Any], top: int | None) -> None:
    """Logprobs come only if asked for, alternatives only if their number is given."""
    assert _request(**others).wishes().get("top_logprobs") == top


def test_newer_length_field_wins() -> None:
    """max_completion_tokens replaces max_tokens."""
    assert _request(max_tokens=3).length() == 3
    assert _request(max_tokens=3, max_completion_tokens=5).length() == 5
    assert _request().length() is None


def test_stops() -> None:
    """A string or a list; empty ones stop nothing."""
    assert _request(stop="a").stops() == ["a"]
    assert _request(stop=["a", "", "b"]).stops() == ["a", "b"]
    assert _request().stops() == []


def test_text_parts_become_one_text() -> None:
    """Parts are joined by line breaks; an assistant's null content is empty."""
    request = parse(
        json.dumps(
            {
                "messages": [
                    {
                        "role": "developer",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    },
                    {"role": "assistant", "content": None},
                ]
            }
        ).encode()
    )
    assert request.conversation() == [
        Message(role="system", content="a\nb"),
        Message(role="assistant", content=""),
    ]
