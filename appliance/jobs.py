"""Long work on models: adding, copying, verifying, compiling. One piece at a time, each in its own process.

A job is a verb of `hob model` with `--json`. It prints JSON objects, one a line: {"step", "fraction"},
with "bytes" and "total" where something is fetched, and last {"model": name} ("models" where it was about
several) or {"error", "hint"}; other lines it may print are passed over.
What it says on standard error becomes the job's log. SIGTERM cancels it; models are then as they were.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import psutil

from appliance.config import Settings
from appliance.errors import ConflictError
from appliance.store import Job, JobState, Store

log = logging.getLogger(__name__)

KEPT: Final = 50  # jobs that are remembered, with their logs
MAX_LINE: Final = 2**20  # bytes of a line on standard output
MAX_LOG: Final = 2**18  # bytes of a log; what comes after is dropped
STOP_TIMEOUT: Final = 15.0  # seconds from SIGTERM to SIGKILL: removing a half-made model takes a while
NICENESS: Final = 10  # answers come first
EXPENDABLE: Final = 800  # of 1000: when memory runs out, the kernel ends the job, not the service
COMMAND: Final = (sys.executable, "-m", "appliance.cli", "model")


class Report(msgspec.Struct):
    """A line of the process; see the module's description."""

    step: str = ""
    fraction: float = 0.0
    bytes: int | None = None
    total: int | None = None
    model: str | None = None
    models: list[str] | None = None
    error: str | None = None
    hint: str = ""


@dataclass(slots=True)
class Progress:
    """How far a running job is.

    Attributes:
        step: what it does now, in words.
        fraction: share of all the work done, 0 to 1.
        bytes, total: of what is being fetched; None while nothing is.
        rate: bytes a second, smoothed over some seconds; 0 while unknown.
        remaining: seconds that fetching will still take; None while unknown.
    """

    step: str = "starting"
    fraction: float = 0.0
    bytes: int | None = None
    total: int | None = None
    rate: float = 0.0
    _at: float = field(default_factory=time.monotonic)

    @property
    def remaining(self) -> float | None:
        """Seconds that fetching will still take; None while unknown."""
        if self.bytes is None or self.total is None or self.rate <= 0:
            return None
        return max(0, self.total - self.bytes) / self.rate

    def update(self, report: Report, now: float) -> None:
        """Take in a report, made `now` on the monotonic clock."""
        if self.bytes is not None and report.bytes is not None and now > self._at:
            seconds = now - self._at
            latest = max(0, report.bytes - self.bytes) / seconds
            weight = min(1.0, seconds / 5) if self.rate else 1.0
            self.rate += weight * (latest - self.rate)
        if report.bytes is None:
            self.rate = 0.0
        self._at, self.bytes, self.total = now, report.bytes, report.total
        self.step, self.fraction = report.step, min(1.0, max(0.0, report.fraction))


class Jobs:
    """Runs jobs in the order of their arrival. One per service.

    Raises (everywhere):
        NotFoundError: no job has this id.
    """

    def __init__(self, store: Store, settings: Settings, command: Sequence[str] = COMMAND) -> None:
        self._store = store
        self._folder = settings.data_dir / "jobs"
        self._command = command
        self._environment = environment(settings, os.environ)
        self._news = asyncio.Event()
        self._queue = asyncio.Lock()  # a job is not begun before all of it is there
        self._keeper: asyncio.Task[None] | None = None
        self._running: tuple[int, asyncio.Task[None]] | None = None
        self._cancelled: set[int] = set()
        self._progress: dict[int, Progress] = {}

    async def start(self) -> None:
        """End what a service that was switched off left open, and begin to work."""
        if count := await self._store.run(self._store.cut_off_jobs):
            log.warning("%d jobs were interrupted by the end of the last run", count)
        for key in self._folder.glob("*.key"):
            key.unlink()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """End the running job and keep those that wait from starting; all count as interrupted."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await self._store.run(self._store.cut_off_jobs)

    async def add(self, verb: str, subject: str, arguments: Sequence[str], secret: str = "") -> Job:
        """Queue `hob model VERB --json ARGUMENTS`; `subject` is what people see it is about.

        A `secret` is handed over in a file (`--key-file`) that goes when the job ends; it is not remembered.

        Raises:
            ConflictError: the same is waiting or running already.
        """
        async with self._queue:
            for job in await self.list():
                if job.open and (job.verb, tuple(job.arguments)) == (verb, tuple(arguments)):
                    raise ConflictError(f"{verb} {subject} is under way already", hint="See the page Models.")
            job = await self._store.run(self._store.add_job, verb, subject, arguments)
            if secret:
                await asyncio.to_thread(self._keep_secret, job.id, secret)
        self._news.set()
        return job

    async def again(self, job_id: int) -> Job:
        """Queue a job that has ended once more; downloads go on where they stopped."""
        job = await self.get(job_id)
        return await self.add(job.verb, job.subject, job.arguments)

    async def cancel(self, job_id: int) -> Job:
        """End a job that waits or runs; returns once it has ended. Does nothing for one that has."""
        job = await self.get(job_id)
        if self._running is not None and self._running[0] == job_id:
            task = self._running[1]
            self._cancelled.add(job_id)
            task.cancel()
            await asyncio.wait([task])
        elif job.open:
            with contextlib.suppress(ConflictError):  # it began and ended meanwhile
                return await self._store.run(self._store.end_job, job_id, "cancelled")
        return await self.get(job_id)

    async def get(self, job_id: int) -> Job:
        """The job with this id."""
        return await self._store.run(self._store.job, job_id)

    async def list(self) -> Sequence[Job]:
        """The jobs that are remembered, newest first."""
        return await self._store.run(self._store.jobs, KEPT)

    def progress(self, job_id: int) -> Progress | None:
        """How far a running job is; None for others."""
        return self._progress.get(job_id)

    async def log(self, job_id: int) -> str:
        """What a job said so far."""
        await self.get(job_id)
        return await asyncio.to_thread(_read, self._log_of(job_id))

    def _log_of(self, job_id: int) -> Path:
        return self._folder / f"{job_id}.log"

    def _key_of(self, job_id: int) -> Path:
        return self._folder / f"{job_id}.key"

    def _keep_secret(self, job_id: int, secret: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self._key_of(job_id), "x", opener=private) as file:
            file.write(secret)

    async def _keep(self) -> None:
        """Run one job after the other until cancelled."""
        while True:
            self._news.clear()
            async with self._queue:
                job = await self._store.run(self._store.next_job)
            if job is None:
                await self._news.wait()
                continue
            task = asyncio.create_task(self._run(job))
            self._running = job.id, task
            try:
                await asyncio.wait([task])
            finally:
                task.cancel()
                await asyncio.wait([task])
                self._running = None
            await self._sweep()

    async def _run(self, job: Job) -> None:
        """Run one job and record its end."""
        self._progress[job.id] = progress = Progress()
        ended: dict[str, str] = {}
        state: JobState = "failed"
        try:
            state, ended = await self._work(job, progress)
        except asyncio.CancelledError:
            if job.id not in self._cancelled:
                raise  # the service is going down: `close` records it
            state = "cancelled"
        except OSError as error:
            ended = {"error": f"the job cannot start: {error}"}
        finally:
            self._cancelled.discard(job.id)
            del self._progress[job.id]
        self._key_of(job.id).unlink(missing_ok=True)
        await self._store.run(self._store.end_job, job.id, state, **ended)

    async def _work(self, job: Job, progress: Progress) -> tuple[JobState, dict[str, str]]:
        """Start the process and follow it to its end; cancelled, it ends the process first."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = self._key_of(job.id)
        options = ("--key-file", str(key)) if key.exists() else ()
        process = await asyncio.create_subprocess_exec(
            *(*self._command, job.verb, "--json", *options, *job.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
            env=self._environment,
            start_new_session=True,  # signals reach all that it starts
        )
        assert process.stdout is not None
        assert process.stderr is not None
        logging_ = asyncio.create_task(keep_log(process.stderr, self._log_of(job.id)))
        last = Report()
        try:
            step_aside(process.pid)
            async for report in reports(process.stdout):
                last = report
                if report.step:
                    progress.update(report, time.monotonic())
            status = await process.wait()
            await logging_
        finally:
            await end(process)
            logging_.cancel()
        return outcome(last, status)

    async def _sweep(self) -> None:
        """Forget old jobs and their logs."""
        for job_id in await self._store.run(self._store.forget_jobs, KEPT):
            self._log_of(job_id).unlink(missing_ok=True)


def environment(settings: Settings, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job: that of the service, with its flags as variables."""
    return {
        **inherited,
        "HOB_DATA_DIR": str(settings.data_dir.absolute()),
        "HOB_KERNELS": settings.kernels,
        "HOB_CONTEXT": str(settings.context),
        "NO_COLOR": "1",
    }


def outcome(last: Report, status: int) -> tuple[JobState, dict[str, str]]:
    """How a process ended, by its last report and exit status."""
    if last.error is not None:
        return "failed", {"error": last.error, "hint": last.hint}
    if status == 0 and (last.model is not None or last.models is not None):
        return "done", {"model": last.model or ""}
    if status == -signal.SIGKILL:
        return "failed", {
            "error": "the system ended it",
            "hint": "Memory may have run out; its log may tell more.",
        }
    return "failed", {"error": f"it ended with exit status {status}", "hint": "Its log has the details."}


async def reports(stream: asyncio.StreamReader) -> AsyncIterator[Report]:
    """The reports on a process's standard output; lines that are none are passed over."""
    decode: Callable[[bytes], Report] = msgspec.json.Decoder(Report).decode
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # longer than the limit
            continue
        if not line:
            return
        try:
            yield decode(line)
        except msgspec.MsgspecError:
            log.warning("a job printed what is no report: %.200r", line)


async def keep_log(stream: asyncio.StreamReader, file: Path) -> None:
    """Write what a process says into `file`, up to `MAX_LOG` bytes."""
    written = 0
    with file.open("wb") as out:
        while piece := await stream.read(2**16):
            if written < MAX_LOG:
                out.write(piece[: MAX_LOG - written])
                out.flush()
            written += len(piece)
        if written > MAX_LOG:
            out.write(b"\n... the rest was dropped\n")


async def end(process: asyncio.subprocess.Process) -> None:
    """End a process and all that it started: politely, then not. Waits even if the caller is cancelled."""
    if process.returncode is None:
        send(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
    send(process.pid, signal.SIGKILL)  # what it started and left behind, too
    await process.wait()


def send(group: int, number: signal.Signals) -> None:
    """Signal a process group, if any of it is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def step_aside(pid: int) -> None:
    """Give a process and its future children the processor, the disk and memory only after the service."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        process.nice(NICENESS)
        if hasattr(process, "ionice") and hasattr(psutil, "IOPRIO_CLASS_BE"):
            process.ionice(psutil.IOPRIO_CLASS_BE, 7)
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(EXPENDABLE))


def private(path: str, flags: int) -> int:
    """Open a file that only this user can read."""
    return os.open(path, flags, 0o600)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:  # it has not started
        return ""
