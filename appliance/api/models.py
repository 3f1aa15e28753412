"""What programs may know of the models here and of the work on them. To change anything takes a person:
the page Models, or `hob model` on the machine itself.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance.jobs import Jobs, Progress
from appliance.library.catalogue import catalogue
from appliance.store import Job
from appliance.workshop import Model, Workshop


def routes(workshop: Workshop, jobs: Jobs, context: int) -> list[Route]:
    """GET /api/models, /api/catalogue and /api/jobs, for callers that the gate knows."""

    async def models(request: Request) -> Response:
        return JSONResponse({"models": [model_json(model) for model in await workshop.models()]})

    async def known(request: Request) -> Response:
        entries = [
            {
                "name": entry.name,
                "source": entry.address,
                "licence": entry.licence,
                "download": entry.download,
                "good_for": entry.good_for,
                "languages": list(entry.languages),
                "gated": entry.gated,
                "memory": entry.fit(context).needed,
                "fit": entry.fit(context).verdict,
            }
            for entry in catalogue()
        ]
        return JSONResponse({"models": entries})

    async def work(request: Request) -> Response:
        return JSONResponse({"jobs": [job_json(job, jobs.progress(job.id)) for job in await jobs.list()]})

    return [
        Route("/api/models", models, methods=["GET"]),
        Route("/api/catalogue", known, methods=["GET"]),
        Route("/api/jobs", work, methods=["GET"]),
    ]


def model_json(model: Model) -> dict[str, Any]:
    """An installed model: its card, and what is true of it now."""
    told: dict[str, Any] = model.card.model_dump()
    told |= {"default": model.default, "loaded": model.loaded, "pinned": model.pinned}
    kept = model.entry.manifest if model.entry else None
    if kept is not None and model.entry is not None:
        told |= {
            "version": model.entry.version,
            "licence": kept.licence,
            "origin": kept.origin.source,
            "revision": kept.origin.revision,
        }
    return told


def job_json(job: Job, progress: Progress | None) -> dict[str, Any]:
    """A piece of work, and how far it is while it runs. What it was given on the command line stays here."""
    told: dict[str, Any] = {
        "id": job.id,
        "verb": job.verb,
        "subject": job.subject,
        "state": job.state,
        "model": job.model,
        "error": job.error,
        "hint": job.hint,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
    }
    if progress is not None:
        told |= {
            "step": progress.step,
            "fraction": progress.fraction,
            "bytes": progress.bytes,
            "total": progress.total,
        }
    return told
