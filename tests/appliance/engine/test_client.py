"""The engine as the service sees it: real processes that are killed, wedged and closed at bad moments."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from appliance.engine import client as module
from appliance.engine.client import EngineClient
from appliance.engine.messages import Finished, Generate, ModelRef, Tokens
from appliance.errors import (
    ContextLengthError,
    DeviceError,
    EngineUnavailableError,
    HobError,
    InvalidRequestError,
    ModelLoadError,
)
from tests.appliance.engine.conftest import TOY_COMMAND, generate

LIMIT = 60

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops that the service may run on."""
    return "asyncio", {"use_uvloop": request.param}


def children() -> list[psutil.Process]:
    """Processes of this one that are alive."""
    return [
        child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE
    ]


async def until(happened: Callable[[], Awaitable[bool]]) -> None:
    """Poll, for at most `LIMIT` seconds."""
    async with asyncio.timeout(LIMIT):
        while not await happened():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


def descriptors() -> Counter[str]:
    """Open files of this process by kind; uvloop renews some sockets of its own whenever it runs."""
    kinds: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            kinds[str(entry.readlink()).split("[")[0]] += 1
    return kinds


def tasks() -> set[str]:
    """What runs in this loop, but for the test runner."""
    names = {getattr(task.get_coro(), "__qualname__", str(task)) for task in asyncio.all_tasks()}
    return {name for name in names if not name.startswith("TestRunner")}


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task, process or descriptor outlives a test."""
    # What a loop opens for its first child and its first stream, it keeps.
    first = await asyncio.create_subprocess_exec("true", stdout=asyncio.subprocess.PIPE)
    await first.communicate()
    before = descriptors()
    yield

    async def clean() -> bool:
        gc.collect()
        return not (tasks() or descriptors() - before or children())

    with contextlib.suppress(TimeoutError):
        await until(clean)
    assert (tasks(), descriptors() - before, children()) == (set(), Counter(), [])


@asynccontextmanager
async def running(command: tuple[str, ...] = TOY_COMMAND) -> AsyncIterator[EngineClient]:
    """A started client, within a limit of time."""
    client = EngineClient(worker_command=command)
    async with asyncio.timeout(LIMIT):
        await client.start()
        try:
            yield client
        finally:
            await client.close()


async def collect(client: EngineClient, request: Generate) -> list[int]:
    """All tokens of one request."""
    result: list[int] = []
    async with aclosing(client.generate(request)) as replies:
        async for reply in replies:
            if isinstance(reply, Tokens):
                result += [token.token for token in reply.tokens]
            else:
                assert isinstance(reply, Finished)
    return result


async def idle(client: EngineClient) -> bool:
    """Whether nothing runs or waits."""
    stats = await client.stats()
    return stats.running == stats.waiting == 0


async def queued(client: EngineClient) -> bool:
    """Whether a request waits."""
    return (await client.stats()).waiting > 0


def worker() -> psutil.Process:
    """The engine process."""
    (process,) = [child for child in children() if "tests.appliance.engine.toy" in child.cmdline()]
    return process


async def test_load_generate_stats(toy: ModelRef) -> None:
    """The plain way through: load a model, run requests, look at it."""
    async with running() as client:
        assert (await client.stats()).model == ""
        await client.load(toy)
        stats = await client.stats()
        assert (stats.model, stats.running, stats.waiting) == (toy.directory, 0, 0)
        assert len(await collect(client, generate(toy, max_tokens=20))) == 20


async def test_concurrent_requests_each_get_their_own(toy: ModelRef) -> None:
    """Ten at once finish with the tokens that each would have alone."""
    async with running() as client:
        alone = [
            await collect(client, generate(toy, f"alone{n}", prompt=[n], seed=n, temperature=1))
            for n in range(3, 13)
        ]
        async with asyncio.TaskGroup() as group:
            together = [
                group.create_task(
                    collect(client, generate(toy, f"together{n}", prompt=[n], seed=n, temperature=1))
                )
                for n in range(3, 13)
            ]
        assert [task.result() for task in together] == alone


async def test_closing_a_generation_early_cancels_it(toy: ModelRef) -> None:
    """Whether it runs or waits, the engine drops it and serves the next."""
    async with running() as client:
        async with aclosing(client.generate(generate(toy, "a", max_tokens=10**6))) as first:
            await anext(first)
            waiting = asyncio.create_task(collect(client, generate(toy, "b", max_tokens=10**6)))
            await until(lambda: queued(client))
            waiting.cancel()
            await asyncio.wait([waiting])
        assert len(await collect(client, generate(toy, "c"))) == 8
        await until(lambda: idle(client))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_the_engine_dies_in_the_middle(toy: ModelRef, number: signal.Signals) -> None:
    """Every open request ends with an error; the next one is served by a new process."""
    async with running() as client:
        async with aclosing(client.generate(generate(toy, "a", max_tokens=10**6))) as replies:
            await anext(replies)
            waiting = asyncio.create_task(collect(client, generate(toy, "b")))
            await until(lambda: queued(client))
            dead = worker().pid
            os.kill(dead, number)
            with pytest.raises(EngineUnavailableError) as caught:
                async for _ in replies:
                    pass
            assert caught.value.retry_after
            with pytest.raises(EngineUnavailableError):
                await waiting
        assert len(await collect(client, generate(toy, "c"))) == 8
        assert worker().pid != dead


async def test_the_last_model_is_loaded_again(make_toy: Callable[..., ModelRef]) -> None:
    """After a restart the model that was in use is there before anyone asks for it."""
    one, two = make_toy("one"), make_toy("two")
    async with running() as client:
        await client.load(one)
        await collect(client, generate(two))
        worker().kill()
        await until(lambda: loaded(client, two))


async def loaded(client: EngineClient, model: ModelRef | None) -> bool:
    """Whether the engine is up and `model` is the loaded one."""
    try:
        return (await client.stats()).model == (model.directory if model else "")
    except EngineUnavailableError:
        return False


async def test_a_model_that_was_freed_is_not_loaded_again(toy: ModelRef) -> None:
    """Idle time counts from the end of a request; a process that takes a dead one's place stays empty."""
    async with running() as client:
        await client.load(toy)
        await client.unload()
        stats = await client.stats()
        assert stats.model == ""
        await asyncio.sleep(0.05)
        assert (await client.stats()).idle > stats.idle > 0
        worker().kill()
        await until(lambda: loaded(client, None))
        assert await collect(client, generate(toy))


async def test_a_model_that_kills_the_engine_is_not_loaded_for_ever(
    toy: ModelRef, make_toy: Callable[..., ModelRef]
) -> None:
    """After it has killed the process once more on the restart it is forgotten; others can be used."""
    deadly = make_toy("deadly")
    async with running() as client:
        await client.load(deadly)
        (Path(deadly.directory) / "toy.json").write_text('{"vocab_size": "deadly"}')
        worker().kill()
        await until(lambda: loaded(client, None))
        with pytest.raises(HobError):
            await client.load(deadly)
        assert len(await collect(client, generate(toy))) == 8


async def test_errors_keep_their_class_and_hint(toy: ModelRef, tmp_path: Path) -> None:
    """What the engine refuses arrives as the error it is; the engine goes on."""
    missing = ModelRef(directory=str(tmp_path / "missing"), library="", context=32)
    small = ModelRef(directory=toy.directory, library="", context=32)
    async with running() as client:
        with pytest.raises(ModelLoadError, match="missing") as caught:
            await client.load(missing)
        assert caught.value.hint == "Look for it."
        with pytest.raises(ContextLengthError, match=r"40 tokens.*32"):
            await collect(client, generate(small, prompt=[3] * 40))
        with pytest.raises(InvalidRequestError, match="temperature"):
            await collect(client, generate(toy, temperature=-1))
        with pytest.raises(HobError, match="broken"):
            await collect(client, generate(toy, prompt=[1]))
        with pytest.raises(InvalidRequestError, match="64 bits"):
            await collect(client, generate(toy, seed=2**80))
        assert len(await collect(client, generate(toy))) == 8


async def test_an_id_in_use_is_refused(toy: ModelRef) -> None:
    """The first request of that id goes on."""
    async with running() as client, aclosing(client.generate(generate(toy, max_tokens=10**6))) as replies:
        await anext(replies)
        with pytest.raises(InvalidRequestError, match="in use"):
            await collect(client, generate(toy))
        assert isinstance(await anext(replies), Tokens)


async def test_closing_ends_everything(toy: ModelRef) -> None:
    """Open requests end with an error, later ones fail at once; closing again does nothing."""
    async with running() as client, aclosing(client.generate(generate(toy, max_tokens=10**6))) as replies:
        await anext(replies)
        await client.close()
        with pytest.raises(EngineUnavailableError):
            async for _ in replies:
                pass
        with pytest.raises(EngineUnavailableError):
            await client.stats()
        await client.close()


async def test_closing_during_the_start(toy: ModelRef) -> None:
    """A client that is closed before its process answers leaves nothing behind."""
    async with asyncio.timeout(LIMIT):
        for turns in range(12):
            client = EngineClient(worker_command=TOY_COMMAND)
            start = asyncio.create_task(client.start())
            for _ in range(turns):
                await asyncio.sleep(0)
            await client.close()
            with pytest.raises(EngineUnavailableError):
                await start


async def test_a_client_that_was_never_started() -> None:
    """Requests fail at once; closing it is fine."""
    client = EngineClient()
    with pytest.raises(EngineUnavailableError):
        await client.stats()
    await client.close()


@pytest.mark.parametrize(
    "command",
    [("/nonexistent/engine",), (sys.executable, "-c", "raise SystemExit(3)")],
    ids=["no program", "exits"],
)
async def test_an_engine_that_never_starts(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Starting fails after the limit with the time to try again; the pauses between attempts grow."""
    monkeypatch.setattr(module, "READY_TIMEOUT", 1.0)
    caplog.set_level(logging.WARNING)
    client = EngineClient(worker_command=command)
    async with asyncio.timeout(LIMIT):
        with pytest.raises(EngineUnavailableError, match="not running") as caught:
            await client.start()
        assert caught.value.retry_after
        await client.close()
    assert "trying again in 0.25 s" in caplog.text
    assert "trying again in 0.50 s" in caplog.text


async def test_a_process_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, toy: ModelRef) -> None:
    """A stopped process cannot obey SIGTERM; closing still returns, and the process is gone."""
    monkeypatch.setattr(module, "STOP_TIMEOUT", 0.2)
    async with running() as client:
        worker().suspend()
        await client.close()
        assert children() == []


async def test_a_service_that_is_killed_leaves_no_engine(toy: ModelRef) -> None:
    """Without a chance to clean up, the engine still ends, in the middle of a generation."""
    code = f"""
import asyncio
from appliance.engine.client import EngineClient
from appliance.engine.messages import ModelRef
from tests.appliance.engine.conftest import TOY_COMMAND, generate
async def main():
    client = EngineClient(worker_command=TOY_COMMAND)
    await client.start()
    async for _ in client.generate(generate({toy!r}, max_tokens=10**6)):
        print("running", flush=True)
asyncio.run(main())
"""
    async with asyncio.timeout(LIMIT):
        service = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
        )
        assert service.stdout
        await service.stdout.readline()
        engine = worker()
        service.kill()
        await service.communicate()
        await asyncio.to_thread(psutil.wait_procs, [engine], timeout=LIMIT)
        assert not engine.is_running()


async def test_an_engine_that_runs_on_its_own(toy: ModelRef, tmp_path: Path) -> None:
    """Two clients share it, neither ends it; when it restarts, they find it again."""
    path = tmp_path / "engine.sock"
    command = [*TOY_COMMAND, "--socket", str(path)]
    one, two = (EngineClient(address=path) for _ in range(2))
    async with asyncio.timeout(LIMIT):
        process = await asyncio.create_subprocess_exec(*command)
        await one.start()
        await two.start()
        first, second = await asyncio.gather(*(collect(c, generate(toy)) for c in (one, two)))
        assert first == second
        await two.close()
        assert len(await collect(one, generate(toy))) == 8
        process.kill()
        await process.wait()
        process = await asyncio.create_subprocess_exec(*command)
        assert await collect(one, generate(toy)) == first
        await one.close()
        process.terminate()
        assert await process.wait() == 0


async def test_a_device_that_kills_the_engine(toy: ModelRef) -> None:
    """A process that dies twice while it loads for a GPU is the GPU's fault; the processor then answers."""
    doomed = msgspec.structs.replace(toy, target="cuda")
    async with running() as client:
        with pytest.raises(EngineUnavailableError):
            await client.load(doomed)
        await until(lambda: answers(client))
        with pytest.raises(DeviceError, match="died twice"):
            await client.load(doomed)
        await until(lambda: answers(client))
        await client.load(toy)
        assert len(await collect(client, generate(toy, max_tokens=5))) == 5


async def test_a_device_that_kills_the_engine_under_a_question(toy: ModelRef) -> None:
    """The same for a model that a question loads."""
    doomed = generate(msgspec.structs.replace(toy, target="cuda"), max_tokens=5)
    async with running() as client:
        for error in (EngineUnavailableError, DeviceError):
            with pytest.raises(error):
                await collect(client, doomed)
            await until(lambda: answers(client))
        assert len(await collect(client, generate(toy, max_tokens=5))) == 5


async def test_the_processor_is_never_to_blame(toy: ModelRef) -> None:
    """An engine that is killed while it works for the processor is simply gone, however often."""
    async with running() as client:
        await client.load(toy)
        for _ in range(3):
            answering = asyncio.create_task(collect(client, generate(toy, max_tokens=100_000)))
            await until(lambda: busy(client))
            worker().kill()
            with pytest.raises(EngineUnavailableError):
                await answering


async def answers(client: EngineClient) -> bool:
    """Whether a process is there again."""
    with contextlib.suppress(EngineUnavailableError):
        await client.stats()
        return True
    return False


async def busy(client: EngineClient) -> bool:
    """Whether a request runs."""
    return (await client.stats()).running > 0
