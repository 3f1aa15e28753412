"""Framing: what goes in comes out, and what is no frame is told apart."""

import asyncio
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine import wire
from appliance.engine.messages import (
    AskStats,
    Cancel,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    ModelRef,
    Reply,
    Request,
    Sampling,
    ScoredText,
    Stats,
    Text,
    TextScore,
    Token,
    Tokens,
    TokenScore,
)

MODEL = ModelRef(directory="/models/räksmörgås", library="/libraries/a.so", context=4096)
SAMPLING = Sampling(temperature=0.5, seed=-3, logit_bias={7: -100.0}, top_logprobs=2)
REQUESTS: list[Request] = [
    Load(id="1", model=MODEL),
    Generate(
        id="2", model=MODEL, prompt_ids=[1, 2, 128_255], max_tokens=5, stop_token_ids=[2], sampling=SAMPLING
    ),
    Cancel(id="3"),
    AskStats(id="4"),
    Load(id="5", model=None),
]
REPLIES: list[Reply] = [
    Loaded(id="1", seconds=0.25, rss=2**34),
    Tokens(id="2", tokens=[Token(token=7, logprob=-0.5, top=[TokenScore(token=7, logprob=-0.5)])]),
    Text(
        id="2",
        text="räk",
        count=2,
        scores=[ScoredText(chosen=TextScore(raw=b"r\xc3", logprob=-0.5), top=[])],
    ),
    Finished(id="2", reason="stop", prompt_tokens=3, completion_tokens=1, queue=0.0, prefill=0.1, decode=0.2),
    Failed(id="3", code="model_load_failed", message="no", hint="yes"),
    Stats(id="4", model="", waiting=0, running=0, rss=1, idle=2.5),
]


async def frames(data: bytes) -> list[bytes]:
    """All frames of a finished stream."""
    stream = asyncio.StreamReader()
    stream.feed_data(data)
    stream.feed_eof()
    found = []
    while (body := await wire.read_frame(stream)) is not None:
        found.append(body)
    return found


@pytest.mark.anyio
async def test_messages_survive_the_wire() -> None:
    """Every kind of message comes out as it went in, in order."""
    bodies = await frames(b"".join(map(wire.pack, REQUESTS)))
    assert [wire.parse_request(body) for body in bodies] == REQUESTS
    bodies = await frames(b"".join(map(wire.pack, REPLIES)))
    assert [wire.parse_reply(body) for body in bodies] == REPLIES


def test_every_kind_of_message_is_covered() -> None:
    """The lists above have one of each."""
    assert {type(message) for message in REQUESTS} == set(Request.__args__)
    assert {type(message) for message in REPLIES} == set(Reply.__args__)


@pytest.mark.anyio
@pytest.mark.parametrize("cut", [1, 3, 4, 10])
async def test_a_stream_that_ends_within_a_frame_is_an_error(cut: int) -> None:
    """A frame cut off in its length or in its body does not pass for the end."""
    frame = wire.pack(REQUESTS[0])
    with pytest.raises(wire.WireError, match="ends within"):
        await frames(frame + frame[:cut])


@pytest.mark.anyio
async def test_a_frame_that_is_too_long_is_not_read() -> None:
    """The announced length is enough to refuse it."""
    with pytest.raises(wire.WireError, match="4294967295"):
        await frames(struct.pack(">I", 2**32 - 1))


def test_a_message_that_is_too_long_is_not_packed() -> None:
    """The sender finds out, by the request's id."""
    with pytest.raises(wire.WireError, match="at most") as caught:
        wire.pack(Failed(id="7", code="", message="x" * wire.MAX_FRAME))
    assert caught.value.id == "7"


def test_an_integer_beyond_64_bits_is_not_packed() -> None:
    """MessagePack has none such; the sender finds out."""
    with pytest.raises(wire.WireError, match="64 bits"):
        wire.pack(msgspec.structs.replace(REQUESTS[1], sampling=Sampling(seed=2**70)))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_an_error(body: bytes) -> None:
    """Nothing but WireError comes of garbage."""
    for parse in (wire.parse_request, wire.parse_reply):
        try:
            parse(body)
        except wire.WireError:
            continue


@pytest.mark.parametrize(
    ("message", "id"),
    [
        ({"type": "sing", "id": "9"}, "9"),
        ({"type": "cancel", "id": 9}, None),
        ({"type": "load", "id": "9", "model": 3}, "9"),
        ({"type": "load"}, None),
        ([1, 2], None),
        ("\udcff".encode("utf-8", "surrogateescape"), None),
    ],
)
def test_a_wrong_message_keeps_its_id_if_it_has_one(message: object, id: str | None) -> None:
    """So that its failure can be sent to who asked."""
    with pytest.raises(wire.WireError, match="not a request") as caught:
        wire.parse_request(msgspec.msgpack.encode(message))
    assert caught.value.id == id
