"""Answers from tokens or text: what is held back, what ends them."""

import pytest

from appliance.chat import ChatFormat
from appliance.engine.messages import Finished, ScoredText, Text, TextScore, Token
from appliance.local import Transcript
from tests.service import GOLDEN

FINISHED = Finished(id="1", reason="stop", prompt_tokens=1, completion_tokens=2, queue=0, prefill=0, decode=0)


@pytest.fixture(scope="module")
def chat_format() -> ChatFormat:
    """That of a tiny model."""
    return ChatFormat.load(GOLDEN / "llama3rope" / "q4f16_1")


def test_transcript_holds_back_what_may_be_a_stop_string(chat_format: ChatFormat) -> None:
    """Text that begins a stop string waits for the next token; at the end it is given out after all."""
    a = next(Token(token=token) for token in range(1024) if chat_format.token_bytes(token) == b"a")
    transcript = Transcript(chat_format, ["aaa"])
    assert transcript.add([a, a]).text == ""
    assert transcript.end(FINISHED).text == "aa"
    transcript = Transcript(chat_format, ["aaa"])
    assert transcript.add([a] * 4).text == ""
    assert (transcript.stopped, transcript.count) == (True, 3)


def test_text_of_an_engine_that_detokenises_is_treated_alike(chat_format: ChatFormat) -> None:
    """Stop strings end it too, its tokens are counted, and its scores keep the bytes of a split character."""
    transcript = Transcript(chat_format, ["END"])
    half = ScoredText(chosen=TextScore(raw=b"\xc3", logprob=-1.0), top=[TextScore(raw=b"x", logprob=-2.0)])
    first = transcript.add_text(Text(id="1", text="oneE", count=2, scores=[half]))
    assert first.text == "one"
    (score,) = first.logprobs
    assert (score.chosen.text, score.chosen.raw, score.top[0].text) == ("\ufffd", b"\xc3", "x")
    assert transcript.add_text(Text(id="1", text="NDmore", count=1)).text == ""
    assert (transcript.stopped, transcript.count) == (True, 3)
    transcript = Transcript(chat_format, ["END"])
    transcript.add_text(Text(id="1", text="oneE", count=2))
    assert transcript.end(FINISHED).text == "E"
