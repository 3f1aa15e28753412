"""The composition root: makes every part once and wires them into an ASGI application."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance import ballast
from appliance.api import account, library, openai, problem, system
from appliance.api import models as models_api
from appliance.config import Settings
from appliance.engine.base import Engine
from appliance.engine.choice import engine_kind, make_engine
from appliance.errors import HobError
from appliance.inference import Inference
from appliance.jobs import Jobs
from appliance.measuring import Measuring
from appliance.models import Models
from appliance.overview import Observer
from appliance.residency import Pins, keep
from appliance.security import Gate, SecurityMiddleware, caller
from appliance.security.headers import harden
from appliance.store import Store
from appliance.system import Readiness, Watcher
from appliance.update.work import Updating
from appliance.workshop import Workshop
from webui import backups, device, machine, updates, views

log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    engine: Engine | None = None,
    watcher: Watcher | None = None,
) -> Starlette:
    """The whole service. It comes up even when no model can run; /healthz and the page then say why.

    `engine` may still be starting; None makes one. It is closed with the service. `watcher` is told how the
    service comes up. `app.state` has `settings`, `store`, `models`, `inference`, `gate`.

    Raises:
        StoreError: the database cannot be opened.
        SettingsError: a file that the settings name cannot be read.
    """
    ballast.throw_off(settings.data_dir)
    store = Store(settings.data_dir / "hob.db")
    models = Models(settings)
    own = make_engine(settings) if engine is None else None
    engine = own or engine
    assert engine is not None
    watcher = watcher or Watcher()
    upstreams = None
    if settings.upstreams:
        from appliance.upstream.directory import Upstreams  # an HTTP client, which most homes do not need

        upstreams = Upstreams(settings.upstreams)
    readiness = Readiness(models, engine, watcher, upstreams)
    inference = Inference(models, None if settings.engine == "upstream" else engine, store, upstreams)
    jobs = Jobs(store, settings)
    pins = Pins(store)
    updating = Updating(settings)
    workshop = Workshop(settings, models, jobs, pins, readiness)
    measuring = Measuring(models, engine, settings.data_dir, settings.threads)
    observer = Observer(settings, models, engine, engine_kind(settings), readiness, measuring, store)
    gate = Gate.open(settings, store)

    def named(host: str) -> None:
        gate.hosts.announced(host)
        watcher.named(host)

    async def end_streams() -> None:
        """End all answers, so that no open stream holds up the shutdown."""
        await inference.close()
        await engine.close()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if interrupted := await store.run(store.mark_interrupted):
            log.warning("%d answers were interrupted by the end of the last run", interrupted)
        # Not waited for: the service answers from its first moment, if only that it is starting.
        # An engine that does not start goes on trying; /healthz tells.
        tasks = [asyncio.create_task(own.start())] if own else []
        if upstreams:
            upstreams.start()
        readiness.start()
        await jobs.start()
        await pins.load()
        tasks.append(asyncio.create_task(keep(readiness, pins.__contains__, settings.unload_after)))
        tasks.append(asyncio.create_task(measuring.run()))
        tasks.append(asyncio.create_task(ballast.keep(settings.data_dir)))
        if settings.lan:
            from appliance.discovery.announce import Announcer  # a tenth of a second that only a LAN is worth

            announcer = Announcer(settings.name, settings.port, on_host=named)
            tasks.append(asyncio.create_task(announcer.run()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await readiness.close()
            await jobs.close()
            await updating.close()
            await end_streams()
            if upstreams:
                await upstreams.close()
            store.close()

    async def healthz(request: Request) -> Response:
        health = await readiness.health()
        # Strangers learn that Hob lives, and no more: reasons name files.
        shown = asdict(health) if caller(request).known else {"status": health.status}
        if health.status == "ok":
            return JSONResponse(shown)
        return JSONResponse(shown, 503, {"retry-after": "1"})

    app = Starlette(
        routes=[
            Route("/healthz", healthz, methods=["GET"]),
            *openai.routes(inference),
            *library.routes(models.shelf),
            *models_api.routes(workshop, jobs, settings.context),
            *system.routes(observer),
            *account.routes(gate),
            *views.routes(),
            *machine.routes(),
            *backups.routes(),
            *updates.routes(),
            *device.routes(),
        ],
        middleware=[
            Middleware(SecurityMiddleware, gate=gate, max_body=settings.max_body, refuse=explain),
        ],
        exception_handlers={
            HobError: _hob_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _crash,
        },
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.store = store
    app.state.models = models
    app.state.inference = inference
    app.state.gate = gate
    app.state.readiness = readiness
    app.state.upstreams = upstreams
    app.state.jobs = jobs
    app.state.pins = pins
    app.state.updating = updating
    app.state.workshop = workshop
    app.state.measuring = measuring
    app.state.observer = observer
    app.state.end_streams = end_streams
    app.state.restart = None  # whoever serves this knows how, if anybody does
    return app


def explain(connection: HTTPConnection, error: HobError) -> Response:
    """An error in the shape its reader expects: JSON for programs, a page for people."""
    path = connection.scope["path"]
    if path in {"/healthz", "/v1"} or path.startswith(("/v1/", "/api/")):
        return problem.response(error)
    return views.error_page(connection, error)


async def _hob_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HobError)
    return explain(request, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = explain(request, problem.from_http(error))
    response.headers.update(error.headers or {})
    return response


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads this; 499 is what nginx logs for it."""
    return Response(status_code=499)


async def _crash(request: Request, error: Exception) -> Response:
    """A fault of ours. The server logs it with its traceback. Starlette answers it outside the middleware."""
    response = explain(request, HobError("something went wrong inside Hob", hint="Its log has the details."))
    harden(response.headers, private=True, trustworthy=False)
    return response
