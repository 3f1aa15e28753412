"""OpenAI's chat completions from the client's side: requests out, events in, refusals understood. Pure.

Follows https://platform.openai.com/docs/api-reference/chat/create and what vLLM, llama.cpp's server, Ollama
and Hob add to it. Nothing that a server sends is trusted: every field is typed, every length bounded.
"""

import email.utils
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from appliance.domain import FinishReason, Logprobs, Message, TokenLogprob, Usage
from appliance.engine.messages import Wishes
from appliance.errors import (
    ContextLengthError,
    EngineUnavailableError,
    HobError,
    InvalidRequestError,
    RateLimitError,
    UnknownModelError,
)

VIA = "1.1 hob"
"""How a Hob signs what it passes on (Via, RFC 9110, section 7.6.3)."""

# OpenAI takes no more of them; the rest is watched for here.
MAX_STOPS = 4

MAX_MODELS = 2000
MAX_MESSAGE = 300  # characters of a server's complaint that people get to see

MAX_REST = 300.0
"""Seconds that a server's Retry-After is believed."""


class Failure(Exception):
    """A server did not answer, or not to the end.

    Attributes:
        error: what it is for the person who asked; its message has the server as "it".
        final: it is the request's fault, so that another server would say the same.
        down: why the server cannot be used at present, by anybody; empty when that is not so. Others read
            it, so it has nothing of the question: a server may repeat that in its complaint.
        rest: seconds for which the server wants to be left alone.
    """

    def __init__(self, error: HobError, *, final: bool = False, down: str = "", rest: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        self.final = final
        self.down = down
        self.rest = rest

    @classmethod
    def broken(cls, what: str, hint: str = "", *, retry_after: int = 5) -> "Failure":
        """The server is not there, not well, or no such server at all."""
        return cls(EngineUnavailableError(what, hint=hint, retry_after=retry_after), down=what)


@dataclass(frozen=True, slots=True)
class Listed:
    """A model in a server's list; context and creation time are 0 where it does not tell."""

    name: str
    context: int
    created: int


Count = Annotated[int, Meta(ge=0, lt=2**40)]


class _Score(Struct):
    token: str
    logprob: float
    bytes: list[Annotated[int, Meta(ge=0, lt=256)]] | None = None

    def read(self) -> TokenLogprob:
        raw = self.token.encode(errors="replace") if self.bytes is None else bytes(self.bytes)
        return TokenLogprob(text=self.token, raw=raw, logprob=self.logprob)


class _Scored(_Score):
    top_logprobs: list[_Score] | None = None


class _Scores(Struct):
    content: list[_Scored] | None = None


class _Words(Struct):
    content: str | None = None
    reasoning_content: str | None = None  # as vLLM and llama.cpp call a model's thoughts
    reasoning: str | None = None


class _Choice(Struct):
    delta: _Words | None = None
    finish_reason: str | None = None
    logprobs: _Scores | None = None


class _Usage(Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event says. `alive`: the model has made a token, if only one of its thoughts."""

    text: str = ""
    logprobs: tuple[Logprobs, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    alive: bool = False


def request_body(
    model: str, messages: Sequence[Message], wishes: Wishes, max_tokens: int | None, stops: Sequence[str]
) -> bytes:
    """A streamed chat completion. What the wishes do not name is left to the server's own settings."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **wishes,
    }
    if "top_logprobs" in wishes:
        body["logprobs"] = True
    if "repetition_penalty" in wishes:
        body["repeat_penalty"] = wishes["repetition_penalty"]  # llama.cpp's name; vLLM and MLC have the other
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if stops:
        body["stop"] = list(stops[:MAX_STOPS])
    return msgspec.json.encode(body)


def parse_event(data: str) -> Piece:
    """What an event's data says.

    Raises:
        ValueError: it is not a chunk of a completion.
        Failure: it is an error of the server.
    """
    chunk = _chunks.decode(data)
    if chunk.error is not None:
        raise Failure(_complaint(chunk.error, 500)[0])
    usage = None
    if chunk.usage and chunk.usage.prompt_tokens is not None and chunk.usage.completion_tokens is not None:
        usage = Usage(
            prompt_tokens=chunk.usage.prompt_tokens, completion_tokens=chunk.usage.completion_tokens
        )
    if not chunk.choices:
        return Piece(usage=usage)
    choice = chunk.choices[0]
    words = choice.delta or _Words()
    scores = (choice.logprobs and choice.logprobs.content) or []
    return Piece(
        text=words.content or "",
        logprobs=tuple(
            Logprobs(chosen=score.read(), top=tuple(other.read() for other in score.top_logprobs or ()))
            for score in scores
        ),
        finish=_finish_reason(choice.finish_reason),
        usage=usage,
        alive=bool(words.content or words.reasoning_content or words.reasoning or choice.finish_reason),
    )


def _finish_reason(word: str | None) -> FinishReason | None:
    """A server's word as one of ours. Reasons of its own (a filter, a tool) end an answer like any other."""
    if word is None:
        return None
    known: dict[str, FinishReason] = {"length": "length", "abort": "error", "error": "error"}
    return known.get(word, "stop")


def parse_models(body: bytes) -> dict[str, Listed]:
    """A server's models by name, in its order.

    Raises:
        ValueError: it is not a list of models.
    """
    listing = msgspec.json.decode(body)
    rows = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(rows, list):
        raise ValueError("it has no list named data")  # noqa: TRY004 - the value is foreign, not the caller's
    models = {}
    for row in rows[:MAX_MODELS]:
        name = row.get("id") if isinstance(row, dict) else None
        if isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable():
            meta = row.get("meta")
            places = (row, meta if isinstance(meta, dict) else {})
            # As Hob, vLLM, and llama.cpp's server call it.
            names = ("context_window", "max_model_len", "n_ctx", "n_ctx_train")
            contexts = (_count(place.get(field)) for place in places for field in names)
            models[name] = Listed(name, next(filter(None, contexts), 0), _count(row.get("created")))
    return models


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value < 2**40 else 0


def refusal(status: int, body: bytes, retry_after: str | None, *, now: datetime | None = None) -> Failure:
    """What a response without an answer means; `body` is as much of it as was read.

    A refused key is not told here: only the caller knows where the key comes from.
    """
    rest = rest_of(retry_after, now or datetime.now(UTC))
    wait = max(1, math.ceil(rest))
    try:
        reply = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        reply = None
    if not isinstance(reply, dict):
        # A page for people, from a proxy or from something that is no such server.
        told = f"it answers {status} and no JSON"
        return Failure(EngineUnavailableError(told, retry_after=wait), down="" if rest else told, rest=rest)
    error, message = _complaint(reply.get("error", reply), status)
    if status == 404:
        return Failure(UnknownModelError(message, param="model"))
    if status == 429:
        return Failure(RateLimitError(message, retry_after=wait), rest=rest)
    if status >= 500 or status in (408, 409, 425):
        down = f"it answers {status}" if status >= 500 and not rest else ""
        return Failure(EngineUnavailableError(message, retry_after=wait), down=down, rest=rest)
    return Failure(error, final=True)


def _complaint(told: object, status: int) -> tuple[HobError, str]:
    """A server's error as one for the person who asked, and what it says in one line."""
    fields = told if isinstance(told, dict) else {"message": told}
    message = next(
        (value for key in ("message", "detail", "error") if isinstance(value := fields.get(key), str)), ""
    )
    message = one_line(message) or f"it answers {status} and does not say why"
    code, kind = fields.get("code"), fields.get("type")
    told_so = "context_length_exceeded" in (code, kind) or kind == "exceed_context_size_error"
    if told_so or ("context" in message.lower() and status == 400):
        return ContextLengthError(message, param="messages"), message
    if 400 <= status < 500:
        param = fields.get("param")
        return InvalidRequestError(message, param=param if isinstance(param, str) else None), message
    return EngineUnavailableError(message, retry_after=1), message


def one_line(text: str) -> str:
    """A foreign text as a log or page may show it: printable, one line, not long."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_MESSAGE]).split())
    return shown if len(shown) <= MAX_MESSAGE else f"{shown[:MAX_MESSAGE]}…"


def rest_of(retry_after: str | None, now: datetime) -> float:
    """Seconds that Retry-After (RFC 9110, section 10.2.3) asks for; 0 without a usable one."""
    if not retry_after:
        return 0.0
    if retry_after.strip().isdecimal():
        return min(float(retry_after[:20]), MAX_REST)
    try:
        until = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return min(max((until - now).total_seconds(), 0.0), MAX_REST)
