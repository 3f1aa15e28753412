"""Answers of the real engine and a real (random, endless) model: stored, followed, stopped, interrupted."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from appliance.config import load_settings
from appliance.domain import Delta, Message, Role, Usage
from appliance.engine.client import EngineClient
from appliance.engine.messages import Wishes
from appliance.errors import (
    ConflictError,
    ContextLengthError,
    EngineUnavailableError,
    InvalidRequestError,
    NotFoundError,
    UnknownModelError,
)
from appliance.inference import Generation, Inference, conversation
from appliance.models import Models
from appliance.store import INTERRUPTED, Store, StoredMessage
from tests.service import ENDLESS, TINY

pytestmark = pytest.mark.anyio

HELLO = [Message(role="user", content="Hello")]
GREEDY: Wishes = {"temperature": 0}


class Desk:
    """Everything an answer needs, in this process; only the engine has its own."""

    def __init__(self, data_dir: Path, context: int) -> None:
        settings = load_settings(data_dir=data_dir, model=TINY, context=context)
        self.store = Store(data_dir / "hob.db")
        self.engine = EngineClient()
        self.models = Models(settings)
        self.inference = Inference(self.models, self.engine, self.store)

    async def idle(self) -> bool:
        """Whether the engine has nothing to do."""
        return (await self.engine.stats()).running == 0

    async def answer(self, generation: Generation) -> StoredMessage:
        """The stored answer."""
        return await self.store.run(self.store.message, generation.message_id)


@contextlib.asynccontextmanager
async def desk_at(data_dir: Path, context: int) -> AsyncIterator[Desk]:
    """A desk with a running engine."""
    desk = Desk(data_dir, context)
    await desk.engine.start()
    try:
        yield desk
    finally:
        await desk.inference.close()
        await desk.engine.close()
        desk.store.close()


@pytest.fixture
async def desk(data_dir: Path) -> AsyncIterator[Desk]:
    """A desk whose answers end after 128 tokens of context."""
    async with desk_at(data_dir, 128) as desk:
        yield desk


@pytest.fixture
async def endless(data_dir: Path) -> AsyncIterator[Desk]:
    """A desk whose answers go on for minutes."""
    async with desk_at(data_dir, ENDLESS) as desk:
        yield desk


async def text_of(deltas: AsyncIterator[Delta]) -> tuple[str, Delta]:
    """All text, and the last delta."""
    text, last = "", Delta()
    async for last in deltas:
        text += last.text
    return text, last


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that comes true in another process or thread."""
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - there is no event to wait for across processes
            await asyncio.sleep(0.01)


async def grown(generation: Generation, characters: int = 20) -> None:
    """Wait until an answer has some text."""
    async with asyncio.timeout(60), contextlib.aclosing(generation.follow()) as deltas:
        async for _ in deltas:
            if len(generation.text) >= characters:
                return


async def test_answer_fills_the_context_and_says_so(desk: Desk) -> None:
    """Without a limit an answer ends with the context window: finish "length", counts that add up to it."""
    text, last = await text_of(desk.inference.complete(HELLO))
    assert text
    assert last.finish == "length"
    assert last.usage is not None
    assert last.usage.prompt_tokens + last.usage.completion_tokens == 128
    assert last.timings is not None


async def test_prompt_that_fills_the_context_is_refused(desk: Desk) -> None:
    """An answer needs room: a prompt as long as the window is refused with both numbers."""
    long = [Message(role="user", content="word " * 200)]
    with pytest.raises(ContextLengthError, match=r"take \d+ tokens.*has 128"):
        await text_of(desk.inference.complete(long))


async def test_unknown_model_is_refused_before_anything_is_stored(desk: Desk) -> None:
    """Asking a model that is not installed leaves no trace."""
    with pytest.raises(UnknownModelError):
        await desk.inference.ask(None, "Hello", "nobody")
    assert desk.store.chats() == []


async def test_empty_question_is_refused(desk: Desk) -> None:
    """A question needs a letter."""
    with pytest.raises(InvalidRequestError):
        await desk.inference.ask(None, " \n ")


async def test_foreign_token_id_in_logit_bias_is_refused(desk: Desk) -> None:
    """A bias for a token that the vocabulary does not have is named."""
    with pytest.raises(InvalidRequestError, match="4711"):
        await text_of(desk.inference.complete(HELLO, wishes={"logit_bias": {4711: 1.0}}))


async def test_asked_answer_is_stored_as_it_was_followed(desk: Desk) -> None:
    """What a reader sees and what the store keeps are the same, with counts, timings and settings."""
    generation = await desk.inference.ask(None, "Hello", wishes=GREEDY)
    text, last = await text_of(desk.inference.follow(generation.message_id))
    answer = await desk.answer(generation)
    assert answer.content == text == generation.text
    assert (answer.state, answer.finish, answer.model) == ("done", "length", TINY)
    assert last.usage == Usage(
        prompt_tokens=answer.prompt_tokens or 0, completion_tokens=answer.completion_tokens or 0
    )
    assert answer.timings == last.timings
    assert answer.timings is not None
    assert answer.settings["temperature"] == 0
    assert desk.inference.running(generation.message_id) is None


async def test_any_number_of_readers_from_any_place(endless: Desk) -> None:
    """Readers that come at different times and places see the same text; one that leaves ends nothing."""
    generation = await endless.inference.ask(None, "Hello")
    follow = endless.inference.follow
    await grown(generation)
    early = asyncio.create_task(text_of(follow(generation.message_id)))
    late = asyncio.create_task(text_of(follow(generation.message_id, start=10)))
    async with contextlib.aclosing(follow(generation.message_id)) as leaving:
        first = await anext(leaving)
    assert first.text
    await grown(generation, 100)
    await endless.inference.stop(generation.message_id)
    text, last = await early
    assert last.finish == "cancelled"
    assert text == generation.text
    assert (await late)[0] == text[10:]
    assert (await text_of(follow(generation.message_id, start=5)))[0] == text[5:]  # from the store


async def test_stop_keeps_the_text(endless: Desk) -> None:
    """A stopped answer is stored with its text when `stop` returns, and the chat can go on."""
    generation = await endless.inference.ask(None, "Hello")
    with pytest.raises(ConflictError):
        await endless.inference.ask(generation.chat_id, "And?")
    await grown(generation)
    await endless.inference.stop(generation.message_id)
    answer = await endless.answer(generation)
    assert (answer.state, answer.finish, answer.error) == ("stopped", "cancelled", "")
    assert answer.content == generation.text != ""
    again = await endless.inference.ask(generation.chat_id, "And?")
    await endless.inference.stop(again.message_id)
    await endless.inference.stop(again.message_id)  # twice does no harm


async def test_stop_before_the_first_word(endless: Desk) -> None:
    """An answer stopped at once never stays running."""
    generation = await endless.inference.ask(None, "Hello")
    await endless.inference.stop(generation.message_id)
    assert (await endless.answer(generation)).state == "stopped"
    await until(endless.idle)


async def test_text_is_saved_while_it_grows(endless: Desk) -> None:
    """The database follows the answer without anybody reading it, also after the first time."""
    generation = await endless.inference.ask(None, "Hello")
    saved = ""

    async def longer(than: str) -> bool:
        return len((await endless.answer(generation)).content) > len(than)

    for _ in range(3):
        await until(partial(longer, saved))
        stored = await endless.answer(generation)
        assert stored.state == "running"
        assert generation.text.startswith(stored.content)
        assert stored.content.startswith(saved)
        saved = stored.content


async def test_regenerate_answers_the_same_question(desk: Desk) -> None:
    """The new answer stands in the old one's place; the same settings and seed give the same text."""
    wishes: Wishes = {"temperature": 1, "seed": 7}
    first = await desk.inference.ask(None, "Hello", wishes=wishes)
    await text_of(first.follow())
    second = await desk.inference.regenerate(first.message_id, wishes=wishes)
    await text_of(second.follow())
    question, answer = desk.store.thread(first.chat_id)
    assert question.content == "Hello"
    assert answer.id == second.message_id != first.message_id
    assert answer.content == first.text
    third = await desk.inference.regenerate(question.id, wishes=wishes)
    assert third.chat_id == first.chat_id
    with pytest.raises(NotFoundError):
        await desk.inference.regenerate(4711)


async def test_too_long_conversation_is_a_visible_error(desk: Desk) -> None:
    """When a chat outgrows the window its answer says so, with both numbers and what to do."""
    generation = await desk.inference.ask(None, "word " * 200)
    _, last = await text_of(desk.inference.follow(generation.message_id))
    assert last.finish == "error"
    answer = await desk.answer(generation)
    assert answer.state == "error"
    assert "128" in answer.error
    assert "start a new one" in answer.error


async def test_engine_death_is_a_visible_error(endless: Desk) -> None:
    """The text so far stays; the next question is answered by the new engine."""
    generation = await endless.inference.ask(None, "Hello")
    await grown(generation)
    (worker,) = [
        child for child in psutil.Process().children() if "appliance.engine.worker" in child.cmdline()
    ]
    os.kill(worker.pid, signal.SIGKILL)
    _, last = await text_of(endless.inference.follow(generation.message_id))
    assert last.finish == "error"
    answer = await endless.answer(generation)
    assert answer.state == "error"
    assert answer.content == generation.text != ""
    assert "engine" in answer.error
    again = await endless.inference.ask(generation.chat_id, "Hello?")
    await grown(again)


async def test_close_interrupts_what_runs(endless: Desk) -> None:
    """At shutdown answers are stored as stopped, with the note that a power cut leaves too."""
    generation = await endless.inference.ask(None, "Hello")
    await grown(generation)
    await endless.inference.close()
    answer = await endless.answer(generation)
    assert (answer.state, answer.error) == ("stopped", INTERRUPTED)
    assert answer.content == generation.text


async def test_closed_engine_ends_programs_streams(endless: Desk) -> None:
    """A program's answer raises when the engine is closed under it."""
    deltas = endless.inference.complete(HELLO)
    await anext(deltas)
    await endless.engine.close()
    with pytest.raises(EngineUnavailableError):
        await text_of(deltas)


async def test_closing_a_programs_answer_cancels_it(endless: Desk) -> None:
    """Whoever closes the generator frees the engine."""
    async with contextlib.aclosing(endless.inference.complete(HELLO)) as deltas:
        await anext(deltas)
        assert (await endless.engine.stats()).running == 1
    await until(endless.idle)


async def test_deleted_chat_ends_in_peace(endless: Desk) -> None:
    """Deleting a chat under a running answer breaks nothing."""
    generation = await endless.inference.ask(None, "Hello")
    await grown(generation)
    await endless.store.run(endless.store.delete_chat, generation.chat_id)
    await endless.inference.stop(generation.message_id)
    with pytest.raises(NotFoundError):
        await text_of(endless.inference.follow(generation.message_id))


async def test_full_disk_does_not_silence_the_answer(endless: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """When the text cannot be stored, readers still get it, and the log says why it is not kept."""
    generation = await endless.inference.ask(None, "Hello")
    pages = await endless.store.run(lambda: endless.store.db.execute("PRAGMA page_count").fetchone()[0])
    await endless.store.run(endless.store.db.execute, f"PRAGMA max_page_count = {pages}")

    async def told() -> bool:
        return "disk is full" in caplog.text

    await until(told)
    length = len(generation.text)
    await grown(generation, length + 20)
    reader = asyncio.create_task(text_of(generation.follow()))
    await asyncio.sleep(0)
    await endless.inference.stop(generation.message_id)
    text, last = await reader
    assert len(text) > length
    assert last.finish == "cancelled"


async def test_answer_that_nobody_writes_does_not_block_its_chat(desk: Desk) -> None:
    """An answer whose end could not be stored reads as failed, and stopping it frees the chat."""
    _, orphan = desk.store.ask(None, "Hello", TINY, {})
    _, last = await text_of(desk.inference.follow(orphan.id))
    assert last.finish == "error"
    await desk.inference.stop(orphan.id)
    assert desk.store.message(orphan.id).state == "stopped"
    await desk.inference.ask(orphan.chat_id, "Hello?")


def _stored(number: int, role: Role, content: str) -> StoredMessage:
    return StoredMessage(
        number,
        1,
        number - 1 or None,
        role,
        content,
        "done",
        "",
        "m",
        {},
        None,
        None,
        None,
        None,
        0.0,
    )


async def test_conversation_alternates_roles() -> None:
    """Empty answers vanish and the questions around them become one, since templates want turns in turn."""
    path = [
        _stored(1, "user", "one"),
        _stored(2, "assistant", ""),
        _stored(3, "user", "two"),
        _stored(4, "assistant", "answer"),
        _stored(5, "user", "three"),
    ]
    assert conversation(path) == [
        Message(role="user", content="one\n\ntwo"),
        Message(role="assistant", content="answer"),
        Message(role="user", content="three"),
    ]
