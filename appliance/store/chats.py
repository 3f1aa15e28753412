"""Conversations: chats, their messages, and the search over both."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from appliance.domain import FinishReason, Role, Timings, Usage
from appliance.errors import ConflictError
from appliance.store.connection import Connection, known

State = Literal["running", "done", "stopped", "error"]

INTERRUPTED = "Interrupted: Hob stopped before the answer was complete."
TITLE_LENGTH = 60

SHORT = 8
"""Tokens below which a question or an answer is too short to be timed."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation. `created` and `updated` are Unix times; `model` answers its next question."""

    id: int
    title: str
    model: str
    created: float
    updated: float


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One turn as kept. Ids grow with time; `parent` is the message it follows, None for the first.

    `error` is for people: why the state is "error", or a note on a "stopped" one. `settings` are the sampling
    settings used. `finish`, counts and timings are set once an answer has ended; questions never have them.
    """

    id: int
    chat_id: int
    parent: int | None
    role: Role
    content: str
    state: State
    error: str
    model: str
    settings: dict[str, Any]
    finish: FinishReason | None
    prompt_tokens: int | None
    completion_tokens: int | None
    timings: Timings | None
    created: float


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A chat that matches, by its title (`message_id` None) or by one of its messages.

    `snippet` is the text around the match in pieces: (text, whether it matched).
    """

    chat_id: int
    title: str
    message_id: int | None
    snippet: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a model answered: the median of `answers` answers, in tokens read and written a second.

    `prefill` is None where every question was too short to tell.
    """

    model: str
    answers: int
    prefill: float | None
    decode: float


def title_of(text: str) -> str:
    """The first line that is not empty, cut at a word to at most `TITLE_LENGTH` characters."""
    line = next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")
    if len(line) <= TITLE_LENGTH:
        return line or "New chat"
    head = line[: TITLE_LENGTH - 1]
    cut = head.rfind(" ")
    return (head[:cut] if cut > TITLE_LENGTH // 2 else head) + "…"


def newest_branch(messages: Sequence[StoredMessage]) -> list[StoredMessage]:
    """The conversation as it stands: from the first message on, always the newest of several successors.

    `messages` are all messages of one chat in the order of their ids. A regenerated answer is a newer sibling
    of the old one, so it and what follows it take the old one's place; nothing is deleted.
    """
    newest = {message.parent: message for message in messages}
    branch = []
    follower = newest.get(None)
    while follower is not None:
        branch.append(follower)
        follower = newest.get(follower.id)
    return branch


class Chats(Connection):
    """The tables of conversations."""

    def chats(self, limit: int = 1000) -> list[Chat]:
        """Chats, the most recently used first."""
        return self.rows(Chat, "SELECT * FROM chats ORDER BY updated DESC, id DESC LIMIT ?", limit)

    def chat(self, chat_id: int) -> Chat:
        """The chat with this id."""
        return self.row(f"chat {chat_id}", Chat, "SELECT * FROM chats WHERE id = ?", chat_id)

    def rename_chat(self, chat_id: int, title: str) -> None:
        """Give a chat another title; its place in the list stays."""
        self.change(f"chat {chat_id}", "UPDATE chats SET title = ? WHERE id = ?", title_of(title), chat_id)

    def delete_chat(self, chat_id: int) -> None:
        """Delete a chat with all its messages."""
        self.change(f"chat {chat_id}", "DELETE FROM chats WHERE id = ?", chat_id)

    def thread(self, chat_id: int) -> list[StoredMessage]:
        """The messages of a chat as a person sees them; see `newest_branch`."""
        self.chat(chat_id)
        return newest_branch(
            self.rows(_message, "SELECT * FROM messages WHERE chat_id = ? ORDER BY id", chat_id)
        )

    def path_to(self, message_id: int) -> list[StoredMessage]:
        """The messages from the chat's first to this one, each following the one before."""
        path = [self.message(message_id)]
        known = {
            message.id: message
            for message in self.rows(_message, "SELECT * FROM messages WHERE chat_id = ?", path[0].chat_id)
        }
        while (parent := path[-1].parent) is not None:
            path.append(known[parent])
        return path[::-1]

    def message(self, message_id: int) -> StoredMessage:
        """The message with this id."""
        return self.row(f"message {message_id}", _message, "SELECT * FROM messages WHERE id = ?", message_id)

    def speeds(self, limit: int = 100) -> list[Speed]:
        """How fast the models were in the last `limit` whole answers, the one that answered last first.

        Answers of a few tokens say nothing about speed and do not count.
        """
        rows: list[dict[str, Any]] = self.rows(
            dict,
            "SELECT model, prompt_tokens, completion_tokens, timings FROM messages WHERE role = 'assistant'"
            " AND state = 'done' AND timings IS NOT NULL AND completion_tokens >= ? ORDER BY id DESC LIMIT ?",
            SHORT,
            limit,
        )
        found: dict[str, list[tuple[int, int, Timings]]] = {}
        for row in rows:
            timings = Timings.model_validate_json(row["timings"])
            if timings.decode > 0:
                answer = row["prompt_tokens"], row["completion_tokens"], timings
                found.setdefault(row["model"], []).append(answer)
        return [_speed(model, answers) for model, answers in found.items()]

    def running(self, chat_id: int) -> list[StoredMessage]:
        """The answers in a chat that are being written: one at most."""
        return self.rows(_message, "SELECT * FROM messages WHERE chat_id = ? AND state = 'running'", chat_id)

    def ask(
        self, chat_id: int | None, text: str, model: str, settings: dict[str, Any]
    ) -> tuple[StoredMessage, StoredMessage]:
        """Add a question at the end of a chat (None: of a new one) and its empty answer, both or none.

        Raises:
            ConflictError: as `answer`.
        """
        with self.atomic():
            now = time.time()
            if chat_id is None:
                chat_id = self.insert("chats", title=title_of(text), model=model, created=now, updated=now)
            thread = self.thread(chat_id)
            question = self.insert(
                "messages",
                chat_id=chat_id,
                parent=thread[-1].id if thread else None,
                role="user",
                content=text,
                state="done",
                model=model,
                created=now,
            )
            return self.message(question), self.answer(question, model, settings)

    def answer(self, question_id: int, model: str, settings: dict[str, Any]) -> StoredMessage:
        """Add an empty running answer to a question, which may have others already.

        Raises:
            ConflictError: another answer in this chat is still running.
        """
        with self.atomic():
            now = time.time()
            chat_id = self.message(question_id).chat_id
            if self.running(chat_id):
                raise ConflictError(
                    "this chat is still being answered", hint="Wait for the end of the answer or stop it."
                )
            self.db.execute("UPDATE chats SET model = ?, updated = ? WHERE id = ?", [model, now, chat_id])
            return self.message(
                self.insert(
                    "messages",
                    chat_id=chat_id,
                    parent=question_id,
                    role="assistant",
                    content="",
                    state="running",
                    model=model,
                    settings=json.dumps(settings),
                    created=now,
                )
            )

    def save_text(self, message_id: int, content: str) -> None:
        """Keep what has been written of a running answer. Does nothing when the message is gone."""
        self.execute("UPDATE messages SET content = ? WHERE id = ?", content, message_id)

    def finish(
        self,
        message_id: int,
        *,
        state: State,
        content: str,
        error: str = "",
        finish: FinishReason | None = None,
        usage: Usage | None = None,
        timings: Timings | None = None,
    ) -> None:
        """End an answer. Does nothing when the message was deleted meanwhile."""
        self.execute(
            "UPDATE messages SET state = ?, content = ?, error = ?, finish = ?, prompt_tokens = ?,"
            " completion_tokens = ?, timings = ? WHERE id = ?",
            state,
            content,
            error,
            finish,
            usage and usage.prompt_tokens,
            usage and usage.completion_tokens,
            timings and timings.model_dump_json(),
            message_id,
        )

    def mark_interrupted(self, message_id: int | None = None) -> int:
        """Turn an answer that nobody is writing any more into a stopped one, with a note; return how many.

        None means all running ones: for a service that starts, before it runs any generation.
        """
        return self.execute(
            "UPDATE messages SET state = 'stopped', finish = 'cancelled', error = ?"
            " WHERE state = 'running' AND id = coalesce(?, id)",
            INTERRUPTED,
            message_id,
        )

    def search(self, query: str, limit: int = 50) -> list[SearchHit]:
        """Chats whose title or messages hold every word of `query`; words may lack their last letters.

        Titles come first, then messages, best matches first.
        """
        words = " ".join(f'"{word}"*' for word in query.replace('"', " ").replace("\0", " ").split())
        if not words:
            return []
        titles = self.rows(
            _hit,
            "SELECT chats.id AS chat_id, chats.title, NULL AS message_id,"
            " snippet(chats_fts, 0, char(2), char(3), '…', 12) AS snippet"
            " FROM chats_fts JOIN chats ON chats.id = chats_fts.rowid"
            " WHERE chats_fts MATCH ? ORDER BY rank LIMIT ?",
            words,
            limit,
        )
        messages = self.rows(
            _hit,
            "SELECT chats.id AS chat_id, chats.title, messages.id AS message_id,"
            " snippet(messages_fts, 0, char(2), char(3), '…', 12) AS snippet"
            " FROM messages_fts JOIN messages ON messages.id = messages_fts.rowid"
            " JOIN chats ON chats.id = messages.chat_id"
            " WHERE messages_fts MATCH ? ORDER BY rank LIMIT ?",
            words,
            limit,
        )
        return [*titles, *messages][:limit]


def _speed(model: str, answers: Sequence[tuple[int, int, Timings]]) -> Speed:
    read = [prompt / times.prefill for prompt, _, times in answers if prompt >= SHORT and times.prefill > 0]
    # The first token comes out of prefill; decode makes the others.
    written = [(count - 1) / times.decode for _, count, times in answers]
    return Speed(model, len(answers), median(read) if read else None, median(written))


def _message(settings: str, timings: str | None, **row: Any) -> StoredMessage:
    return StoredMessage(
        settings=json.loads(settings),
        timings=Timings.model_validate_json(timings) if timings else None,
        **known(StoredMessage, row),
    )


def _hit(snippet: str, **row: Any) -> SearchHit:
    """A hit; the snippet arrives with its matches between \\x02 and \\x03."""
    pieces: list[tuple[str, bool]] = []
    for part in snippet.split("\x02"):
        match, mark, rest = part.partition("\x03")
        pieces += [(match, True), (rest, False)] if mark else [(part, False)]
    return SearchHit(snippet=tuple(piece for piece in pieces if piece[0]), **row)
