"""What the handlers of all pages use: the application, the frame around a page, forms, texts."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol, cast

from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import HTMLResponse

from appliance import ballast
from appliance.config import Settings
from appliance.inference import Inference
from appliance.jobs import Jobs
from appliance.measuring import Measuring
from appliance.models import Models
from appliance.overview import Observer
from appliance.store import Store
from appliance.system import Readiness
from appliance.update.work import Updating
from appliance.workshop import Workshop
from webui import presenters
from webui.pages import Page, Sidebar
from webui.rendering import to_html

LISTED: Final = 200  # chats in the sidebar; search finds the others


class RowConvertor(IntegerConvertor):
    """`{name:row}` in an address: an id as SQLite has them, 64 bits at most; others lead nowhere."""

    regex = "[0-9]{1,18}"


register_url_convertor("row", RowConvertor())


class Service(Protocol):
    """What the handlers use of the application: its `state`."""

    settings: Settings
    store: Store
    models: Models
    inference: Inference
    readiness: Readiness
    observer: Observer
    measuring: Measuring
    jobs: Jobs
    workshop: Workshop
    updating: Updating
    restart: Callable[[], None] | None


def service(request: Request) -> Service:
    """The application that serves this request."""
    return cast(Service, request.app.state)


def render(page: Page, status: int = 200) -> HTMLResponse:
    """A page as a response."""
    return HTMLResponse(to_html(page), status)


def sentence(message: str) -> str:
    """A message as it stands alone: with a capital and a full stop."""
    text = message[:1].upper() + message[1:]
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


async def form_fields(request: Request) -> dict[str, str]:
    """The text fields of a form, lines ended by a newline alone; files are not among them."""
    async with request.form(max_files=0, max_fields=10) as form:
        return {name: value.replace("\r\n", "\n") for name, value in form.items() if isinstance(value, str)}


async def sidebar(request: Request, current: int | None = None, query: str = "") -> Sidebar:
    """The list of chats, `current` marked, with what is being searched for."""
    store = service(request).store
    chats = await store.run(store.chats, LISTED)
    warning = await asyncio.to_thread(ballast.short, service(request).settings.data_dir)
    return presenters.sidebar(chats, datetime.now().astimezone(), current, query, warning)
