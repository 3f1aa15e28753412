"""OpenAI's API: models and chat completions, plain and streamed.

Follows https://platform.openai.com/docs/api-reference/chat as far as a text model on one machine can. It also
takes `top_k`, `min_p` and `repetition_penalty`, as other local servers do. Unknown fields are ignored; those
that would change the answer and cannot be honoured are refused by name.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from appliance import __version__
from appliance.api import problem
from appliance.api.openai_request import ChatRequest, parse
from appliance.api.sse import COMMENT, EventStream, event, heartbeat
from appliance.domain import Delta, FinishReason, Logprobs, ModelCard, TokenLogprob, Usage
from appliance.errors import HobError, NotFoundError
from appliance.inference import Inference

PATIENCE = 5.0
"""Seconds to wait for the first token before a stream's headers go out: an error until then keeps its status.
Also the longest silence in a stream."""

VIA = "1.1 hob"
"""How a Hob signs what it passes on (Via, RFC 9110, section 7.6.3)."""

FINGERPRINT = f"hob-{__version__}"


def routes(inference: Inference) -> list[BaseRoute]:
    """GET /v1/models, GET /v1/models/{id}, POST /v1/chat/completions."""

    async def list_models(request: Request) -> Response:
        cards = inference.cards(onward=not passed_on(request))
        return JSONResponse({"object": "list", "data": [_model(card) for card in cards]})

    async def one_model(request: Request) -> Response:
        if not (name := request.path_params["id"]):
            raise NotFoundError("there is nothing at this address")
        found = await inference.find(name, onward=not passed_on(request))
        return JSONResponse(_model(found.card))

    async def chat_completions(request: Request) -> Response:
        asked = parse(await request.body())
        name = (await inference.find(asked.model, onward=not passed_on(request))).card.name
        deltas = inference.complete(asked.conversation(), name, asked.wishes(), asked.length(), asked.stops())
        answer = Answer(name)
        if asked.stream:
            return await _streamed(answer, asked, deltas)
        return JSONResponse(await _unless_gone(request, answer.collected(deltas)))

    return [
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/{id:path}", one_model, methods=["GET"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    ]


def passed_on(request: Request) -> bool:
    """Whether another Hob sends this request for somebody. It ends here, so that no two ask in circles."""
    return any(hop.strip() == VIA for line in request.headers.getlist("via") for hop in line.split(","))


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": card.upstream or ("hob" if card.builtin else "local"),
        "context_window": card.context or None,
    }


@dataclass(frozen=True)
class Answer:
    """One completion in OpenAI's shapes."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def collected(self, deltas: AsyncGenerator[Delta, None]) -> dict[str, Any]:
        """The whole answer as a `chat.completion`."""
        text, logprobs, last = "", [], Delta()
        async with contextlib.aclosing(deltas):
            async for last in deltas:
                text += last.text
                logprobs += [_logprob(entry) for entry in last.logprobs]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
            "finish_reason": _finish(last.finish),
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(last.usage)}

    async def chunks(
        self, deltas: AsyncGenerator[Delta | None, None], first: Delta | None, include_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """The answer as events: the role, pieces of text, why it ended, usage if wanted, `[DONE]`.

        An error ends the stream with an event that holds it; OpenAI's clients raise it.
        """
        yield self._chunk({"role": "assistant", "content": ""}, include_usage)
        delta = first
        try:
            while True:
                if delta is None:
                    yield COMMENT
                else:
                    if delta.text or delta.logprobs:
                        yield self._chunk({"content": delta.text}, include_usage, delta.logprobs)
                    if delta.finish is not None:
                        yield self._chunk({}, include_usage, finish=_finish(delta.finish))
                        break
                delta = await anext(deltas)
        except HobError as error:
            yield event(problem.body(error))
            return
        if include_usage:
            yield event({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(delta.usage)})
        yield event("[DONE]")

    def _chunk(
        self,
        delta: dict[str, str],
        include_usage: bool,
        logprobs: tuple[Logprobs, ...] = (),
        finish: str | None = None,
    ) -> bytes:
        scores = {"content": [_logprob(entry) for entry in logprobs], "refusal": None} if logprobs else None
        choice = {"index": 0, "delta": delta, "logprobs": scores, "finish_reason": finish}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return event({**chunk, "usage": None} if include_usage else chunk)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }


async def _streamed(answer: Answer, asked: ChatRequest, deltas: AsyncGenerator[Delta, None]) -> EventStream:
    source = heartbeat(deltas, PATIENCE)
    first = await anext(source)
    return EventStream(answer.chunks(source, first, asked.wants_usage()), source)


async def _unless_gone(request: Request, work: Any) -> Any:
    """The result of `work`, which is cancelled when the client hangs up before."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait([working, leaving])


async def _disconnected(request: Request) -> None:
    """Return when the client is gone; for after the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _finish(reason: FinishReason | None) -> str:
    return "length" if reason == "length" else "stop"


def _usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _logprob(entry: Logprobs) -> dict[str, Any]:
    return {**_scored(entry.chosen), "top_logprobs": [_scored(other) for other in entry.top]}


def _scored(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}
