"""From models and work on them to what the models pages show: pure functions, texts for people included."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from appliance.hardware.memory import Fit
from appliance.jobs import Progress
from appliance.library.catalogue import Known
from appliance.library.fit import sentence
from appliance.library.shelf import Entry
from appliance.library.space import size
from appliance.library.sticks import Found
from appliance.store import Job
from appliance.workshop import Model, with_spare
from webui.model_pages import JobRow, KnownRow, LibraryRow, Place, PlanCard
from webui.presenters import model_row

if TYPE_CHECKING:
    from appliance.library.add import Plan

DOING: Final[Mapping[str, str]] = {
    "add": "Adding",
    "copy": "Copying",
    "verify": "Checking",
    "compile": "Compiling",
    "export": "Writing out",
}
ENDS: Final[Mapping[str, str]] = {
    "waiting": "waits for the work before it",
    "running": "running",
    "done": "done",
    "failed": "failed",
    "cancelled": "cancelled",
    "interrupted": "interrupted",
}


def job_row(job: Job, progress: Progress | None) -> JobRow:
    """A piece of work; `progress` is that of a running one."""
    return JobRow(
        id=job.id,
        title=f"{DOING.get(job.verb, job.verb)} {job.subject}",
        state=job.state,
        status=ENDS[job.state] if progress is None else status(progress),
        percent=None if progress is None else round(100 * progress.fraction),
        problem=job.error,
        hint=job.hint,
        model=job.model,
    )


def status(progress: Progress) -> str:
    """What runs just now: "fetching weights · 12 MB of 1.2 GB · 3 MB/s · 6 minutes left"."""
    parts = [progress.step]
    if progress.bytes is not None and progress.total:
        parts.append(f"{size(progress.bytes)} of {size(progress.total)}")
    if progress.rate >= 1000:
        parts.append(f"{size(round(progress.rate))}/s")
    if progress.remaining is not None:
        parts.append(f"{duration(progress.remaining)} left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Roughly, for people: "20 seconds", "6 minutes", "3 hours"."""
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * length:
            return f"{round(seconds / length)} {unit}s"
    count = max(1, round(seconds))
    return f"{count} second{'s' if count > 1 else ''}"


def library_row(model: Model, fit: Fit | None) -> LibraryRow:
    """An installed model; `fit` is None for one that is loaded or damaged."""
    shown = model_row(model.card)
    marks = {
        "default": model.default,
        "in memory": model.loaded,
        "kept in memory": model.pinned,
        "built in": model.card.builtin,
    }
    return LibraryRow(
        name=model.card.name,
        facts="" if model.card.problem else shown.facts,
        origin=origin(model.entry),
        note=shown.note,
        problem=shown.problem,
        fit="" if fit is None or fit.fits else sentence(fit),
        marks=[name for name, true in marks.items() if true],
        default=model.default,
        pinned=model.pinned,
        builtin=model.card.builtin,
    )


def origin(entry: Entry | None) -> str:
    """Where a model came from, with its licence and version; empty where nobody wrote that down."""
    if entry is None or entry.manifest is None:
        return ""
    came = entry.manifest.origin
    places = {
        "hub": f"from {came.source} on Hugging Face",
        "url": f"from {came.source}",
        "hob": f"from {came.source}",
        "file": f"from {came.source}",
        "archive": f"from {came.source}",
    }
    parts = [places[came.kind]]
    if came.revision:
        parts.append(f"revision {came.revision[:12]}")
    parts.append(f"licence {entry.manifest.licence}" if entry.manifest.licence else "licence not told")
    parts.append(f"version {entry.version}")
    return ", ".join(parts)


def known_row(known: Known, context: int, spare: int, installed: Sequence[Model]) -> KnownRow:
    """A model of the catalogue, held against this machine with `spare` bytes of memory to come."""
    fit = with_spare(known.fit(context), spare)
    facts = [
        f"{size(known.download)} to fetch",
        f"{size(fit.needed)} of memory",
        f"licence {licence(known.licence)}",
    ]
    if known.gated:
        facts.append("its publisher asks for an account first")
    return KnownRow(
        name=known.name,
        source=known.address,
        good_for=known.good_for[:1].upper() + known.good_for[1:],
        languages=", ".join(known.languages),
        facts=", ".join(facts),
        verdict=VERDICTS[fit.verdict],
        fits=fit.verdict != "never",
        installed=any(came_from(model, known.source) for model in installed),
    )


def licence(expression: str) -> str:
    """An SPDX expression for people: what SPDX does not list goes by its own name."""
    return expression.removeprefix("LicenseRef-")


VERDICTS: Final[Mapping[str, str]] = {
    "fits": "Fits",
    "not now": "Fits when other programs end",
    "never": "Too large for this machine",
}


def came_from(model: Model, repository: str) -> bool:
    """Whether a model was fetched from a repository of the hub."""
    kept = model.entry.manifest if model.entry else None
    return kept is not None and kept.origin.kind == "hub" and kept.origin.source == repository


def plan_card(source: str, plan: "Plan") -> PlanCard:
    """What adding a source means."""
    form = "as it is" if not plan.quantization else f"converted from {plan.form} to {plan.quantization}"
    facts = [
        ("Where", plan.source),
        ("Form", form),
        ("Licence", plan.licence or "not told: look at its publisher's page"),
        ("Disk", f"{size(plan.stored)}, meanwhile {size(plan.disk)}"),
    ]
    if plan.fetch:
        facts.insert(2, ("To fetch", size(plan.fetch)))
    return PlanCard(source, plan.name, facts, plan.note, plan.fit.verdict != "never")


def stick(found: Found) -> Place:
    """A model on a stick."""
    return Place(str(found.path), size(found.size))
