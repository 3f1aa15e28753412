"""The application as a whole, in this process: health, errors in the reader's shape, faults."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.app import create_app
from appliance.config import load_settings
from appliance.engine.base import Engine
from appliance.engine.messages import Finished, Generate, ModelRef, Stats, Tokens
from appliance.errors import EngineUnavailableError, ModelLoadError
from appliance.system import Health, Watcher
from tests.service import TINY

pytestmark = pytest.mark.anyio

LOCAL = ("127.0.0.1", 50000)
STRANGER = ("192.0.2.7", 50000)


class SwitchedEngine(Engine):
    """An engine whose state a test sets: what `load` and `stats` raise, and the model it has."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.model = ""
        self.loads = 0
        self.closed = False

    async def load(self, model: ModelRef) -> None:
        """Load, or raise the trouble."""
        self.loads += 1
        if self.trouble is not None:
            raise self.trouble
        self.model = model.directory

    async def unload(self) -> None:
        """Forget the model."""
        self.model = ""

    async def generate(self, request: Generate) -> AsyncGenerator[Tokens | Finished, None]:
        """Raise the trouble, or crash."""
        raise self.trouble or ZeroDivisionError("a fault of ours")
        yield  # makes it a generator

    async def stats(self) -> Stats:
        """State, or the trouble."""
        if isinstance(self.trouble, EngineUnavailableError):
            raise self.trouble
        return Stats(id="1", model=self.model, waiting=2, running=1, rss=0)

    async def close(self) -> None:
        """Note it."""
        self.closed = True


class Diary(Watcher):
    """Remembers how starting ended."""

    def __init__(self) -> None:
        self.health = asyncio.Queue[Health]()

    def settled(self, health: Health) -> None:
        """Write it down."""
        self.health.put_nowait(health)


class House:
    """An application that is up, its engine, and clients near and far."""

    def __init__(self, app: Starlette, engine: SwitchedEngine, diary: Diary) -> None:
        self.app = app
        self.engine = engine
        self.diary = diary

    async def get(self, path: str, client: tuple[str, int] = LOCAL) -> httpx2.Response:
        """GET as a client with this address."""
        transport = httpx2.ASGITransport(app=self.app, client=client, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost:8080") as http:
            return await http.get(path)

    async def ask(self, **fields: object) -> httpx2.Response:
        """A chat completion request of this machine."""
        transport = httpx2.ASGITransport(app=self.app, client=LOCAL, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost:8080") as http:
            body = {"messages": [{"role": "user", "content": "Hello"}], **fields}
            return await http.post("/v1/chat/completions", json=body)


@pytest.fixture
def engine() -> SwitchedEngine:
    """An engine without trouble."""
    return SwitchedEngine()


@pytest.fixture
async def house(data_dir: Path, engine: SwitchedEngine) -> AsyncIterator[House]:
    """An application that has just begun to start."""
    diary = Diary()
    app = create_app(load_settings(data_dir=data_dir, model=TINY), engine, diary)

    async def fault(request: Request) -> Response:
        raise ZeroDivisionError("a fault of ours")

    app.router.routes[:0] = [Route("/fault", fault), Route("/v1/fault", fault)]
    async with app.router.lifespan_context(app):
        yield House(app, engine, diary)
    assert engine.closed


async def test_health_goes_from_starting_to_ok(house: House) -> None:
    """503 with a reason until the model is loaded, then 200 with the engine's queue."""
    early = await house.get("/healthz")
    assert early.status_code == 503
    assert early.json()["status"] == "starting"
    assert early.headers["retry-after"] == "1"
    assert (await house.diary.health.get()).status == "ok"
    ready = await house.get("/healthz")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ok",
        "model": TINY,
        "reason": "",
        "loaded": True,
        "running": 1,
        "waiting": 2,
    }


async def test_strangers_learn_little_from_health(house: House) -> None:
    """Who is not known sees that Hob lives, and neither models nor reasons, which name files."""
    await house.diary.health.get()
    assert (await house.get("/healthz", STRANGER)).json() == {"status": "ok"}


async def test_model_that_does_not_load_is_a_failure_with_its_reason(
    house: House, engine: SwitchedEngine
) -> None:
    """The service stays up and says what is wrong and what to do."""
    engine.trouble = ModelLoadError("too large for memory", hint="Choose a smaller one.")
    assert (await house.diary.health.get()).status == "failed"
    answer = await house.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["reason"] == "too large for memory. Choose a smaller one."
    assert (await house.get("/v1/models")).status_code == 200


async def test_loading_is_tried_until_the_engine_is_up(house: House, engine: SwitchedEngine) -> None:
    """An engine that is still starting is not a failure."""
    engine.trouble = EngineUnavailableError("not yet", retry_after=1)
    assert (await house.diary.health.get()).status == "starting"
    assert (await house.get("/healthz")).json()["status"] == "starting"
    engine.trouble = None
    assert (await house.diary.health.get()).status == "ok"
    assert engine.loads == 2


async def test_engine_that_lost_its_model_gets_it_again(house: House, engine: SwitchedEngine) -> None:
    """After a restart without a model, /healthz says so and has it loaded."""
    await house.diary.health.get()
    engine.model = ""
    assert (await house.get("/healthz")).status_code == 503
    assert (await house.diary.health.get()).status == "ok"
    assert (await house.get("/healthz")).status_code == 200


async def test_a_model_that_rests_is_not_missed(house: House, engine: SwitchedEngine) -> None:
    """A model that left memory because nobody used it is ready all the same, and not loaded until needed."""
    await house.diary.health.get()
    readiness = house.app.state.readiness
    assert await readiness.idle() == (TINY, 0.0)
    await readiness.rest()
    answer = await house.get("/healthz")
    assert (answer.status_code, answer.json()["loaded"]) == (200, False)
    assert engine.loads == 1
    engine.model = "somewhere"  # a request loaded one
    assert (await house.get("/healthz")).json()["loaded"]
    engine.model = ""  # and the engine lost it
    assert (await house.get("/healthz")).status_code == 503


async def test_a_failed_default_model_is_tried_again_when_it_changes(
    data_dir: Path, house: House, engine: SwitchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repairing its files is enough; while they stay as they are, nothing is tried."""
    monkeypatch.setattr("appliance.system.SECOND_LOOK", 0.0)
    engine.trouble = ModelLoadError("a shard is damaged")
    assert (await house.diary.health.get()).status == "failed"
    engine.trouble = None
    for _ in range(3):
        assert (await house.get("/healthz")).json()["status"] == "failed"
    assert engine.loads == 1
    (data_dir / "models" / TINY / "params_shard_0.bin").touch()
    assert (await house.get("/healthz")).json()["status"] == "starting"
    assert (await house.diary.health.get()).status == "ok"
    assert (await house.get("/healthz")).status_code == 200


async def test_engine_that_is_down_is_503_with_retry_after(house: House, engine: SwitchedEngine) -> None:
    """The API says when to come back, streamed or not; /healthz says it too."""
    await house.diary.health.get()
    engine.trouble = EngineUnavailableError("the engine is not running", retry_after=7)
    for stream in (False, True):
        answer = await house.ask(stream=stream)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "7"
        assert answer.json()["error"]["code"] == "engine_unavailable"
    assert (await house.get("/healthz")).status_code == 503


async def test_faults_are_500_in_the_readers_shape(house: House) -> None:
    """A fault of ours gives programs JSON and people a page, without its inner details."""
    for path in ("/v1/fault", "/fault"):
        answer = await house.get(path)
        assert answer.status_code == 500
        assert "went wrong inside Hob" in answer.text
        assert "ZeroDivisionError" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert (await house.get("/v1/fault")).json()["error"]["type"] == "server_error"
    assert (await house.get("/fault")).headers["content-type"].startswith("text/html")


async def test_fault_inside_an_answer_is_500(house: House) -> None:
    """A fault while generating is told as one, in OpenAI's shape."""
    await house.diary.health.get()
    answer = await house.ask()
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"


async def test_missing_pages_are_pages(house: House) -> None:
    """An unknown address outside the API gives people a page with a way back."""
    answer = await house.get("/nowhere")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "<html" in answer.text


async def test_answers_left_running_are_marked_at_start(data_dir: Path, engine: SwitchedEngine) -> None:
    """The service that starts after a power cut ends what the last one left."""
    first = create_app(load_settings(data_dir=data_dir, model=TINY), engine)
    _, answer = first.state.store.ask(None, "Hello", TINY, {})
    first.state.store.close()
    second = create_app(load_settings(data_dir=data_dir, model=TINY), engine)
    async with second.router.lifespan_context(second):
        assert second.state.store.message(answer.id).state == "stopped"
