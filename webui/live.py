"""An answer while it is being written, as server-sent events (HTML Living Standard, section 9.2).

The id of an event is the number of the answer's characters that the page shows after it. A browser that comes
back names the last id it has seen, so the stream goes on from there, on any device and after any reload:

    wait {"words": …}             what the answer waits for, where that is known
    tail {"keep": n, "html": …}   keep the first n elements of the answer, put `html` after them
    done {"html": …}              the finished message; the stream ends
    gone {}                       the message was deleted; the stream ends
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Final

from appliance.domain import Delta
from appliance.errors import HobError, NotFoundError
from appliance.inference import Inference
from appliance.store import Store, StoredMessage
from webui import presenters
from webui.markdown import LiveMarkdown
from webui.pages import TurnFragment
from webui.rendering import to_html

PAUSE: Final = 0.1  # seconds between two events: fluent to read, cheap to render
HEARTBEAT: Final = 15.0  # seconds of silence after which a comment keeps proxies from hanging up
GLANCE: Final = 0.5  # seconds between two looks at what an answer waits for that has not begun


def _event(name: str, data: dict[str, object], offset: int | None = None) -> str:
    mark = "" if offset is None else f"id: {offset}\n"
    return f"event: {name}\n{mark}data: {json.dumps(data, ensure_ascii=False)}\n\n"


class _Inbox:
    """What has been written since the last look; filled by a task, emptied by the stream."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        self.news = asyncio.Event()

    async def fill(self, deltas: AsyncGenerator[Delta, None]) -> None:
        """Collect until the answer ends, for whatever reason: the stored message tells which."""
        try:
            with suppress(HobError):
                async with aclosing(deltas):
                    async for delta in deltas:
                        self.text += delta.text
                        self.news.set()
        finally:
            self.ended = True
            self.news.set()

    def take(self) -> str:
        """The new text, which is not new afterwards."""
        text, self.text = self.text, ""
        self.news.clear()
        return text


async def events(
    inference: Inference,
    store: Store,
    message: StoredMessage,
    offset: int,
    waits_for: Callable[[], str] = str,
) -> AsyncGenerator[str, None]:
    """Events for a page that shows the first `offset` characters of `message`.

    `waits_for` says what an answer that has not begun waits for, "" where that is unknown.

    An offset beyond the text (the page saw what a power cut took) starts again at the beginning.
    """
    if message.state == "running":
        page, shown = LiveMarkdown(), None
        inbox = _Inbox()
        # From the start, because the page's elements depend on all of the text.
        filling = asyncio.create_task(inbox.fill(inference.follow(message.id)))
        try:
            yield "retry: 1000\n\n"
            words, silent = "", 0.0
            while not inbox.ended or inbox.text:
                patience = GLANCE if shown is None else HEARTBEAT
                try:
                    async with asyncio.timeout(patience):
                        await inbox.news.wait()
                except TimeoutError:
                    silent += patience
                    if shown is None and (now := waits_for()) != words:
                        words, silent = now, 0.0
                        yield _event("wait", {"words": words})
                    elif silent >= HEARTBEAT:
                        silent = 0.0
                        yield ": still here\n\n"
                    continue
                silent = 0.0
                text = inbox.take()
                if shown is None:
                    shown = offset if 0 <= offset <= len(text) else 0
                    page.push(text[:shown])
                    text = text[shown:]
                if text:
                    tail = page.push(text)
                    shown += len(text)
                    yield _event("tail", {"keep": tail.keep, "html": tail.html}, shown)
                    await asyncio.sleep(PAUSE)
        finally:
            filling.cancel()
    try:
        message = await store.run(store.message, message.id)
        thread = await store.run(store.thread, message.chat_id)
    except NotFoundError:
        yield _event("gone", {})
        return
    if message.state != "running":  # else the service is going down: the browser comes back on its own
        html = to_html(TurnFragment(presenters.turn(message, last=message.id == thread[-1].id)))
        yield _event("done", {"html": html}, len(message.content))
