"""The backups page: make one, carry it away, look into one, restore it, bring models back."""

import asyncio
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from appliance.backup import create, folder, keys, restore, snapshot, wanted
from appliance.backup.content import DATABASE, Counts
from appliance.backup.create import Request as Wanted
from appliance.backup.folder import Backup
from appliance.backup.header import SUFFIX
from appliance.backup.restore import Prepared
from appliance.errors import BackupError, ConflictError, HobError, InvalidRequestError, NotFoundError
from appliance.library.sticks import ROOTS
from builder.errors import BuildError
from webui import backup_presenters as show
from webui.backup_pages import BackupsPage, RestoreCard, RestoringPage
from webui.responses import Service, form_fields, render, sentence, service, sidebar
from webui.upload import PREFIX, received

FORGOTTEN: Final = 3600.0  # seconds after which what a browser sent in vain is swept away
MOST: Final = 20  # backups of sticks that are listed


async def backups(request: Request) -> Response:
    """GET /backups: everything."""
    return await page(request, done=show.DONE.get(request.query_params.get("done", ""), ""))


async def page(
    request: Request,
    *,
    card: RestoreCard | None = None,
    done: str = "",
    error: HobError | BuildError | None = None,
) -> Response:
    """The page, with what came of the last wish."""
    here = service(request)
    place = folder.of(here.settings.data_dir)
    now = datetime.now().astimezone()
    own = await asyncio.to_thread(folder.backups, place)
    mounted = await asyncio.to_thread(sticks)
    elsewhere = [one for stick in mounted for one in await asyncio.to_thread(folder.backups, stick)]
    last = await asyncio.to_thread(folder.last, place)
    failure = ""
    try:
        key = await asyncio.to_thread(keys.load, place)
    except BackupError as damaged:
        key, failure = None, damaged.explanation
    names = await asyncio.to_thread(here.models.directories)
    lost = wanted.missing(await asyncio.to_thread(wanted.read, here.settings.data_dir), names)
    shown = BackupsPage(
        sidebar=await sidebar(request),
        state=show.state(own, now),
        failure=failure or show.failed(last, now),
        backups=[show.row(backup, now, here=True) for backup in own],
        found=[show.row(backup, now, here=False) for backup in elsewhere[:MOST]],
        sticks=[str(path) for path in mounted if os.access(path, os.W_OK)],
        locked=key is not None and key.portable,
        opens=show.opens(key, now),
        card=card,
        missing=[show.missing_row(one) for one in lost],
        problem=sentence(str(error)) if error else "",
        hint=error.hint if error else "",
        done=done,
    )
    status = 200 if error is None else error.status if isinstance(error, HobError) else 400
    return render(shown, status)


def sticks() -> list[Path]:
    """Sticks and disks that are plugged in."""
    mounts = {
        path for root in ROOTS for depth in ("*", "*/*") for path in root.glob(depth) if path.is_mount()
    }
    return sorted(mounts)[:4]


async def make(request: Request) -> Response:
    """POST /backups/make: one on this machine, or on the stick that the form names."""
    wish = (await form_fields(request)).get("folder", "")
    try:
        to = None
        if wish:
            to = next((path for path in await asyncio.to_thread(sticks) if str(path) == wish), None)
            if to is None:
                raise InvalidRequestError(f"{wish} is no stick", param="folder", hint="Is it plugged in?")
        await asyncio.to_thread(create.create, service(request).settings, Wanted(to=to), quiet)
    except HobError as error:
        return await page(request, error=error)
    return RedirectResponse("/backups?done=" + ("written" if wish else "made"), 303)


async def passphrase(request: Request) -> Response:
    """POST /backups/passphrase: what backups made from now on need."""
    fields = await form_fields(request)
    try:
        if fields.get("passphrase", "") != fields.get("again", ""):
            raise InvalidRequestError("the two passphrases differ", hint="Type it twice in the same way.")
        key = await asyncio.to_thread(keys.of_passphrase, fields.get("passphrase", ""), time.time())
        await asyncio.to_thread(keys.save, folder.of(service(request).settings.data_dir), key)
    except HobError as error:
        return await page(request, error=error)
    return RedirectResponse("/backups?done=passphrase", 303)


async def download(request: Request) -> Response:
    """GET /backups/file?name=: a backup of this machine, if others can read it."""
    backup = await asyncio.to_thread(_own, request, request.query_params.get("name", ""))
    if not backup.header.portable:
        raise ConflictError(
            "only this machine can read this backup", hint="Set a passphrase, then make a new one."
        )
    return FileResponse(backup.path, media_type="application/octet-stream", filename=backup.name)


async def remove(request: Request) -> Response:
    """POST /backups/remove: the one that the form names, for good."""
    name = (await form_fields(request)).get("name", "")
    backup = await asyncio.to_thread(_own, request, name)
    await asyncio.to_thread(backup.path.unlink, missing_ok=True)
    return RedirectResponse("/backups?done=removed", 303)


async def look(request: Request) -> Response:
    """POST /backups/look: read and check a backup, here, on a stick, or sent along; then ask."""
    here = service(request)
    place = folder.of(here.settings.data_dir)
    try:
        if request.headers.get("content-type", "").startswith("multipart/"):
            await asyncio.to_thread(folder.sweep, place, PREFIX, FORGOTTEN)
            async with received(request, place) as upload:
                if not upload.size:
                    raise InvalidRequestError("no file was chosen", hint=f"Backups are files NAME{SUFFIX}.")
                ready = await _prepare(here, upload.path, upload.fields.get("passphrase", ""), upload.name)
        else:
            fields = await form_fields(request)
            path = await asyncio.to_thread(_named, request, fields.get("backup", ""))
            ready = await _prepare(here, path, fields.get("passphrase", ""), path.name)
    except HobError as error:
        return await page(request, error=error)
    return await page(request, card=await asyncio.to_thread(_card, here, ready))


async def take(request: Request) -> Response:
    """POST /backups/restore: put a prepared backup in place; Hob starts anew."""
    here = service(request)
    token = (await form_fields(request)).get("token", "")
    try:
        if any(job.open for job in await here.jobs.list()):
            raise ConflictError("work on models is under way", hint="Wait for it, or cancel it: page Models.")
        await asyncio.to_thread(restore.prepared, here.settings.data_dir, token)
        await asyncio.to_thread(create.keep_present, here.settings, quiet)
        await asyncio.to_thread(restore.commit, here.settings.data_dir, token)
    except HobError as error:
        return await page(request, error=error)
    response = render(RestoringPage(automatic=here.restart is not None))
    response.headers["connection"] = "close"  # what comes next is for the service after this one
    if here.restart is not None:
        here.restart()
    return response


async def bring_back(request: Request) -> Response:
    """POST /backups/models: add a model of the restored backup again."""
    here = service(request)
    name = (await form_fields(request)).get("model", "")
    names = await asyncio.to_thread(here.models.directories)
    listed = await asyncio.to_thread(wanted.read, here.settings.data_dir)
    try:
        for one in wanted.missing(listed, names):
            if one.model.name == name and one.source:
                await here.workshop.add(one.source, name=name)
                break
        else:
            raise NotFoundError(f"{name[:100]!r} is not a model to bring back")
    except (HobError, BuildError) as error:
        return await page(request, error=error)
    return RedirectResponse("/backups?done=adding", 303)


async def _prepare(here: Service, path: Path, secret: str, name: str) -> Prepared:
    """Check a backup, which is called `name` in what goes wrong."""
    try:
        return await asyncio.to_thread(
            restore.prepare, path, here.settings.data_dir, quiet, passphrase=secret
        )
    except HobError as error:
        error.message = error.message.replace(str(path), f"the file {name}")
        error.args = (error.message,)
        raise


def _card(here: Service, ready: Prepared) -> RestoreCard:
    try:
        counts = snapshot.counts(here.settings.data_dir / DATABASE)
    except HobError:
        counts = Counts()
    return show.card(ready, counts, datetime.now().astimezone())


def _own(request: Request, name: str) -> Backup:
    return folder.find(folder.of(service(request).settings.data_dir), name)


def _named(request: Request, value: str) -> Path:
    """The backup that a form names: one of this machine, or of a stick; no other file is ever opened."""
    for stick in sticks():
        for backup in folder.backups(stick):
            if str(backup.path) == value:
                return backup.path
    return _own(request, value).path


def quiet(step: str, fraction: float) -> None:
    """Nobody watches."""


def routes() -> list[Route]:
    """The backups page."""
    return [
        Route("/backups", backups, methods=["GET"]),
        Route("/backups/make", make, methods=["POST"]),
        Route("/backups/passphrase", passphrase, methods=["POST"]),
        Route("/backups/file", download, methods=["GET"]),
        Route("/backups/remove", remove, methods=["POST"]),
        Route("/backups/look", look, methods=["POST"]),
        Route("/backups/restore", take, methods=["POST"]),
        Route("/backups/models", bring_back, methods=["POST"]),
    ]
