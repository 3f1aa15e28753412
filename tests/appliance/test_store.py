"""The database: conversations, search, accounts, and what happens to it when things go wrong."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlite_utils import Database

from appliance.domain import Timings, Usage
from appliance.errors import ConflictError, NotFoundError, PermissionDeniedError, StoreError
from appliance.store import INTERRUPTED, Speed, State, Store, StoredMessage, newest_branch, title_of
from appliance.store.chats import TITLE_LENGTH
from appliance.store.migrations import migrations

EVERY_PLANE = (
    "".join(chr(plane << 16 | low) for plane in range(17) for low in (0x21, 0x1F5, 0xFFFF)) + "\0end"
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    store = Store(tmp_path / "hob.db")
    yield store
    store.close()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An empty store that is only read."""
    store = Store(tmp_path_factory.mktemp("searched") / "hob.db")
    yield store
    store.close()


def test_question_and_answer_are_kept(store: Store) -> None:
    """What was asked, answered, with which settings, how it ended and how long it took."""
    question, answer = store.ask(None, "What is a hob?", "hob-guide", {"temperature": 0.5})
    store.save_text(answer.id, "A household")
    store.finish(
        answer.id,
        state="done",
        content="A household spirit.",
        finish="stop",
        usage=Usage(prompt_tokens=5, completion_tokens=4),
        timings=Timings(queue=0.1, prefill=0.2, decode=0.3),
    )
    (chat,) = store.chats()
    assert chat == store.chat(question.chat_id)
    assert (chat.title, chat.model) == ("What is a hob?", "hob-guide")
    first, second = store.thread(chat.id)
    assert (first.role, first.content, first.state, first.parent) == ("user", "What is a hob?", "done", None)
    assert (second.role, second.content, second.state) == ("assistant", "A household spirit.", "done")
    assert second.parent == first.id < second.id
    assert second.settings == {"temperature": 0.5}
    assert (second.prompt_tokens, second.completion_tokens) == (5, 4)
    assert second.timings == Timings(queue=0.1, prefill=0.2, decode=0.3)
    assert (second.finish, second.error) == ("stop", "")


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    """A store reopened on the same file has what the last one had, text of every plane included."""
    first = Store(tmp_path / "hob.db")
    _, answer = first.ask(None, EVERY_PLANE, "m", {})
    first.finish(answer.id, state="done", content=EVERY_PLANE)
    chats, thread = first.chats(), first.thread(answer.chat_id)
    first.close()
    second = Store(tmp_path / "hob.db")
    assert second.chats() == chats
    assert second.thread(answer.chat_id) == thread
    assert thread[1].content == EVERY_PLANE
    second.close()


def test_chats_are_listed_by_last_use(store: Store) -> None:
    """The chat with the newest question comes first; renaming does not change the order."""
    ids = []
    for text in ("one", "two", "three"):
        question, answer = store.ask(None, text, "m", {})
        store.finish(answer.id, state="done", content="ok")
        ids.append(question.chat_id)
    store.ask(ids[0], "more", "other", {})
    store.rename_chat(ids[1], "Second")
    assert [chat.title for chat in store.chats()] == ["one", "three", "Second"]
    assert store.chat(ids[0]).model == "other"
    assert [chat.title for chat in store.chats(limit=1)] == ["one"]


def test_only_one_answer_runs_in_a_chat(store: Store) -> None:
    """Nothing is added to a chat that is being answered; afterwards it can be."""
    question, answer = store.ask(None, "one", "m", {})
    with pytest.raises(ConflictError):
        store.ask(question.chat_id, "two", "m", {})
    with pytest.raises(ConflictError):
        store.answer(question.id, "m", {})
    assert store.thread(question.chat_id) == [question, answer]
    assert store.running(question.chat_id) == [answer]
    store.finish(answer.id, state="done", content="ok")
    assert store.running(question.chat_id) == []
    store.ask(question.chat_id, "two", "m", {})
    assert len(store.thread(question.chat_id)) == 4


def test_regenerated_answer_takes_the_old_ones_place(store: Store) -> None:
    """The conversation goes on from the newest answer; the older one and what followed it are kept."""
    question, old = store.ask(None, "one", "m", {})
    store.finish(old.id, state="done", content="old")
    follow_up, answer = store.ask(question.chat_id, "two", "m", {})
    store.finish(answer.id, state="done", content="after old")
    new = store.answer(question.id, "n", {})
    assert [message.id for message in store.thread(question.chat_id)] == [question.id, new.id]
    assert store.message(old.id).content == "old"
    assert [message.id for message in store.path_to(answer.id)] == [
        question.id,
        old.id,
        follow_up.id,
        answer.id,
    ]


def _message(message_id: int, parent: int | None) -> StoredMessage:
    return StoredMessage(
        message_id, 1, parent, "user", "", "done", "", "m", {}, None, None, None, None, float(message_id)
    )


@given(st.lists(st.integers(0, 30), max_size=30))
def test_newest_branch_is_a_path_to_a_leaf(choices: list[int]) -> None:
    """Whatever the tree, the branch is a chain from a root to a leaf, each step the newest there is."""
    messages: list[StoredMessage] = []
    for number, choice in enumerate(choices, 1):
        parents = [None, *(message.id for message in messages)]
        messages.append(_message(number, parents[choice % len(parents)]))
    branch = newest_branch(messages)
    parent = None
    for message in branch:
        assert message.parent == parent
        assert message.id == max(other.id for other in messages if other.parent == parent)
        parent = message.id
    assert not [other for other in messages if other.parent == parent]


def test_deleting_a_chat_deletes_its_messages_and_their_index(store: Store) -> None:
    """Nothing of a deleted chat is found; its ids are never given again."""
    question, answer = store.ask(None, "a secret thing", "m", {})
    store.delete_chat(question.chat_id)
    assert store.chats() == []
    assert store.search("secret") == []
    for missing in (store.chat, store.thread, store.delete_chat):
        with pytest.raises(NotFoundError, match=f"chat {question.chat_id}"):
            missing(question.chat_id)
    with pytest.raises(NotFoundError, match=f"message {answer.id}"):
        store.message(answer.id)
    store.save_text(answer.id, "too late")  # a generation that had not heard of it
    again, _ = store.ask(None, "another", "m", {})
    assert again.chat_id > question.chat_id
    assert again.id > answer.id


def test_a_service_that_starts_ends_what_was_left_running(store: Store) -> None:
    """Answers left running become stopped ones with a note, and keep their text; others stay as they are."""
    _, cut = store.ask(None, "one", "m", {})
    store.save_text(cut.id, "half an ans")
    _, done = store.ask(None, "two", "m", {})
    store.finish(done.id, state="done", content="whole", finish="stop")
    assert store.mark_interrupted() == 1
    message = store.message(cut.id)
    assert (message.state, message.error, message.content) == ("stopped", INTERRUPTED, "half an ans")
    assert store.message(done.id).state == "done"
    assert store.mark_interrupted() == 0


def test_search_finds_titles_and_texts(store: Store) -> None:
    """Every word must be there, beginnings are enough, accents and case do not count; matches are marked."""
    question, answer = store.ask(None, "Crème brûlée, please", "m", {})
    store.finish(answer.id, state="done", content="Heat the cream, then caramelise the sugar on top.")
    in_title, in_question = store.search("creme BRU")
    assert (in_title.chat_id, in_title.message_id) == (question.chat_id, None)
    assert in_question.message_id == question.id
    assert [text for text, matched in in_title.snippet if matched] == ["Crème", "brûlée"]
    (hit,) = store.search("caramel sugar")
    assert hit.message_id == answer.id
    assert "".join(text for text, _ in hit.snippet) == "Heat the cream, then caramelise the sugar on top."
    assert store.search("caramel salt") == []
    store.rename_chat(question.chat_id, "Dessert")
    assert [hit.title for hit in store.search("dessert")] == ["Dessert"]


@given(st.text())
def test_search_takes_any_text(searched: Store, text: str) -> None:
    """No query, however odd, is a syntax error."""
    assert isinstance(searched.search(text), list)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("What is a hob?", "What is a hob?"),
        ("\n\n  first   line \nsecond", "first line"),
        ("  \n ", "New chat"),
        ("word " * 30, "word word word word word word word word word word word…"),
        ("x" * 100, "x" * 59 + "…"),
    ],
)
def test_titles(text: str, title: str) -> None:
    """A title is the first line with text, cut at a word."""
    assert title_of(text) == title


@given(st.text())
def test_titles_are_one_short_line(text: str) -> None:
    """Whatever the message, its title is one line, not empty and not long."""
    title = title_of(text)
    assert 0 < len(title) <= TITLE_LENGTH
    assert len(title.splitlines()) == 1


def test_there_is_one_owner(store: Store) -> None:
    """The first to set a password owns this Hob; the second is refused."""
    assert store.owner_hash() is None
    store.create_owner("hash one")
    with pytest.raises(PermissionDeniedError):
        store.create_owner("hash two")
    assert store.owner_hash() == "hash one"
    store.set_owner_hash("hash three")
    assert store.owner_hash() == "hash three"


def test_sessions_end(store: Store) -> None:
    """A session is found by its token's hash until it expires or is revoked."""
    now = time.time()
    session = store.add_session("a", now + 60, "Firefox")
    assert store.session("a") == session
    assert store.session("b") is None
    store.add_session("old", now - 1, "Netscape")
    assert store.session("old") is None
    assert store.list_sessions() == [session]
    store.touch_session(session.id)
    touched = store.session("a")
    assert touched is not None
    assert touched.seen >= session.seen
    store.revoke_session(session.id)
    assert store.session("a") is None
    with pytest.raises(NotFoundError):
        store.revoke_session(session.id)
    store.add_session("c", now + 60, "")
    assert store.revoke_sessions() == 1  # the expired one was dropped on the way
    assert store.list_sessions() == []


def test_keys(store: Store) -> None:
    """A key is found by its hash until it is revoked; its use is noted."""
    key = store.add_key("laptop", "hash", "hob_abc")
    assert store.keys() == [key]
    assert key.used is None
    store.touch_key(key.id)
    found = store.key_by_hash("hash")
    assert found is not None
    assert found.used is not None
    store.revoke_key(key.id)
    assert store.key_by_hash("hash") is None
    with pytest.raises(NotFoundError):
        store.revoke_key(key.id)


@pytest.mark.anyio
async def test_work_runs_on_one_thread_in_order(store: Store) -> None:
    """All work shares one thread, first come, first served; a cancelled caller's is still done."""
    threads: list[int] = []
    order: list[int] = []

    def work(number: int) -> int:
        threads.append(threading.get_ident())
        order.append(number)
        return number

    tasks = [asyncio.create_task(store.run(work, number)) for number in range(20)]
    await asyncio.sleep(0)
    tasks[10].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await store.run(work, 20)
    assert [result for result in results if isinstance(result, int)] == [*range(10), *range(11, 20)]
    assert order == list(range(21))
    assert set(threads) == {threads[0]}
    assert threads[0] != threading.get_ident()


def test_a_committed_write_is_on_the_disk(tmp_path: Path) -> None:
    """A process killed right after a write leaves that write behind; the log is synced at every commit."""
    program = (
        "import os, sys; from pathlib import Path; from appliance.store import Store\n"
        "store = Store(Path(sys.argv[1])); question, answer = store.ask(None, 'q', 'm', {})\n"
        "store.save_text(answer.id, 'half'); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "hob.db")], check=False)
    assert done.returncode == 9
    store = Store(tmp_path / "hob.db")
    assert store.message(2).content == "half"
    assert store.db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    assert store.db.journal_mode == "wal"
    store.close()


def test_only_the_owner_of_the_file_reads_it(store: Store) -> None:
    """Chats and hashes are nobody else's business."""
    assert store.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["garbage", "truncated", "folder"])
def test_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    """A file that is no database, or half of one, gives an error with its name and the next step."""
    path = tmp_path / "hob.db"
    if damage == "folder":
        path.mkdir()
    elif damage == "garbage":
        path.write_bytes(b"no database" * 1000)
    else:
        Store(path).close()
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StoreError, match=r"hob\.db") as caught:
        Store(path)
    assert caught.value.hint


def test_full_disk_is_named(store: Store) -> None:
    """A write that does not fit gives an error with the file's name; what was there before stays."""
    question, answer = store.ask(None, "one", "m", {})
    pages = store.db.execute("PRAGMA page_count").fetchone()[0]
    store.db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"hob\.db: database or disk is full"):
        store.ask(None, "two" * 10_000, "m", {})
    assert store.thread(question.chat_id) == [question, answer]
    assert len(store.chats()) == 1


def test_a_file_of_an_older_hob_is_brought_up_to_date(tmp_path: Path) -> None:
    """Migrations run on what is there: chats from before there were accounts stay."""
    path = tmp_path / "hob.db"
    old = Database(sqlite3.connect(path))
    migrations.apply(old, stop_before="owner_sessions_keys")
    old.execute("INSERT INTO chats (title, model, created, updated) VALUES ('Old', 'm', 1, 1)")
    old.close()
    store = Store(path)
    assert [chat.title for chat in store.chats()] == ["Old"]
    assert store.keys() == []
    store.close()


def test_speeds_of_real_answers(store: Store) -> None:
    """The median by model, the last one first; short, broken and untimed answers do not count."""

    def answer(model: str, tokens: int, seconds: float, state: State = "done", prompt: int = 100) -> None:
        _, row = store.ask(None, "question", model, {})
        store.finish(
            row.id,
            state=state,
            content="x",
            finish="stop",
            usage=Usage(prompt_tokens=prompt, completion_tokens=tokens),
            timings=Timings(queue=0, prefill=0.5, decode=seconds),
        )

    assert store.speeds() == []
    for seconds in (1.0, 2.0, 4.0):
        answer("llama", 41, seconds)
    answer("llama", 3, 1.0)
    answer("llama", 41, 1.0, state="stopped")
    answer("guide", 11, 0.0)
    answer("guide", 11, 0.1, prompt=2)
    assert store.speeds() == [
        Speed("guide", 1, None, 100.0),
        Speed("llama", 3, 200.0, 20.0),
    ]
    assert store.speeds(limit=1) == [Speed("guide", 1, None, 100.0)]
