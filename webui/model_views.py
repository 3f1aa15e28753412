"""The models pages: what is here, how to add more, and the work that is under way."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from appliance.errors import HobError, NotFoundError
from appliance.hardware.memory import Fit
from appliance.library import archive, space, sticks
from appliance.library.catalogue import catalogue
from appliance.store import Job
from appliance.workshop import Model
from builder.errors import BuildError
from webui import model_presenters as show
from webui.model_pages import JobPage, JobRow, ModelsPage, Place
from webui.responses import form_fields, render, sentence, service, sidebar

if TYPE_CHECKING:
    from appliance.library.add import Plan

LISTEN: Final = 2.0  # seconds for other Hobs to answer
RECENT: Final = 8  # pieces of work that the page shows; those that are open come in any case


async def models(request: Request) -> Response:
    """GET /models: everything. `?hobs` listens for other Hobs first."""
    hobs = None
    if "hobs" in request.query_params:
        from appliance.discovery.browse import browse  # a tenth of a second that only a LAN is worth

        hobs = [Place(found.host, found.version) for found in await browse(LISTEN)]
    return await page(request, hobs=hobs)


async def page(
    request: Request,
    *,
    source: str = "",
    plan: "Plan | None" = None,
    hobs: list[Place] | None = None,
    error: HobError | BuildError | None = None,
) -> Response:
    """The page, with what came of the last wish."""
    here = service(request)
    workshop, folder = here.workshop, here.settings.data_dir
    installed = await workshop.models()
    jobs = await here.jobs.list()
    rows = [job_row(request, job) for number, job in enumerate(jobs) if number < RECENT or job.open]
    found = await asyncio.to_thread(sticks.find)
    spare = await workshop.spare()
    shown = ModelsPage(
        sidebar=await sidebar(request),
        models=[show.library_row(model, await fit(request, model)) for model in installed],
        jobs=rows,
        busy=any(row.open for row in rows),
        catalogue=[show.known_row(known, here.settings.context, spare, installed) for known in catalogue()],
        sticks=[show.stick(model) for model in found],
        folders=[str(path) for path in await asyncio.to_thread(writable)],
        hobs=hobs,
        plan=show.plan_card(source, plan) if plan else None,
        source=source,
        problem=sentence(str(error)) if error else "",
        hint=error.hint if error else "",
        space=f"{space.size(await asyncio.to_thread(space.free, folder))} are free for models.",
    )
    status = 200 if error is None else error.status if isinstance(error, HobError) else 400
    return render(shown, status)


async def fit(request: Request, model: Model) -> Fit | None:
    """Whether a model that is not loaded fits."""
    if model.loaded or model.card.problem:
        return None
    return await service(request).workshop.fit(model.card.name)


def job_row(request: Request, job: Job) -> JobRow:
    """A piece of work with its progress."""
    return show.job_row(job, service(request).jobs.progress(job.id))


def writable() -> list[Path]:
    """Sticks and disks that are plugged in and can be written to."""
    mounts = {
        path
        for root in sticks.ROOTS
        for depth in ("*", "*/*")
        for path in root.glob(depth)
        if path.is_mount() and os.access(path, os.W_OK)
    }
    return sorted(mounts)[:4]


async def look(request: Request) -> Response:
    """POST /models/look: what adding a source would mean."""
    fields = await form_fields(request)
    source, key = fields.get("source", "").strip(), fields.get("key", "").strip()
    try:
        plan = await service(request).workshop.look(source, key)
    except (HobError, BuildError) as error:
        return await page(request, source=source, error=error)
    if key:  # it would have to travel through the page again: what was looked at is added at once
        return await add_now(request, source, key)
    return await page(request, source=source, plan=plan)


async def add(request: Request) -> Response:
    """POST /models: add a source."""
    fields = await form_fields(request)
    name, force = fields.get("name", "").strip(), bool(fields.get("force"))
    return await add_now(request, fields.get("source", ""), name=name, force=force)


async def add_now(
    request: Request, source: str, key: str = "", *, name: str = "", force: bool = False
) -> Response:
    """Queue the work, and show it."""
    try:
        await service(request).workshop.add(source, key, name=name, force=force)
    except (HobError, BuildError) as error:
        return await page(request, source=source, error=error)
    return RedirectResponse("/models#work", 303)


async def change(request: Request) -> Response:
    """POST /models/VERB: default, pin, verify, compile, export or remove the model that the form names."""
    fields = await form_fields(request)
    workshop, name = service(request).workshop, fields.get("model", "")
    verb = request.path_params["verb"]
    try:
        match verb:
            case "default":
                await workshop.choose(name)
            case "pin":
                await workshop.pin(name, bool(fields.get("pinned")))
            case "remove":
                await workshop.remove(name)
            case "verify":
                await workshop.verify(name)
            case "compile":
                await workshop.compile(name)
            case "export":
                await workshop.export(name, fields.get("folder", ""))
            case _:
                raise NotFoundError(f"nothing is called {verb}")
    except (HobError, BuildError) as error:
        return await page(request, error=error)
    return RedirectResponse("/models" + ("#work" if verb in ("verify", "compile", "export") else ""), 303)


async def file(request: Request) -> Response:
    """GET /models/file?model=: a model as one .hobmodel file."""
    kept, directory = await service(request).workshop.packed(request.query_params.get("model", ""))
    name = f"{kept.name.replace('/', '-')}{archive.SUFFIX}"
    return StreamingResponse(
        pieces(archive.stream(kept, directory)),
        media_type="application/octet-stream",
        headers={
            "content-length": str(archive.size(kept)),
            "content-disposition": f'attachment; filename="{name}"',
        },
    )


async def pieces(source: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of an iterator, each made on a thread: reading a slow disk must not hold up the service."""
    while (piece := await asyncio.to_thread(next, source, None)) is not None:
        yield piece


async def job(request: Request) -> Response:
    """GET /jobs/{job}: one piece of work with what it said."""
    jobs, number = service(request).jobs, request.path_params["job"]
    found = await jobs.get(number)
    return render(JobPage(await sidebar(request), [job_row(request, found)], await jobs.log(number)))


async def cancel(request: Request) -> Response:
    """POST /jobs/{job}/cancel: end it; the models are as before."""
    await service(request).jobs.cancel(request.path_params["job"])
    return RedirectResponse("/models#work", 303)


async def again(request: Request) -> Response:
    """POST /jobs/{job}/again: start it once more."""
    try:
        await service(request).jobs.again(request.path_params["job"])
    except HobError as error:
        return await page(request, error=error)
    return RedirectResponse("/models#work", 303)


def routes() -> list[Route]:
    """The models pages."""
    return [
        Route("/models", models, methods=["GET"]),
        Route("/models", add, methods=["POST"]),
        Route("/models/look", look, methods=["POST"]),
        Route("/models/file", file, methods=["GET"]),
        Route("/models/{verb:str}", change, methods=["POST"]),
        Route("/jobs/{job:row}", job, methods=["GET"]),
        Route("/jobs/{job:row}/cancel", cancel, methods=["POST"]),
        Route("/jobs/{job:row}/again", again, methods=["POST"]),
    ]
