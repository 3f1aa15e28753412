"""The updates page: what runs, bringing a newer version in, and going back. Handlers and texts."""

import asyncio
import re
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from appliance.admin import client
from appliance.admin.messages import DescribeUpdates, Done, GoBack, Reboot, Updates
from appliance.errors import HobError, InvalidRequestError
from appliance.library import space
from appliance.update import arrivals
from appliance.update.arrivals import SUFFIX
from appliance.update.story import story
from appliance.update.work import Updating
from webui.pages import Fact
from webui.presenters import size
from webui.responses import form_fields, render, sentence, service, sidebar
from webui.update_pages import Stick, UpdatesPage, Work
from webui.upload import received

BAD: Final = ("failed", "returned")


async def updates(request: Request) -> Response:
    """GET /updates: the device at this moment."""
    return await page(request)


async def page(request: Request, *, note: str = "", error: HobError | None = None) -> Response:
    """The page, with what came of the last wish."""
    here, folder = service(request), service(request).settings.data_dir
    updating = here.updating
    told, refused = (None, None) if updating.busy or updating.restarting else await ask()
    problem = error or refused
    if problem is None and updating.outcome is not None and updating.outcome.problem:
        problem = HobError(updating.outcome.problem, hint=updating.outcome.hint)
    shown = UpdatesPage(
        sidebar=await sidebar(request),
        facts=facts(told) if told else [],
        story=story(told) if told else "",
        story_bad=told is not None and told.state in BAD,
        waiting=told is not None and told.next != told.slot and not told.on_trial,
        back=(told.other or "the version before") if told and told.can_go_back else "",
        work=work(updating),
        restarting=updating.restarting,
        trying=told.version if told and told.on_trial else "",
        sticks=[
            Stick(str(found.path), size(found.size)) for found in await asyncio.to_thread(arrivals.sticks)
        ],
        url=here.settings.update_url,
        installs=here.settings.update_install,
        note=note,
        room=size(max(0, await asyncio.to_thread(space.free, folder) - space.RESERVE)),
        problem=sentence(problem.message) if problem else "",
        hint=problem.hint if problem else "",
    )
    return render(shown, error.status if error else 200)


async def ask() -> tuple[Updates | None, HobError | None]:
    """What runs here, or why that cannot be told."""
    try:
        return await client.ask(DescribeUpdates(), Updates), None
    except HobError as error:
        return None, error


def facts(here: Updates) -> list[Fact]:
    """What runs and what else is here."""
    found = [
        Fact("Runs", f"{here.version}{', on trial' if here.on_trial else ''}"),
        Fact("From", f"slot {here.slot.upper()}"),
        Fact("Device", here.compatible),
    ]
    if here.other:
        found.insert(2, Fact("Other slot", here.other))
    return found


def work(updating: Updating) -> Work | None:
    """What is under way."""
    progress = updating.progress
    if not updating.busy or progress is None:
        return None
    status = progress.step
    if progress.bytes is not None and progress.total:
        status += f", {size(progress.bytes)} of {size(progress.total)}"
    return Work(f"Installing {updating.subject}", sentence(status), int(progress.fraction * 100))


async def install(request: Request) -> Response:
    """POST /updates: install from a stick or an address, or what the address in the settings offers."""
    source = (await form_fields(request)).get("source", "").strip()
    try:
        if source and not source.startswith(("http://", "https://")):
            offered = {str(found.path) for found in await asyncio.to_thread(arrivals.sticks)}
            if source not in offered:
                raise InvalidRequestError(f"{source} is not on a stick", hint="Is it still plugged in?")
        subject = source.rpartition("/")[2] or "the newest version"
        begin(request, subject, *(["--", source] if source else []))
    except HobError as error:
        return await page(request, error=error)
    return RedirectResponse("/updates#work", 303)


async def upload(request: Request) -> Response:
    """POST /updates/upload: install the file that comes with the form."""
    updating = service(request).updating
    folder = arrivals.folder(service(request).settings.data_dir)
    try:
        updating.must_be_idle()
        async with received(request, folder) as brought:
            if not brought.size:
                raise InvalidRequestError("no file was chosen", hint=f"Choose one that ends in {SUFFIX}.")
            file = await asyncio.to_thread(keep, brought.path, folder, brought.name)
            begin(request, file.name, "--", str(file))
    except HobError as error:
        return await page(request, error=error)
    return RedirectResponse("/updates#work", 303)


def keep(file: Path, folder: Path, name: str) -> Path:
    """Give an uploaded file a name of its own, near to the one it had."""
    stem = re.sub(r"[^\w.+-]", "-", name.rpartition("/")[2].removesuffix(SUFFIX)).lstrip(".-")[:80]
    return file.rename(folder / f"{stem or 'update'}{SUFFIX}")


async def look(request: Request) -> Response:
    """POST /updates/look: ask the address in the settings."""
    from appliance.update.newest import newest  # an HTTP client, which a page does not need

    settings = service(request).settings
    try:
        here = await client.ask(DescribeUpdates(), Updates)
        version = await asyncio.to_thread(newest, settings.update_url, here.compatible, here.version)
    except HobError as error:
        return await page(request, error=error)
    return await page(request, note=f"{version} is there." if version else "There is nothing newer.")


async def restart(request: Request) -> Response:
    """POST /updates/restart: restart the device, which tries what waits for it."""
    return await going_down(request)


async def back(request: Request) -> Response:
    """POST /updates/back: restart into the other slot."""
    try:
        await client.ask(GoBack(), Done)
    except HobError as error:
        return await page(request, error=error)
    return await going_down(request)


async def going_down(request: Request) -> Response:
    """Restart, and lead to a page that waits for the device to come back."""
    updating = service(request).updating
    try:
        updating.must_be_idle()
        await client.ask(Reboot(), Done)
    except HobError as error:
        return await page(request, error=error)
    updating.restarting = True
    return RedirectResponse("/updates#work", 303)


def begin(request: Request, subject: str, *arguments: str) -> None:
    """Start `hob update ARGUMENTS`, where there is somebody to install it.

    Raises:
        AdminError: nothing is updated here.
        ConflictError: an update is under way.
    """
    if not client.present():
        raise client.absent()
    service(request).updating.start(subject, *arguments)


def routes() -> list[Route]:
    """The page and what can be done on it."""
    return [
        Route("/updates", updates, methods=["GET"]),
        Route("/updates", install, methods=["POST"]),
        Route("/updates/upload", upload, methods=["POST"]),
        Route("/updates/look", look, methods=["POST"]),
        Route("/updates/restart", restart, methods=["POST"]),
        Route("/updates/back", back, methods=["POST"]),
    ]
