"""The models on this machine: render the prompt, generate, turn tokens back into text."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.chat import ChatFormat, StopStrings
from appliance.domain import Delta, FinishReason, Logprobs, Message, ModelCard, Timings, TokenLogprob, Usage
from appliance.engine.base import Engine
from appliance.engine.messages import Finished, Generate, Sampling, ScoredText, Text, Token, Tokens, Wishes
from appliance.errors import (
    ContextLengthError,
    DeviceError,
    InvalidRequestError,
    ModelLoadError,
    UnknownModelError,
)
from appliance.models import Installed, Models
from builder.errors import BuildError


class LocalModels:
    """The installed models, answering through one engine."""

    def __init__(self, models: Models, engine: Engine) -> None:
        self.models = models
        self.engine = engine
        self._formats: dict[str, tuple[Installed, ChatFormat]] = {}

    def cards(self) -> list[ModelCard]:
        """The sound ones, the built-in one first."""
        return [card for card in self.models.list() if not card.problem]

    async def find(self, name: str) -> "LocalModel | None":
        """As `ChatModels.find`."""
        try:
            return LocalModel(self, self.models.get(name))
        except UnknownModelError:
            return None

    async def format(self, installed: Installed) -> ChatFormat:
        """The chat format of a model, kept in memory: a large vocabulary takes a second to read."""
        known = self._formats.get(installed.card.name)
        if known is None or known[0] is not installed:  # `Models` hands out a new object when files changed
            try:
                known = installed, await asyncio.to_thread(ChatFormat.load, installed.directory)
            except BuildError as error:
                raise ModelLoadError(
                    f"{installed.card.name} cannot chat: {error}", hint=error.hint
                ) from error
            self._formats[installed.card.name] = known
        return known[1]


@dataclass(frozen=True, slots=True)
class LocalModel:
    """One installed model, as `ChatModel`."""

    source: LocalModels
    installed: Installed

    @property
    def card(self) -> ModelCard:
        """As `ChatModel.card`."""
        return self.installed.card

    @property
    def defaults(self) -> Mapping[str, Any]:
        """As `ChatModel.defaults`: what the model's directory says."""
        settings: dict[str, Any] = msgspec.to_builtins(self.installed.defaults)
        return settings

    async def answer(
        self, messages: Sequence[Message], wishes: Wishes, max_tokens: int | None, stops: Sequence[str]
    ) -> AsyncGenerator[Delta, None]:
        """As `ChatModel.answer`; a token id in `logit_bias` outside the vocabulary is refused."""
        chat_format = await self.source.format(self.installed)
        sampling = msgspec.structs.replace(self.installed.defaults, **wishes)
        _check_bias(sampling, chat_format.vocab_size)
        prompt = await asyncio.to_thread(chat_format.encode, messages)
        room = self.card.context - len(prompt)
        if room < 1:
            raise ContextLengthError(
                f"the messages take {len(prompt)} tokens, but the context window of {self.card.name}"
                f" has {self.card.context}, and the answer needs room too",
                param="messages",
                hint="Shorten the conversation or start a new one.",
            )
        request = Generate(
            id=secrets.token_hex(8),
            model=await self.source.models.reference(self.installed),
            prompt_ids=prompt,
            max_tokens=min(room, max_tokens or room),
            stop_token_ids=chat_format.stop_token_ids,
            sampling=sampling,
        )
        transcript = Transcript(chat_format, [*chat_format.stop_strings, *stops])
        async with contextlib.aclosing(self._generate(request)) as replies:
            async for reply in replies:
                if isinstance(reply, Finished):
                    yield transcript.end(reply)
                    return
                delta = transcript.push(reply)
                if delta.text or delta.logprobs:
                    yield delta
                if transcript.stopped:
                    usage = Usage(prompt_tokens=len(prompt), completion_tokens=transcript.count)
                    yield Delta(finish="stop", usage=usage)
                    return

    async def _generate(self, request: Generate) -> AsyncGenerator[Tokens | Text | Finished, None]:
        """What the engine replies, on the first device that runs the model."""
        models = self.source.models
        while True:
            try:
                async with contextlib.aclosing(self.source.engine.generate(request)) as replies:
                    async for reply in replies:
                        models.trials.works(request.model.target, self.card.name)
                        yield reply
                return
            except DeviceError as error:  # comes from loading, before any reply
                models.trials.failed(request.model.target, self.card.name, error.message, error.hint)
                request = msgspec.structs.replace(request, model=await models.reference(self.installed))


class Transcript:
    """Text of one answer from its tokens: no character is split, nothing follows a stop string."""

    def __init__(self, chat_format: ChatFormat, stops: Sequence[str]) -> None:
        self._format = chat_format
        self._detokenizer = chat_format.detokenizer()
        self._stops = StopStrings(stops)
        self.count = 0
        self.stopped = False

    def push(self, reply: Tokens | Text) -> Delta:
        """What a reply adds. Sets `stopped` and ignores the rest once a stop string is complete."""
        return self.add_text(reply) if isinstance(reply, Text) else self.add(reply.tokens)

    def add(self, tokens: Iterable[Token]) -> Delta:
        """As `push`, for tokens."""
        text = ""
        logprobs = []
        for token in tokens:
            self.count += 1
            if token.logprob is not None:
                logprobs.append(self._logprobs(token, token.logprob))
            piece, self.stopped = self._stops.push(self._detokenizer.push(token.token))
            text += piece
            if self.stopped:
                break
        return Delta(text=text, logprobs=tuple(logprobs))

    def add_text(self, reply: Text) -> Delta:
        """As `push`, for an engine that detokenises."""
        self.count += reply.count
        text, self.stopped = self._stops.push(reply.text)
        return Delta(text=text, logprobs=tuple(_text_logprobs(score) for score in reply.scores))

    def end(self, finished: Finished) -> Delta:
        """The closing delta, with text that was held back for a character or stop string to complete."""
        text, stopped = self._stops.push(self._detokenizer.flush())
        return Delta(
            text=text if stopped else text + self._stops.flush(),
            finish="stop" if stopped else _finish_reason(finished),
            usage=Usage(prompt_tokens=finished.prompt_tokens, completion_tokens=finished.completion_tokens),
            timings=Timings(queue=finished.queue, prefill=finished.prefill, decode=finished.decode),
        )

    def _logprobs(self, token: Token, logprob: float) -> Logprobs:
        return Logprobs(
            chosen=self._scored(token.token, logprob),
            top=tuple(self._scored(score.token, score.logprob) for score in token.top),
        )

    def _scored(self, token: int, logprob: float) -> TokenLogprob:
        return TokenLogprob.of(self._format.token_bytes(token), logprob)


def _text_logprobs(score: ScoredText) -> Logprobs:
    """The scores of one token, as an engine that detokenises sends them."""
    return Logprobs(
        chosen=TokenLogprob.of(score.chosen.raw, score.chosen.logprob),
        top=tuple(TokenLogprob.of(other.raw, other.logprob) for other in score.top),
    )


def _check_bias(sampling: Sampling, vocab_size: int) -> None:
    """Refuse a bias for a token that the vocabulary does not have."""
    if foreign := [token for token in sampling.logit_bias if not 0 <= token < vocab_size]:
        raise InvalidRequestError(
            f"logit_bias: token id {foreign[0]} is outside the vocabulary of {vocab_size}",
            param="logit_bias",
        )


def _finish_reason(finished: Finished) -> FinishReason:
    """The engine's word as one of ours; a word it should not use counts as an error."""
    known: dict[str, FinishReason] = {"stop": "stop", "length": "length", "cancelled": "cancelled"}
    return known.get(finished.reason, "error")
