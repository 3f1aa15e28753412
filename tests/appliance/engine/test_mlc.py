"""MLC-LLM behind the engine's messages: the real engine process, with a stand-in for the package.

The stand-in (`stand_in/mlc_llm`) has MLC-LLM's surface and no model; what that computes is not tested here.
"""

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.config import load_settings
from appliance.domain import Gpu, Message
from appliance.engine import choice
from appliance.engine.absent import Absent
from appliance.engine.client import EngineClient
from appliance.engine.messages import Finished, Generate, ModelRef, Text, Tokens
from appliance.errors import ContextLengthError, InvalidRequestError, ModelLoadError
from appliance.hardware import describe
from appliance.inference import Inference
from appliance.models import Models
from appliance.store import Store
from tests.appliance.engine.conftest import generate
from tests.service import GOLDEN, TINY

STAND_IN = Path(__file__).parent / "stand_in"
COMMAND = (sys.executable, "-m", "appliance.engine.mlc")

MakeModel = Callable[..., ModelRef]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Make a directory that the stand-in takes for a model."""

    def make(name: str = "one", context: int = 64) -> ModelRef:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(GOLDEN / "llama3rope" / "q4f16_1" / "mlc-chat-config.json", folder)
        return ModelRef(directory=str(folder), library="", context=context)

    return make


@pytest.fixture
async def engine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineClient]:
    """The engine process with MLC-LLM "installed"."""
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    client = EngineClient(worker_command=COMMAND)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def calls(model: ModelRef) -> list[dict[str, Any]]:
    """What the package was asked for."""
    file = Path(model.directory) / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process brings about."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is no event across processes
            await asyncio.sleep(0.01)


async def collect(engine: EngineClient, request: Generate) -> tuple[list[Text], Finished]:
    """All replies to a request."""
    pieces: list[Text] = []
    async with asyncio.timeout(60), contextlib.aclosing(engine.generate(request)) as replies:
        async for reply in replies:
            assert not isinstance(reply, Tokens)
            if isinstance(reply, Finished):
                return pieces, reply
            pieces.append(reply)
    raise AssertionError("it ended without a last word")


@pytest.mark.anyio
async def test_text_counts_and_settings(engine: EngineClient, make_model: MakeModel) -> None:
    """Token ids, stop tokens and sampling reach MLC-LLM as they are; text, counts and reason come back."""
    model = make_model()
    request = generate(model, max_tokens=5, stop=[99], temperature=0.5, seed=7, repetition_penalty=1.2)
    pieces, last = await collect(engine, request)
    assert "".join(piece.text for piece in pieces) == "6 7 8 9 10 "
    assert (last.reason, last.prompt_tokens, last.completion_tokens) == ("length", 3, 5)
    load, call = calls(model)
    assert (load["device"], load["model_lib"], load["mode"]) == ("auto", None, "local")
    assert load["config"]["max_single_sequence_length"] == 64
    assert call["prompt"] == [3, 4, 5]
    wanted = {
        "temperature": 0.5,
        "seed": 7,
        "repetition_penalty": 1.2,
        "max_tokens": 5,
        "stop_token_ids": [99],
    }
    assert wanted.items() <= call["config"].items()
    assert (call["config"]["logprobs"], call["config"]["logit_bias"]) == (False, None)


@pytest.mark.anyio
async def test_stop_token_ends_the_answer(engine: EngineClient, make_model: MakeModel) -> None:
    """A stop token ends the answer with "stop" and leaves no text."""
    pieces, last = await collect(engine, generate(make_model(), max_tokens=50, stop=[8]))
    assert "".join(piece.text for piece in pieces) == "6 7 "
    assert last.reason == "stop"


@pytest.mark.anyio
async def test_logprobs(engine: EngineClient, make_model: MakeModel) -> None:
    """Scores come as bytes and natural logarithms, as many alternatives as were asked for."""
    pieces, _ = await collect(engine, generate(make_model(), max_tokens=2, top_logprobs=2))
    (score,) = pieces[0].scores
    assert (score.chosen.raw, score.chosen.logprob, len(score.top)) == (b"6 ", -0.25, 2)
    pieces, _ = await collect(engine, generate(make_model("two"), max_tokens=2))
    assert pieces[0].scores == []


@pytest.mark.anyio
@pytest.mark.parametrize("setting", [{"top_k": 5}, {"min_p": 0.1}])
async def test_setting_that_mlc_lacks_is_refused(
    engine: EngineClient, make_model: MakeModel, setting: dict[str, Any]
) -> None:
    """A setting that MLC-LLM would silently ignore is refused by name."""
    with pytest.raises(InvalidRequestError, match=next(iter(setting))):
        await collect(engine, generate(make_model(), **setting))


@pytest.mark.anyio
async def test_prompt_that_does_not_fit_is_refused(engine: EngineClient, make_model: MakeModel) -> None:
    """A prompt as long as the context, or with an unknown id, never reaches MLC-LLM."""
    model = make_model(context=4)
    with pytest.raises(ContextLengthError):
        await collect(engine, generate(model, prompt=[1, 2, 3, 4]))
    with pytest.raises(InvalidRequestError):
        await collect(engine, generate(model, prompt=[1024]))
    assert [call["call"] for call in calls(model)] == ["load"]


@pytest.mark.anyio
async def test_requests_run_side_by_side(engine: EngineClient, make_model: MakeModel) -> None:
    """Two answers of one model grow at the same time, and each ends by itself."""
    model = make_model(context=10**6)
    first = engine.generate(generate(model, "a", prompt=[1], max_tokens=10**5))
    second = engine.generate(generate(model, "b", prompt=[2], max_tokens=10**5))
    async with contextlib.aclosing(first), contextlib.aclosing(second):
        for _ in range(3):
            assert isinstance(await anext(first), Text)
            assert isinstance(await anext(second), Text)
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.model) == (2, 0, model.directory)
        assert stats.idle == 0


@pytest.mark.anyio
async def test_closing_an_answer_aborts_it(engine: EngineClient, make_model: MakeModel) -> None:
    """Whoever stops reading ends the work inside MLC-LLM."""
    model = make_model(context=10**6)
    async with contextlib.aclosing(engine.generate(generate(model, max_tokens=10**5))) as replies:
        await anext(replies)
    await until(lambda: calls(model)[-1]["call"] == "abort")
    async with asyncio.timeout(60):
        while (await engine.stats()).running:  # noqa: ASYNC110 - there is no event across processes
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_another_model_waits_its_turn(engine: EngineClient, make_model: MakeModel) -> None:
    """A request for another model waits for those that run; the old one is closed before it is loaded."""
    one, two = make_model("one", context=10**6), make_model("two")
    running = engine.generate(generate(one, "a", max_tokens=10**5))
    async with contextlib.aclosing(running):
        await anext(running)
        other = asyncio.create_task(collect(engine, generate(two, "b", max_tokens=1)))
        async with asyncio.timeout(60):
            while (await engine.stats()).waiting == 0:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        await anext(running)
        assert calls(two) == []
    _, last = await other
    assert last.reason == "length"
    assert calls(one)[-1]["call"] == "terminate"
    assert (await engine.stats()).model == two.directory
    await engine.unload()
    assert calls(two)[-1]["call"] == "terminate"
    assert (await engine.stats()).model == ""


@pytest.mark.anyio
async def test_model_that_fails_to_load_is_explained(engine: EngineClient, make_model: MakeModel) -> None:
    """What MLC-LLM raises is in the message; the next model loads."""
    broken, sound = make_model("broken"), make_model("sound")
    (Path(broken.directory) / "broken").touch()
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="no kernel image is available"):
            await engine.load(broken)
    await engine.load(sound)
    assert (await engine.stats()).model == sound.directory


@pytest.mark.anyio
async def test_missing_package_is_named(make_model: MakeModel) -> None:
    """Where MLC-LLM is asked for and not installed, the error says so and what to do."""
    client = EngineClient(worker_command=COMMAND)
    await client.start()
    try:
        with pytest.raises(ModelLoadError, match="MLC-LLM is not installed") as caught:
            await client.load(make_model())
        assert "native" in caught.value.hint
    finally:
        await client.close()


@pytest.mark.anyio
async def test_chat_through_the_whole_service(data_dir: Path, engine: EngineClient) -> None:
    """Template, tokenizer and store are the service's; no library is compiled."""
    settings = load_settings(data_dir=data_dir, model=TINY, engine="mlc")
    (data_dir / "libraries").unlink()
    models, store = Models(settings), Store(data_dir / "hob.db")
    inference = Inference(models, engine, store)
    text = ""
    async for delta in inference.complete([Message(role="user", content="Hello")], TINY, max_tokens=3):
        text += delta.text
    assert delta.finish == "length"
    assert delta.usage
    assert delta.usage.completion_tokens == 3
    assert text.split() == [str(int(text.split()[0]) + step) for step in range(3)]
    assert not (data_dir / "libraries").exists()
    store.close()


def test_auto_takes_mlc_where_it_is_installed_and_a_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice needs both; what is set wins; the hardware is not even looked at without the package."""
    assert choice.engine_kind(load_settings()) == "native"
    assert choice.engine_kind(load_settings(engine="mlc")) == "mlc"
    machine = describe.detect().model_copy(update={"gpus": ()})
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setattr(choice, "detect", lambda: machine)
    assert choice.engine_kind(load_settings()) == "native"
    gpu = Gpu(name="NVIDIA H200", vendor="nvidia", kind="discrete", compute_capability="9.0", driver="nvidia")
    monkeypatch.setattr(choice, "detect", lambda: machine.model_copy(update={"gpus": (gpu,)}))
    assert choice.engine_kind(load_settings()) == "mlc"
    assert choice.engine_kind(load_settings(engine="native")) == "native"
    assert isinstance(choice.make_engine(load_settings(engine="upstream")), Absent)


def test_its_absence_costs_nothing() -> None:
    """The service and the native engine process neither import MLC-LLM nor its adapter."""
    code = "import sys, appliance.app, appliance.engine.choice, appliance.engine.worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"mlc_llm", "appliance.engine.mlc"}.isdisjoint(loaded.stdout.split())
    assert loaded.stderr == ""
