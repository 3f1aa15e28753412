"""Long work: order, progress, cancelling, and what is left when things end badly. The processes are real."""

import asyncio
import functools
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config import load_settings
from appliance.errors import ConflictError, NotFoundError
from appliance.jobs import KEPT, MAX_LOG, Jobs, Progress, Report
from appliance.store import Job, JobState, Store
from appliance.store.jobs import CUT_OFF

pytestmark = pytest.mark.anyio

LIMIT = 60

# Stands for `hob model`: its verbs are the ways in which a process may behave.
SCRIPT = r"""
import json, os, signal, subprocess, sys, time
verb, flag, *arguments = sys.argv[1:]
assert flag == "--json"
def say(**report): print(json.dumps(report), flush=True)
print(verb, *arguments, file=sys.stderr, flush=True)
if verb == "add":
    say(step="fetch", fraction=0.5, bytes=10, total=20)
    say(model=arguments[0])
elif verb == "refuse":
    say(error="no such model", hint="Look for another.")
    sys.exit(1)
elif verb == "secret":
    assert arguments[0] == "--key-file"
    mode = os.stat(arguments[1]).st_mode & 0o777
    say(model=f"{open(arguments[1]).read()} {mode:o} {arguments[2:]}")
elif verb == "environment":
    say(model=os.environ["HOB_DATA_DIR"] + " " + os.environ["HOB_KERNELS"])
elif verb == "niceness":
    say(step="measure", fraction=0)
    time.sleep(0.5)
    say(model=f"{os.nice(0)} {open('/proc/self/oom_score_adj').read().strip()}")
elif verb == "crash":
    os.kill(os.getpid(), signal.SIGKILL)
elif verb == "silent":
    sys.exit(int(arguments[0]))
elif verb == "noisy":
    print("not json"); print("x" * 3_000_000); print("[1, 2]"); sys.stderr.write("y" * 1_000_000)
    say(step="late", fraction=7.5); say(model="noisy")
elif verb in ("wait", "stubborn"):
    if verb == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    say(step=f"child {child.pid}", fraction=0.25)
    time.sleep(600)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The program that stands for `hob model`."""
    file = tmp_path / "verbs.py"
    file.write_text(SCRIPT)
    return file


@asynccontextmanager
async def office(folder: Path, script: Path) -> AsyncIterator[Jobs]:
    """Jobs at work."""
    store = Store(folder / "hob.db")
    jobs = Jobs(store, load_settings(data_dir=folder, kernels="exact"), [sys.executable, str(script)])
    try:
        async with asyncio.timeout(LIMIT):
            await jobs.start()
            yield jobs
    finally:
        await jobs.close()
        store.close()


async def until(happened: Callable[[], bool]) -> None:
    """Poll, until the office closes."""
    while not happened():  # noqa: ASYNC110 - what is waited for happens in another process
        await asyncio.sleep(0.01)


async def ended(jobs: Jobs, job: Job) -> Job:
    """The job once it is no longer open."""
    while (job := await jobs.get(job.id)).open:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.01)
    return job


async def child_of(jobs: Jobs, job: Job) -> psutil.Process:
    """The process that a waiting job has started."""

    def step() -> str:
        progress = jobs.progress(job.id)
        return progress.step if progress else ""

    await until(lambda: step().startswith("child"))
    return psutil.Process(int(step().split()[1]))


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, reaped or not."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def test_a_job_runs_and_tells_of_itself(tmp_path: Path, script: Path) -> None:
    """It ends with the model's name; its log stays; times are in order."""
    async with office(tmp_path, script) as jobs:
        job = await jobs.add("add", "owner/name", ["owner/name"])
        assert job.state == "waiting"
        done = await ended(jobs, job)
        assert (done.state, done.model) == ("done", "owner/name")
        assert done.started is not None
        assert done.ended is not None
        assert done.created <= done.started <= done.ended
        assert await jobs.log(job.id) == "add owner/name\n"
        assert jobs.progress(job.id) is None
        with pytest.raises(NotFoundError):
            await jobs.get(999)


@pytest.mark.parametrize(
    ("verb", "arguments", "state", "text"),
    [
        ("refuse", [], "failed", "no such model"),
        ("crash", [], "failed", "the system ended it"),
        ("silent", ["3"], "failed", "it ended with exit status 3"),
        ("silent", ["0"], "failed", "it ended with exit status 0"),
        ("noisy", [], "done", "noisy"),
    ],
)
async def test_ends(
    tmp_path: Path, script: Path, verb: str, arguments: list[str], state: str, text: str
) -> None:
    """A refusal keeps its words, a crash gets some; a process that says what is no report does no harm."""
    async with office(tmp_path, script) as jobs:
        job = await ended(jobs, await jobs.add(verb, "", arguments))
        assert job.state == state
        assert text in (job.error, job.model)
        assert len(await jobs.log(job.id)) < MAX_LOG + 100


async def test_the_process_has_the_services_settings_and_steps_aside(tmp_path: Path, script: Path) -> None:
    """Flags of the service reach it as variables; answers and the system's health come first."""
    async with office(tmp_path, script) as jobs:
        job = await ended(jobs, await jobs.add("environment", "", []))
        assert job.model == f"{tmp_path} exact"
        job = await ended(jobs, await jobs.add("niceness", "", []))
        assert job.model == "10 800"


async def test_a_secret_is_handed_over_and_forgotten(tmp_path: Path, script: Path) -> None:
    """It is in a file for this user alone while the job is open, and neither in the database nor a log."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "7.key").write_text("left by a power cut")
    async with office(tmp_path, script) as jobs:
        job = await ended(jobs, await jobs.add("secret", "", ["--", "x"], secret="hob-123"))
        assert job.model == "hob-123 600 ['--', 'x']"
        assert list((tmp_path / "jobs").glob("*.key")) == []
        assert "hob-123" not in str(job.arguments)


async def test_one_at_a_time_in_order(tmp_path: Path, script: Path) -> None:
    """Others wait; the same twice is refused while the first is open; waiting ones are cancelled at once."""
    async with office(tmp_path, script) as jobs:
        first = await jobs.add("wait", "a", [])
        await child_of(jobs, first)
        second = await jobs.add("add", "b", ["b"])
        third = await jobs.add("add", "c", ["c"])
        with pytest.raises(ConflictError, match="add b is under way"):
            await jobs.add("add", "b", ["b"])
        assert [job.state for job in await jobs.list()] == ["waiting", "waiting", "running"]
        assert (await jobs.cancel(second.id)).state == "cancelled"
        assert (await jobs.cancel(first.id)).state == "cancelled"
        assert (await ended(jobs, third)).model == "c"
        assert (await jobs.get(second.id)).started is None
        again = await jobs.again(second.id)
        assert (await ended(jobs, again)).state == "done"


@pytest.mark.parametrize("verb", ["wait", "stubborn"])
async def test_cancelling_ends_the_process_and_its_children(
    tmp_path: Path, script: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that does not listen; a second cancel changes nothing."""
    monkeypatch.setattr("appliance.jobs.STOP_TIMEOUT", 0.2)
    async with office(tmp_path, script) as jobs:
        job = await jobs.add(verb, "", [])
        child = await child_of(jobs, job)
        parent = child.parent()
        assert (await jobs.cancel(job.id)).state == "cancelled"
        for process in (child, parent):
            assert process is not None
            await until(functools.partial(gone, process))
        assert (await jobs.cancel(job.id)).state == "cancelled"


async def test_a_service_that_ends_interrupts_its_jobs(tmp_path: Path, script: Path) -> None:
    """Nothing runs on; the next service says what happened and can start it again."""
    async with office(tmp_path, script) as jobs:
        running, waiting = await jobs.add("wait", "", []), await jobs.add("add", "b", ["b"])
        child = await child_of(jobs, running)
    async with asyncio.timeout(LIMIT):
        await until(lambda: gone(child))
    async with office(tmp_path, script) as jobs:
        for job in (running, waiting):
            found = await jobs.get(job.id)
            assert (found.state, found.error) == ("interrupted", CUT_OFF)
        assert (await ended(jobs, await jobs.again(waiting.id))).state == "done"


async def test_a_power_cut_leaves_no_job_open(tmp_path: Path, script: Path) -> None:
    """What the database still calls running is not: the next service says so."""
    store = Store(tmp_path / "hob.db")
    store.add_job("add", "a", ["a"])
    assert store.next_job() is not None
    store.close()
    async with office(tmp_path, script) as jobs:
        assert [job.state for job in await jobs.list()] == ["interrupted"]


async def test_old_jobs_are_forgotten_with_their_logs(tmp_path: Path, script: Path) -> None:
    """A box that runs for years does not fill up with them."""
    store = Store(tmp_path / "hob.db")
    for number in range(KEPT + 3):
        store.end_job(store.add_job("add", "", [str(number)]).id, "done")
    (tmp_path / "jobs").mkdir()
    old = tmp_path / "jobs" / "2.log"
    old.write_text("long ago")
    store.close()
    async with office(tmp_path, script) as jobs:
        job = await ended(jobs, await jobs.add("add", "", ["x"]))
        await until(lambda: not old.exists())
        assert len(await jobs.list()) == KEPT
        assert await jobs.log(job.id)


def test_speed_and_time_that_remains() -> None:
    """The rate follows the reports, smoothed, and is unknown where nothing is fetched."""
    progress = Progress(_at=0)
    progress.update(Report(step="fetch", fraction=0, bytes=0, total=1000), 1.0)
    assert progress.remaining is None
    progress.update(Report(step="fetch", fraction=0.1, bytes=100, total=1000), 2.0)
    assert progress.rate == 100
    assert progress.remaining == 9
    progress.update(Report(step="fetch", fraction=0.2, bytes=200, total=1000), 7.0)
    assert progress.rate == pytest.approx(20)
    progress.update(Report(step="convert", fraction=9), 8.0)
    assert (progress.rate, progress.remaining, progress.fraction) == (0, None, 1)


@settings(max_examples=40, deadline=None)  # each makes a database on the disk
@given(st.lists(st.sampled_from(["add", "next", "end", "cut", "forget"]), max_size=30))
def test_no_job_is_lost(steps: list[str]) -> None:
    """Whatever happens in which order: at most one runs, they run in order, and each ends exactly once."""
    with tempfile.TemporaryDirectory() as folder:
        live(Store(Path(folder) / "hob.db"), steps)


def live(store: Store, steps: list[str]) -> None:
    """Take the steps, and compare the store's account with one's own."""
    ends: dict[int, JobState] = {}
    begun: list[int] = []
    for step in steps:
        match step:
            case "add":
                store.add_job("add", "", [])
            case "next":
                if not any(job.state == "running" for job in store.jobs(99)) and (job := store.next_job()):
                    begun.append(job.id)
            case "end":
                for job in store.jobs(99):
                    if job.state == "running":
                        ends[job.id] = store.end_job(job.id, "done").state
                        with pytest.raises(ConflictError):
                            store.end_job(job.id, "failed")
            case "cut":
                ends |= {job.id: "interrupted" for job in store.jobs(99) if job.open}
                store.cut_off_jobs()
            case "forget":
                for job_id in store.forget_jobs(3):
                    assert ends.pop(job_id)
    store.close()
    assert begun == sorted(begun)
