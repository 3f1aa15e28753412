"""The use case: render the prompt, generate, record. Owns running answers, so that any client may re-attach.

`complete` serves programs: it stores nothing and ends with its caller. `ask`, `regenerate`, `stop`, `follow`
serve conversations: an answer is the server's own, written to the store as it grows; readers come and go.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence

import msgspec

from appliance.chat import ChatFormat, StopStrings
from appliance.domain import Delta, FinishReason, Logprobs, Message, Timings, TokenLogprob, Usage
from appliance.engine.base import Engine
from appliance.engine.messages import Finished, Generate, Sampling, Token
from appliance.errors import ContextLengthError, HobError, InvalidRequestError, ModelLoadError, StoreError
from appliance.models import Installed, Models
from appliance.store import INTERRUPTED, State, Store, StoredMessage
from builder.errors import BuildError

log = logging.getLogger(__name__)

SAVE_EVERY = 0.5
"""Seconds between writes of a growing answer; what a power cut can cost is this and the write under way."""

FINISH_OF_STATE: dict[State, FinishReason] = {
    "done": "stop",
    "stopped": "cancelled",
    "error": "error",
    "running": "error",  # and yet nobody is writing it: how it ended could not be stored
}


class Generation:
    """An answer being written: `text` grows until `last`, its closing delta, is set."""

    def __init__(self, chat_id: int, message_id: int) -> None:
        self.chat_id = chat_id
        self.message_id = message_id
        self.text = ""
        self.last: Delta | None = None
        self.interrupted = False
        self._news = asyncio.Event()

    def add(self, text: str) -> None:
        """Append to the text."""
        self.text += text
        self._tell()

    def end(self, last: Delta) -> None:
        """Set the closing delta; nothing changes after it."""
        self.last = last
        self._tell()

    async def follow(self, start: int = 0) -> AsyncGenerator[Delta, None]:
        """The text from character `start` on, as it comes, then the closing delta."""
        while True:
            news = self._news
            if len(self.text) > start:
                start, piece = len(self.text), self.text[start:]
                yield Delta(text=piece)
            elif self.last is not None:
                yield self.last
                return
            else:
                await news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Inference:
    """Answers with the installed models. One per service.

    Raises (everywhere):
        UnknownModelError, ModelLoadError: no such model, or it cannot run.
        NotFoundError: no such chat or message.
    """

    def __init__(self, models: Models, engine: Engine, store: Store) -> None:
        self._models = models
        self._engine = engine
        self._store = store
        self._formats: dict[str, tuple[Installed, ChatFormat]] = {}
        self._running: dict[int, Generation] = {}
        self._tasks: dict[int, tuple[asyncio.Task[Delta], asyncio.Task[None]]] = {}

    async def complete(
        self,
        messages: Sequence[Message],
        model: str = "",
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stops: Sequence[str] = (),
    ) -> AsyncGenerator[Delta, None]:
        """Answer `messages`; the last delta has `finish` and usage. Closing the generator cancels.

        `model` "" is the default model; `sampling` None means the model's own settings. `max_tokens` is an
        upper bound: the end of the context window ends an answer as well, with finish "length".

        Raises:
            ContextLengthError: the messages do not fit the context window.
            InvalidRequestError: a token id in `logit_bias` is outside the vocabulary.
            EngineUnavailableError: the engine is down; possible after any delta.
        """
        installed = self._models.get(model)
        chat_format = await self._format(installed)
        sampling = sampling or installed.defaults
        if foreign := [token for token in sampling.logit_bias if not 0 <= token < chat_format.vocab_size]:
            raise InvalidRequestError(
                f"logit_bias: token id {foreign[0]} is outside the vocabulary of {chat_format.vocab_size}",
                param="logit_bias",
            )
        prompt = await asyncio.to_thread(chat_format.encode, messages)
        room = installed.card.context - len(prompt)
        if room < 1:
            raise ContextLengthError(
                f"the messages take {len(prompt)} tokens, but the context window of {installed.card.name}"
                f" has {installed.card.context}, and the answer needs room too",
                param="messages",
                hint="Shorten the conversation or start a new one.",
            )
        request = Generate(
            id=secrets.token_hex(8),
            model=await self._models.reference(installed),
            prompt_ids=prompt,
            max_tokens=min(room, max_tokens or room),
            stop_token_ids=chat_format.stop_token_ids,
            sampling=sampling,
        )
        transcript = Transcript(chat_format, [*chat_format.stop_strings, *stops])
        async with contextlib.aclosing(self._engine.generate(request)) as replies:
            async for reply in replies:
                if isinstance(reply, Finished):
                    yield transcript.end(reply)
                    return
                delta = transcript.add(reply.tokens)
                if delta.text or delta.logprobs:
                    yield delta
                if transcript.stopped:
                    usage = Usage(prompt_tokens=len(prompt), completion_tokens=transcript.count)
                    yield Delta(finish="stop", usage=usage)
                    return

    async def ask(
        self, chat_id: int | None, text: str, model: str = "", sampling: Sampling | None = None
    ) -> Generation:
        """Store a question at the end of a chat (None: of a new one) and start to answer it.

        Raises:
            InvalidRequestError: the text is empty.
            ConflictError: the chat is still being answered.
        """
        if not text.strip():
            raise InvalidRequestError("the message is empty", param="text", hint="Write something first.")
        installed = self._models.get(model)
        settings = msgspec.to_builtins(sampling or installed.defaults)
        question, answer = await self._store.run(
            self._store.ask, chat_id, text, installed.card.name, settings
        )
        return self._start(question, answer, sampling)

    async def regenerate(
        self, message_id: int, model: str = "", sampling: Sampling | None = None
    ) -> Generation:
        """Answer a question again; `message_id` is the question's or that of an answer to it.

        The earlier answer is kept, but the conversation goes on from the new one. `model` "" means the model
        that answered before.

        Raises:
            ConflictError: the chat is still being answered.
        """
        old = await self._store.run(self._store.message, message_id)
        question = old
        if old.role == "assistant" and old.parent is not None:
            question = await self._store.run(self._store.message, old.parent)
        installed = self._models.get(model or old.model)
        settings = msgspec.to_builtins(sampling or installed.defaults)
        answer = await self._store.run(self._store.answer, question.id, installed.card.name, settings)
        return self._start(question, answer, sampling)

    async def stop(self, message_id: int) -> None:
        """End a running answer, keeping its text; returns once that is stored. Does nothing for others."""
        if tasks := self._tasks.get(message_id):
            writing, keeping = tasks
            writing.cancel()
            await asyncio.wait([keeping])
        # One whose end could not be stored, because the disk was full then, would block its chat.
        with _logged(message_id):
            await self._store.run(self._store.mark_interrupted, message_id)

    def running(self, message_id: int) -> Generation | None:
        """The answer with this id while it is being written; its `text` is ahead of the store's."""
        return self._running.get(message_id)

    async def follow(self, message_id: int, start: int = 0) -> AsyncGenerator[Delta, None]:
        """An answer from character `start` on, then live to its end; any number of readers may.

        The last delta has `finish`; the store then has the final state. Closing the generator does not touch
        the answer. An answer that has ended comes in one piece.
        """
        generation = self._running.get(message_id)
        if generation is not None:
            async with contextlib.aclosing(generation.follow(start)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        message = await self._store.run(self._store.message, message_id)
        if message.content[start:]:
            yield Delta(text=message.content[start:])
        yield Delta(finish=message.finish or FINISH_OF_STATE[message.state], timings=message.timings)

    async def close(self) -> None:
        """End all running answers; they are stored as stopped, with a note."""
        for generation in list(self._running.values()):
            generation.interrupted = True
            await self.stop(generation.message_id)

    async def _format(self, installed: Installed) -> ChatFormat:
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

    def _start(self, question: StoredMessage, answer: StoredMessage, sampling: Sampling | None) -> Generation:
        generation = Generation(answer.chat_id, answer.id)
        writing = asyncio.create_task(self._write(generation, question, answer.model, sampling))
        keeping = asyncio.create_task(self._keep(generation, writing))
        self._running[answer.id] = generation
        self._tasks[answer.id] = (writing, keeping)
        return generation

    async def _write(
        self, generation: Generation, question: StoredMessage, model: str, sampling: Sampling | None
    ) -> Delta:
        """Generate an answer into `generation`; returns the last delta."""
        path = await self._store.run(self._store.path_to, question.id)
        last = Delta()
        async with contextlib.aclosing(self.complete(conversation(path), model, sampling)) as deltas:
            async for last in deltas:
                if last.text:
                    generation.add(last.text)
        return last

    async def _keep(self, generation: Generation, writing: asyncio.Task[Delta]) -> None:
        """Store an answer while it grows, and how it ended.

        A task apart from the writing one: it survives whatever ends that, so no answer stays "running".
        """
        saved = 0
        while not writing.done():
            await asyncio.wait([writing], timeout=SAVE_EVERY)
            if len(generation.text) > saved:
                saved = len(generation.text)
                with _logged(generation.message_id):
                    await self._store.run(self._store.save_text, generation.message_id, generation.text)
        state, error, last = outcome(writing)
        if generation.interrupted and state == "stopped":
            error = INTERRUPTED
        with _logged(generation.message_id):
            await self._store.run(
                self._store.finish,
                generation.message_id,
                state=state,
                content=generation.text,
                error=error,
                finish=last.finish,
                usage=last.usage,
                timings=last.timings,
            )
        del self._running[generation.message_id], self._tasks[generation.message_id]
        generation.end(last)


class Transcript:
    """Text of one answer from its tokens: no character is split, nothing follows a stop string."""

    def __init__(self, chat_format: ChatFormat, stops: Sequence[str]) -> None:
        self._format = chat_format
        self._detokenizer = chat_format.detokenizer()
        self._stops = StopStrings(stops)
        self.count = 0
        self.stopped = False

    def add(self, tokens: Iterable[Token]) -> Delta:
        """What these tokens add. Sets `stopped` and ignores the rest once a stop string is complete."""
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
        raw = self._format.token_bytes(token)
        return TokenLogprob(text=raw.decode(errors="replace"), raw=raw, logprob=logprob)


def conversation(path: Iterable[StoredMessage]) -> list[Message]:
    """Stored messages as a prompt: roles alternate, as chat templates demand.

    An answer that stayed empty (stopped or failed early) is left out, and the questions around it become one.
    """
    turns: list[Message] = []
    for message in path:
        if not message.content:
            continue
        if turns and turns[-1].role == message.role:
            turns[-1] = Message(role=message.role, content=f"{turns[-1].content}\n\n{message.content}")
        else:
            turns.append(Message(role=message.role, content=message.content))
    return turns


def outcome(writing: asyncio.Task[Delta]) -> tuple[State, str, Delta]:
    """How a finished task of writing ended: state, error for people, closing delta."""
    if writing.cancelled():
        return "stopped", "", Delta(finish="cancelled")
    error = writing.exception()
    if error is None:
        return "done", "", writing.result().model_copy(update={"text": ""})
    if isinstance(error, HobError):
        return "error", error.explanation, Delta(finish="error")
    log.error("an answer failed", exc_info=error)
    return "error", "Something went wrong inside Hob; its log has the details.", Delta(finish="error")


def _finish_reason(finished: Finished) -> FinishReason:
    """The engine's word as one of ours; a word it should not use counts as an error."""
    known: dict[str, FinishReason] = {"stop": "stop", "length": "length", "cancelled": "cancelled"}
    return known.get(finished.reason, "error")


@contextlib.contextmanager
def _logged(message_id: int) -> Iterator[None]:
    """Let an answer go on when the store fails (a full disk): its readers still get it."""
    try:
        yield
    except StoreError as error:
        log.error("message %d is not stored: %s", message_id, error)
