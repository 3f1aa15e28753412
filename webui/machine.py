"""The system page: what computes here, how fast, and how much room there is. Handlers and texts."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from appliance.hardware.tier import FLUENT
from appliance.overview import Device, Overview, Room, Speeds
from webui.pages import DeviceRow, Fact, SystemPage
from webui.presenters import size
from webui.responses import render, service, sidebar

KINDS: Final = {"cuda": "CUDA", "metal": "Metal", "vulkan": "Vulkan", "cpu": "Processor"}
WHERE: Final = KINDS | {"cpu": "the processor"}
ENGINES: Final = {"native": "Hob's own", "mlc": "MLC-LLM's", "upstream": "none; other servers answer"}


async def system(request: Request) -> Response:
    """GET /system: the machine at this moment."""
    overview = await service(request).observer.look()
    now = datetime.now().astimezone()
    return render(
        SystemPage(
            sidebar=await sidebar(request),
            machine=list(machine(overview)),
            devices=[device(one) for one in overview.devices],
            failures=list(failures(overview)),
            speed=speed(overview.speed),
            measures=list(measures(overview, now)),
            problem=overview.speed.problem,
            due=overview.speed.due,
            engine=list(engine(overview)),
        )
    )


async def measure(request: Request) -> Response:
    """POST /system/measure: measure anew at the next quiet moment."""
    service(request).measuring.ask()
    return RedirectResponse("/system#speed", 303)


def routes() -> list[Route]:
    """The page and its one action."""
    return [
        Route("/system", system, methods=["GET"]),
        Route("/system/measure", measure, methods=["POST"]),
    ]


def machine(overview: Overview) -> Iterator[Fact]:
    """What the machine is and how full it is."""
    hardware = overview.hardware
    if hardware.board:
        yield Fact("Machine", hardware.board)
    cores = f"{hardware.cores} core{'s' if hardware.cores > 1 else ''}"
    yield Fact("Processor", f"{hardware.cpu}, {cores}")
    if cards := [gpu.name for gpu in hardware.gpus if gpu.kind != "software"]:
        yield Fact("Graphics", ", ".join(cards))
    share = " of what this container may use" if overview.memory.limited else ""
    yield Fact("Memory", room(overview.memory) + share)
    yield Fact("Disk", f"{room(overview.disk)}, under {overview.disk.folder}")


def room(space: Room) -> str:
    """ "6.1 GB free of 8.4 GB"."""
    return f"{size(space.available)} free of {size(space.total)}"


def device(one: Device) -> DeviceRow:
    """A device with its verdict, as a sentence."""
    reason = one.reason[:1].upper() + one.reason[1:]
    text = reason if reason.endswith((".", "!", "?")) else f"{reason}."
    return DeviceRow(KINDS[one.kind], one.name, one.state, text, one.hint)


def failures(overview: Overview) -> Iterator[str]:
    """What did not run where, but for what the devices' own lines say."""
    told = {one.reason for one in overview.devices}
    for one in overview.failures:
        if f"does not run {one.model}: {one.reason}" not in told:
            yield f"{one.model} on {one.target}: {one.reason}"


def speed(known: Speeds) -> str:
    """The tier in a sentence; empty while it is not known."""
    if known.tier is None or known.fluent is None:
        return ""
    billions = f"{known.fluent:.1f}" if known.fluent < 10 else f"{known.fluent:.0f}"
    return (
        f"{known.tier.capitalize()}: models of up to about {billions} billion weights in four bits write"
        f" {FLUENT:.0f} tokens a second, faster than people read."
    )


def measures(overview: Overview, now: datetime) -> Iterator[Fact]:
    """The figures behind it, and those of real answers. `now` is in the local time zone."""
    known = overview.speed
    if known.date is not None:
        when = datetime.fromtimestamp(known.date, now.tzinfo)
        yield Fact("Measured", f"{when:%-d %B %Y, %H:%M}, on {WHERE[known.target.partition('-')[0]]}")
    if known.bandwidth is not None:
        yield Fact("Memory is read at", f"{known.bandwidth:.1f} GB/s")
    if known.decode and known.prefill:
        yield Fact(known.model, f"reads {known.prefill:,.0f} and writes {known.decode:,.0f} tokens/s")
    for one in overview.answers:
        count = f"median of {one.answers} answer{'s' if one.answers > 1 else ''}"
        read = f"read {one.prefill:,.0f} and " if one.prefill else ""
        yield Fact(one.model, f"{read}wrote {one.decode:,.1f} tokens/s, {count}")


def engine(overview: Overview) -> Iterator[Fact]:
    """The service itself."""
    state = overview.engine
    yield Fact("Version", overview.version)
    yield Fact("Running for", duration(overview.uptime))
    yield Fact("Engine", ENGINES.get(state.kind, state.kind))
    if state.model:
        where = WHERE.get(state.target.partition("-")[0], "")
        yield Fact("Loaded", f"{state.model}{f' on {where}' if where else ''}, {size(state.memory)}")
    elif state.status == "ok":
        yield Fact("Loaded", "nothing; the next question brings its model back")
    else:
        yield Fact("Loaded", f"nothing: {state.reason}")


def duration(seconds: float) -> str:
    """For people: "3 days", "2 hours", "1 minute"."""
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'s' if count > 1 else ''}"
    return "less than a minute"
