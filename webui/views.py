"""The pages' routes. Forms are posted and answered with a redirect, so everything works without JavaScript.

Who may enter, and whether a form comes from one of our own pages, is decided before these handlers run. The
errors they raise are shown as pages by the application, with `error_page`.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import anyio.to_thread
import segno
from markupsafe import Markup
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from appliance import __version__
from appliance.api.sse import EventStream
from appliance.discovery.interfaces import reach
from appliance.domain import ModelCard
from appliance.errors import HobError, NotFoundError
from appliance.security import caller
from appliance.security.keys import add_key
from appliance.shipped import GUIDE
from appliance.store import StoredMessage
from webui import live, model_views, presenters
from webui.assets import FOLDER, Assets
from webui.pages import ChatPage, ErrorPage, HomePage, SearchPage, SettingsPage
from webui.responses import Service, form_fields, render, sentence, service, sidebar

PATIENCE: Final = 0.25  # seconds that a page waits to hear how the engine is


def error_page(request: HTTPConnection, error: HobError) -> Response:
    """An error as a page for people, with its status and the next step."""
    lost = "It may have been deleted, or the address has a typing error."
    hint = error.hint or (lost if error.status == 404 else "")
    response = render(ErrorPage(error.status, sentence(error.message), hint), error.status)
    if error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    return response


def _choose(here: Service, wanted: str) -> tuple[Sequence[ModelCard], str, ModelCard | None]:
    """All models, and of the one to offer first its name and card: the wanted one, else the default one."""
    cards = here.inference.cards()
    for name in (wanted, here.models.default):
        for card in cards:
            if card.name == name:
                return cards, name, card
    return cards, wanted or here.models.default, None


async def _notice(request: Request) -> str:
    """Why an answer would have to wait, or "" where it would not."""
    try:
        async with asyncio.timeout(PATIENCE):
            return presenters.notice(await service(request).readiness.health())
    except TimeoutError:
        return ""  # busy with a long prompt: slow, but well


# Conversations


async def home(request: Request) -> Response:
    """GET /: a new chat."""
    return await _home(request)


async def _home(
    request: Request, draft: str = "", model: str = "", error: HobError | None = None
) -> Response:
    cards, chosen, card = _choose(service(request), model)
    form = presenters.composer(
        cards,
        chosen,
        notice=await _notice(request),
        draft=draft,
        problem=sentence(error.message) if error else "",
        hint=error.hint if error else "",
    )
    page = HomePage(
        sidebar=await sidebar(request),
        composer=form,
        note=card.note if card else "",
        suggestions=presenters.SUGGESTIONS if card and card.name == GUIDE else (),
        private=not (card and card.upstream),
    )
    return render(page, error.status if error else 200)


async def chat(request: Request) -> Response:
    """GET /chats/{chat}: a conversation."""
    return await _chat(request, request.path_params["chat"])


async def _chat(
    request: Request, chat_id: int, draft: str = "", model: str = "", error: HobError | None = None
) -> Response:
    store = service(request).store
    row = await store.run(store.chat, chat_id)
    thread = await store.run(store.thread, chat_id)
    running = next((message for message in thread if message.state == "running"), None)
    cards, chosen, card = _choose(service(request), model or row.model)
    form = presenters.composer(
        cards,
        chosen,
        chat_id,
        running,
        notice=await _notice(request),
        draft=draft,
        problem=sentence(error.message) if error else "",
        hint=error.hint if error else "",
    )
    page = ChatPage(
        sidebar=await sidebar(request, current=chat_id),
        composer=form,
        id=chat_id,
        title=row.title,
        note=card.note if card else "",
        turns=await anyio.to_thread.run_sync(presenters.turns, thread),  # a long chat takes a while
        refresh=None if running is None else _again(request, running),
    )
    return render(page, error.status if error else 200)


def _again(request: Request, running: StoredMessage) -> str:
    """Where a page without JavaScript looks again: at the answer, under an address that it is not at.

    A refresh that differs from the page's own address in nothing but the part after # loads nothing.
    """
    seen = request.query_params.get("look", "")
    look = int(seen) + 1 if seen.isascii() and seen.isdecimal() and len(seen) < 9 else 1
    return f"/chats/{running.chat_id}?look={look}#m{running.id}"


async def ask(request: Request) -> Response:
    """POST /chats and POST /chats/{chat}/messages: a question; leads to its answer.

    A question that is refused comes back in the form, with the reason above it.
    """
    chat_id: int | None = request.path_params.get("chat")
    fields = await form_fields(request)
    text, model = fields.get("text", ""), fields.get("model", "")
    try:
        generation = await service(request).inference.ask(chat_id, text, model)
    except NotFoundError:
        raise
    except HobError as error:
        if chat_id is None:
            return await _home(request, text, model, error)
        return await _chat(request, chat_id, text, model, error)
    return _to_message(generation.chat_id, generation.message_id)


async def stop(request: Request) -> Response:
    """POST …/messages/{message}/stop: end a running answer, from any device."""
    message = await _message(request)
    await service(request).inference.stop(message.id)
    return _to_message(message.chat_id, message.id)


async def regenerate(request: Request) -> Response:
    """POST …/messages/{message}/regenerate: answer the same question again."""
    message = await _message(request)
    generation = await service(request).inference.regenerate(message.id)
    return _to_message(generation.chat_id, generation.message_id)


async def events(request: Request) -> Response:
    """GET …/messages/{message}/events: the answer as it is written; see `live`."""
    message = await _message(request)
    # The browser's own header wins: the address says where the page began, the header how far it has come.
    place = request.headers.get("last-event-id") or request.query_params.get("from", "")
    offset = int(place) if place.isascii() and place.isdecimal() else 0
    here = service(request)

    def waits_for() -> str:
        return presenters.waits_for(here.models.compiling.get(message.model))

    return EventStream(live.events(here.inference, here.store, message, offset, waits_for))


async def rename(request: Request) -> Response:
    """POST /chats/{chat}/rename: another title."""
    chat_id: int = request.path_params["chat"]
    title = (await form_fields(request)).get("title", "")
    store = service(request).store
    if title.strip():
        await store.run(store.rename_chat, chat_id, title)
    return RedirectResponse(f"/chats/{chat_id}", 303)


async def delete(request: Request) -> Response:
    """POST /chats/{chat}/delete: for good; answers under way end first."""
    chat_id: int = request.path_params["chat"]
    store = service(request).store
    for message in await store.run(store.running, chat_id):
        await service(request).inference.stop(message.id)
    await store.run(store.delete_chat, chat_id)
    return RedirectResponse("/", 303)


async def search(request: Request) -> Response:
    """GET /search?q=: chats by their titles and messages."""
    query = request.query_params.get("q", "").strip()
    store = service(request).store
    hits = await store.run(store.search, query) if query else []
    page = SearchPage(
        sidebar=await sidebar(request, query=query), query=query, hits=[presenters.hit(hit) for hit in hits]
    )
    return render(page)


async def _message(request: Request) -> StoredMessage:
    """The message that the address names.

    Raises:
        NotFoundError: there is none, or it belongs to another chat.
    """
    store = service(request).store
    message = await store.run(store.message, request.path_params["message"])
    if message.chat_id != request.path_params["chat"]:
        raise NotFoundError(f"no message {message.id} in this chat")
    return message


def _to_message(chat_id: int, message_id: int) -> Response:
    return RedirectResponse(f"/chats/{chat_id}#m{message_id}", 303)


# Settings


async def settings(request: Request) -> Response:
    """GET /settings: addresses, API keys."""
    return render(await _settings(request))


async def _settings(request: Request, new_key: str = "") -> SettingsPage:
    here = service(request)
    now = datetime.now().astimezone()
    addresses = _addresses(request)
    return SettingsPage(
        sidebar=await sidebar(request),
        addresses=addresses,
        qr=_qr(addresses[-1]) if addresses else Markup(),
        api=f"{request.url.scheme}://{request.url.netloc}/v1",
        keys=[presenters.key_row(key, now) for key in await here.store.run(here.store.keys)],
        new_key=new_key,
        signed_in=caller(request).kind == "owner",
        version=__version__,
    )


def _addresses(request: Request) -> list[str]:
    """Where other devices reach this Hob; empty when it listens on this machine only."""
    config = service(request).settings
    if not config.lan:
        return []
    # Where another Hob has the name, this one has a further one; the visitor's browser may know it.
    visited = request.url.hostname or ""
    name = visited if visited.endswith(".local") else f"{config.name}.local"
    return presenters.addresses(name, config.port, reach().announced)


def _qr(text: str) -> Markup:
    """A QR code as an SVG without styles."""
    svg = segno.make(text, error="m").svg_inline(scale=5, border=2, dark="#2b2320", light="#ffffff")
    return Markup(svg)  # noqa: S704  made by segno from an address of ours


async def make_key(request: Request) -> Response:
    """POST /settings/keys: a new API key, shown in the answer and never again."""
    store = service(request).store
    _, secret = await store.run(add_key, store, (await form_fields(request)).get("name", ""))
    return render(await _settings(request, new_key=secret), 201)


async def revoke_key(request: Request) -> Response:
    """POST /settings/keys/{key}/revoke: the key stops working at once."""
    store = service(request).store
    await store.run(store.revoke_key, request.path_params["key"])
    return RedirectResponse("/settings#keys", 303)


async def icon(request: Request) -> Response:
    """GET /favicon.ico: what browsers ask for beside things that are no pages."""
    return FileResponse(FOLDER / "hob.svg")


def routes() -> list[BaseRoute]:
    """Everything under / that people see, and the static files."""
    message = "/chats/{chat:row}/messages/{message:row}"
    return [
        Route("/", home, methods=["GET"]),
        Route("/chats", ask, methods=["POST"]),
        Route("/chats/{chat:row}", chat, methods=["GET"]),
        Route("/chats/{chat:row}/messages", ask, methods=["POST"]),
        Route("/chats/{chat:row}/rename", rename, methods=["POST"]),
        Route("/chats/{chat:row}/delete", delete, methods=["POST"]),
        Route(f"{message}/events", events, methods=["GET"]),
        Route(f"{message}/stop", stop, methods=["POST"]),
        Route(f"{message}/regenerate", regenerate, methods=["POST"]),
        Route("/search", search, methods=["GET"]),
        Route("/settings", settings, methods=["GET"]),
        Route("/settings/keys", make_key, methods=["POST"]),
        Route("/settings/keys/{key:row}/revoke", revoke_key, methods=["POST"]),
        *model_views.routes(),
        Route("/favicon.ico", icon, methods=["GET"]),
        Mount("/static", Assets(), name="static"),
    ]
