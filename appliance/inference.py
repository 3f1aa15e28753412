"""The use case: find the model, have it answer, record. Owns running answers: any client may re-attach.

`complete` serves programs: it stores nothing and ends with its caller. `ask`, `regenerate`, `stop`, `follow`
serve conversations: an answer is the server's own, written to the store as it grows; readers come and go.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence

from appliance.domain import Delta, FinishReason, Message, ModelCard
from appliance.engine.base import ChatModel, ChatModels, Engine
from appliance.engine.messages import Wishes
from appliance.errors import HobError, InvalidRequestError, StoreError, UnknownModelError
from appliance.local import LocalModels
from appliance.models import Models
from appliance.store import INTERRUPTED, State, Store, StoredMessage

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
    """Answers with the models of this machine and of other servers. One per service.

    Raises (everywhere):
        UnknownModelError, ModelLoadError: no such model, or it cannot run.
        NotFoundError: no such chat or message.
    """

    def __init__(
        self, models: Models, engine: Engine | None, store: Store, upstreams: ChatModels | None = None
    ) -> None:
        """`engine` None: no model of this machine answers. `upstreams` None: there are no other servers."""
        self._models = models
        self._local: ChatModels | None = LocalModels(models, engine) if engine else None
        self._upstreams = upstreams
        self._store = store
        self._running: dict[int, Generation] = {}
        self._tasks: dict[int, tuple[asyncio.Task[Delta], asyncio.Task[None]]] = {}

    def cards(self, *, onward: bool = True) -> list[ModelCard]:
        """The models that can be asked, those of this machine first. `onward` as in `find`."""
        return [card for source in self._sources(onward) for card in source.cards()]

    async def find(self, name: str = "", *, onward: bool = True) -> ChatModel:
        """The model of this name, of this machine where both have it; "" is the default model.

        `onward` false: of this machine only, for requests that another Hob has already passed on.
        """
        name = name or self._models.default
        for source in self._sources(onward):
            if model := await source.find(name):
                return model
        raise UnknownModelError(
            f"model {name!r} is not installed", param="model", hint="`hob model list` shows what is."
        )

    async def complete(
        self,
        messages: Sequence[Message],
        model: str = "",
        wishes: Wishes | None = None,
        max_tokens: int | None = None,
        stops: Sequence[str] = (),
    ) -> AsyncGenerator[Delta, None]:
        """Answer `messages` as `ChatModel.answer` does, with the model of this name."""
        found = await self.find(model)
        async with contextlib.aclosing(found.answer(messages, wishes or {}, max_tokens, stops)) as deltas:
            async for delta in deltas:
                yield delta

    async def ask(
        self, chat_id: int | None, text: str, model: str = "", wishes: Wishes | None = None
    ) -> Generation:
        """Store a question at the end of a chat (None: of a new one) and start to answer it.

        Raises:
            InvalidRequestError: the text is empty.
            ConflictError: the chat is still being answered.
        """
        if not text.strip():
            raise InvalidRequestError("the message is empty", param="text", hint="Write something first.")
        found = await self.find(model)
        settings = {**found.defaults, **(wishes or {})}
        question, answer = await self._store.run(self._store.ask, chat_id, text, found.card.name, settings)
        return self._start(question, answer, wishes)

    async def regenerate(self, message_id: int, model: str = "", wishes: Wishes | None = None) -> Generation:
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
        found = await self.find(model or old.model)
        settings = {**found.defaults, **(wishes or {})}
        answer = await self._store.run(self._store.answer, question.id, found.card.name, settings)
        return self._start(question, answer, wishes)

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

    def _sources(self, onward: bool) -> list[ChatModels]:
        """Where to look for a model, the first one winning."""
        return [source for source in (self._local, self._upstreams if onward else None) if source]

    def _start(self, question: StoredMessage, answer: StoredMessage, wishes: Wishes | None) -> Generation:
        generation = Generation(answer.chat_id, answer.id)
        writing = asyncio.create_task(self._write(generation, question, answer.model, wishes))
        keeping = asyncio.create_task(self._keep(generation, writing))
        self._running[answer.id] = generation
        self._tasks[answer.id] = (writing, keeping)
        return generation

    async def _write(
        self, generation: Generation, question: StoredMessage, model: str, wishes: Wishes | None
    ) -> Delta:
        """Generate an answer into `generation`; returns the last delta."""
        path = await self._store.run(self._store.path_to, question.id)
        last = Delta()
        async with contextlib.aclosing(self.complete(conversation(path), model, wishes)) as deltas:
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


@contextlib.contextmanager
def _logged(message_id: int) -> Iterator[None]:
    """Let an answer go on when the store fails (a full disk): its readers still get it."""
    try:
        yield
    except StoreError as error:
        log.error("message %d is not stored: %s", message_id, error)
