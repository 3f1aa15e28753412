"""What `hob doctor` looks at: each check is a small function that returns findings with the next step."""

import asyncio
import importlib.metadata
import importlib.util
import ipaddress
import os
import shutil
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil

from appliance.config import Settings
from appliance.doctor.compute import devices, failures, running
from appliance.doctor.finding import Finding
from appliance.domain import Frozen, Hardware
from appliance.engine.choice import engine_kind
from appliance.hardware.devices import Candidate, candidates
from appliance.hardware.memory import ENGINE_OVERHEAD, SERVICE_OVERHEAD, Memory, fits, kv_bytes, largest_model
from appliance.hardware.tier import Measurement
from builder.compile.mlc import MLCDirectory
from builder.errors import BuildError

FIT_HINTS = {
    "fits": "",
    "not now": "Close other programs, or choose a smaller model or context.",
    "never": "Choose a smaller model or context.",
    "damaged": "Remove the folder and install the model again.",
}

# Room for a compiled library and the chats; below it SQLite and the compiler fail in unclear ways.
DISK_MINIMUM = 500 * 2**20


class ModelFit(Frozen):
    """Whether an installed model fits the memory that is free now; bytes needed, or the damage found.

    `verdict` is `memory.Fit.verdict`, or "damaged".
    """

    name: str
    fits: bool
    needed: int
    detail: str
    verdict: Literal["fits", "not now", "never", "damaged"] = "fits"


class Report(Frozen):
    """Everything `hob doctor` says.

    Attributes:
        target: what is compiled for the processor.
        devices: what computes, first the one that is tried first, and why others are not.
        measured: how fast this machine was found to be; None where it never was measured.
    """

    hardware: Hardware
    target: str
    devices: tuple[Candidate, ...]
    measured: Measurement | None
    largest_model_billion: float
    models: tuple[ModelFit, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """No finding is a problem."""
        return all(finding.status != "problem" for finding in self.findings)


def examine(
    settings: Settings,
    hardware: Hardware,
    target: str,
    models: dict[str, Path],
    room: Memory,
    measured: Measurement | None = None,
) -> Report:
    """Run every check.

    Args:
        target: what is compiled for the processor.
        models: installed models' directories by name.
        room: the memory there is for use.
    """
    told = running(settings)
    # A model that is loaded gives way to the next one.
    held = int(told.get("engine", {}).get("memory", 0))
    reachable = replace(room, available=min(room.total, room.available + held))
    weighed = tuple(model_fit(name, path, settings, reachable) for name, path in models.items())
    found = candidates(hardware, settings.devices)
    return Report(
        hardware=hardware,
        target=target,
        devices=found,
        measured=measured,
        largest_model_billion=round(largest_model(reachable.available), 1),
        models=weighed,
        findings=(
            *runtime(),
            *engine(settings),
            linker(),
            torch(),
            *devices(found),
            *storage(settings),
            memory(reachable),
            *models_found(weighed),
            port(settings),
            *upstreams(settings),
            *failures(told),
        ),
    )


def model_fit(name: str, path: Path, settings: Settings, room: Memory) -> ModelFit:
    """Weigh one installed model against free memory: weights, KV cache for its context, the processes."""
    try:
        directory = MLCDirectory.open(path)
    except BuildError as error:
        return ModelFit(name=name, fits=False, needed=0, detail=f"damaged: {error}", verdict="damaged")
    context = min(settings.context, int(directory.config["context_window_size"]))
    weights = sum(tensor.nbytes for tensor in directory.tensors.values())
    fit = fits(weights, kv_bytes(directory.config, context), room.available, room.total)
    return ModelFit(
        name=name,
        fits=fit.fits,
        needed=fit.needed,
        detail=f"needs {fit.needed / 2**20:,.0f} MiB with {context:,} tokens of context, "
        f"{room.available / 2**20:,.0f} MiB are free",
        verdict=fit.verdict,
    )


def runtime() -> Iterator[Finding]:
    """The runtime libraries of the apache-tvm wheel, looked for without importing the compiler."""
    spec = importlib.util.find_spec("tvm")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    libraries = list(folder.rglob("libtvm_runtime.*")) if folder else []
    if libraries:
        version = importlib.metadata.version("apache-tvm")
        yield Finding(check="engine runtime", status="ok", detail=f"apache-tvm {version}")
    else:
        yield Finding(
            check="engine runtime",
            status="problem",
            detail="the apache-tvm wheel is missing or has no runtime library",
            hint="Install it again: pip install --force-reinstall apache-tvm==0.27.0.post1",
        )


def engine(settings: Settings) -> Iterator[Finding]:
    """MLC-LLM, where it is to run the models; a word on it where it is not, but could."""
    installed = importlib.util.find_spec("mlc_llm") is not None
    if settings.engine == "mlc" and not installed:
        yield Finding(
            check="engine",
            status="problem",
            detail='engine = "mlc", but MLC-LLM is not installed',
            hint='Install it, as docs/engines.md says, or set engine = "auto".',
        )
    elif installed:
        detail = f"MLC-LLM is installed; the engine of this Hob is {engine_kind(settings)}"
        yield Finding(check="engine", status="ok", detail=detail)


def upstreams(settings: Settings) -> Iterator[Finding]:
    """Every address of other servers, asked once, and keys that travel where others may read them."""
    if not settings.upstreams:
        return
    from appliance.upstream.directory import examine as look  # an HTTP client, for this alone

    for state in asyncio.run(look(settings.upstreams)):
        what = f"upstream {state.upstream}"
        if state.problem:
            yield Finding(
                check=what,
                status="warning",
                detail=f"{state.url}: {state.problem}",
                hint=state.hint or "Its models wait until it answers; everything else works.",
            )
        else:
            count = f"{state.models} model{'' if state.models == 1 else 's'}"
            yield Finding(check=what, status="ok", detail=f"{state.url}: {count}")
    for upstream in settings.upstreams:
        for url in upstream.urls:
            parts = urlsplit(url)
            if upstream.key_file and parts.scheme == "http" and not _loopback(parts.hostname or ""):
                yield Finding(
                    check=f"upstream {upstream.name}",
                    status="warning",
                    detail=f"its key travels unencrypted to {url}",
                    hint="Give the server a certificate and use https://, or trust everybody on the way.",
                )


def _loopback(host: str) -> bool:
    """Whether a host is this machine by name or number."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def linker() -> Finding:
    """Something that turns the compiler's object file into a shared library."""
    for program in ("ld", "ld.lld", "lld"):
        if path := shutil.which(program):
            return Finding(check="linker", status="ok", detail=path)
    if importlib.util.find_spec("ziglang"):
        return Finding(check="linker", status="ok", detail="ziglang wheel")
    return Finding(
        check="linker",
        status="problem",
        detail="no ld, no lld, no ziglang wheel: models cannot be compiled here",
        hint="Install one: pip install 'hob-appliance[linker]', or the binutils package of your system.",
    )


def torch() -> Finding:
    """The engine's runtime imports torch wherever it finds it, which costs memory and start-up time."""
    if importlib.util.find_spec("torch"):
        return Finding(
            check="environment",
            status="warning",
            detail="torch is installed beside Hob; the engine starts slower and larger",
            hint="Give Hob an environment of its own.",
        )
    return Finding(check="environment", status="ok", detail="no torch beside the engine")


def storage(settings: Settings) -> Iterator[Finding]:
    """The data folder can be written, has room, and the database in it can be read."""
    folder = settings.data_dir
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        yield Finding(
            check="data folder",
            status="problem",
            detail=f"{folder} cannot be written",
            hint="Set HOB_DATA_DIR to a folder of yours, or change the owner of this one.",
        )
        return
    free = shutil.disk_usage(existing).free
    enough = free >= DISK_MINIMUM
    yield Finding(
        check="data folder",
        status="ok" if enough else "problem",
        detail=f"{folder}, {free / 2**30:.1f} GiB free",
        hint="" if enough else "Make room: Hob needs 0.5 GiB beside the models.",
    )
    database = folder / "hob.db"
    if database.exists():
        yield chats(database)


def chats(database: Path) -> Finding:
    """SQLite's own quick check of the chats."""
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            verdict = str(connection.execute("PRAGMA quick_check").fetchone()[0])
        connection.close()
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict == "ok":
        return Finding(check="chats", status="ok", detail=str(database))
    return Finding(
        check="chats",
        status="problem",
        detail=f"{database}: {verdict}",
        hint="Stop Hob, move the file away, and put a copy of it back.",
    )


def memory(room: Memory) -> Finding:
    """Room for the built-in model and the service at the least."""
    detail = f"{room.available / 2**30:.1f} of {room.total / 2**30:.1f} GiB free"
    if room.limited:
        detail += ", which is what this container or unit may use"
    if room.available < ENGINE_OVERHEAD + SERVICE_OVERHEAD:
        return Finding(
            check="memory",
            status="problem",
            detail=detail,
            hint="Close other programs; Hob needs 0.3 GiB and the model.",
        )
    return Finding(check="memory", status="ok", detail=detail)


def models_found(fits: tuple[ModelFit, ...]) -> Iterator[Finding]:
    """One finding for each installed model, and one if there is none."""
    if not fits:
        yield Finding(
            check="models",
            status="problem",
            detail="no model is installed",
            hint="Add one: hob model add SOURCE",
        )
    for fit in fits:
        yield Finding(
            check=f"model {fit.name}",
            status="ok" if fit.fits else "problem" if fit.verdict == "damaged" else "warning",
            detail=fit.detail,
            hint=FIT_HINTS[fit.verdict],
        )


def port(settings: Settings) -> Finding:
    """The port is free, or a Hob answers on it."""
    address = f"http://127.0.0.1:{settings.port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", settings.port))
            return Finding(check="port", status="ok", detail=f"{settings.port} is free")
        except PermissionError:
            return Finding(
                check="port",
                status="problem",
                detail=f"{settings.port} may not be opened by this user",
                hint="Choose a port above 1023: hob serve --port 8080",
            )
        except OSError:
            pass  # taken; ask who is there
    try:
        with urllib.request.urlopen(f"{address}/healthz", timeout=3) as answer:  # noqa: S310
            return Finding(check="port", status="ok", detail=f"Hob answers at {address} ({answer.status})")
    except urllib.error.HTTPError as error:
        if error.code == 503:
            return Finding(check="port", status="warning", detail=f"Hob at {address} is not ready yet")
    except OSError:
        pass
    return Finding(
        check="port",
        status="problem",
        detail=f"another program has port {settings.port}: {_owner(settings.port)}",
        hint=f"Stop it, or choose another: hob serve --port {settings.port + 1}",
    )


def _owner(number: int) -> str:
    """The program listening on a port, where the system lets us see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.laddr
                and connection.laddr.port == number
                and connection.status == psutil.CONN_LISTEN
            ):
                return psutil.Process(connection.pid).name() if connection.pid else "unknown"
    except psutil.Error:  # macOS shows this to root only
        pass
    return "unknown"
