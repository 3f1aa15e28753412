"""The engine process with real compiled models: the reference's tokens, and little memory beside them."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.engine.client import EngineClient
from appliance.engine.messages import Finished, Generate, ModelRef, Sampling, Tokens
from builder.compile.mlc import MLCDirectory
from tests.compiled import REFERENCES, Reference, golden, library

GUIDE = Path(__file__).parents[3] / "builder" / "guide" / "model"
CONTEXT = 512
LIMIT = 300

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine() -> AsyncIterator[EngineClient]:
    """A started engine."""
    client = EngineClient()
    async with asyncio.timeout(LIMIT):
        await client.start()
        yield client
        await client.close()


def compiled(directory: Path, kernels: str) -> ModelRef:
    """A model directory with its library."""
    return ModelRef(directory=str(directory), library=str(library(directory, kernels)), context=CONTEXT)


def known_bytes(directory: Path) -> int:
    """Weights, as stored, and KV cache: float32 keys and values of every layer and position."""
    config: dict[str, int] = json.loads((directory / "mlc-chat-config.json").read_text())["model_config"]
    per_token = 2 * 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    return per_token * CONTEXT + sum(shard.stat().st_size for shard in directory.glob("*.bin"))


async def collect(
    engine: EngineClient, model: ModelRef, prompt: list[int], max_tokens: int, sampling: Sampling
) -> list[int]:
    """Tokens of one request."""
    request = Generate(
        id="a", model=model, prompt_ids=prompt, max_tokens=max_tokens, stop_token_ids=[], sampling=sampling
    )
    result: list[int] = []
    async for reply in engine.generate(request):
        if isinstance(reply, Tokens):
            result += [token.token for token in reply.tokens]
        else:
            assert isinstance(reply, Finished)
            assert reply.completion_tokens == len(result)
    return result


@pytest.mark.parametrize("reference", REFERENCES["q4f32_1"], ids=["short prompt", "prompt of two chunks"])
async def test_greedy_tokens_are_the_references(engine: EngineClient, reference: Reference) -> None:
    """Through sockets, scheduler and sampler, a directory that MLC-LLM wrote answers as MLC-LLM does."""
    model = compiled(golden("q4f32_1"), "exact")
    tokens = await collect(engine, model, reference.prompt, 32, Sampling(temperature=0))
    assert tokens == reference.greedy_ids


async def test_the_same_seed_gives_the_same_text(engine: EngineClient) -> None:
    """Twice in one process; another seed gives another text."""
    model = compiled(golden("q4f16_1"), "fast")
    prompt = REFERENCES["q4f16_1"][0].prompt
    texts = [
        await collect(engine, model, prompt, 40, Sampling(temperature=1, top_p=0.95, seed=seed))
        for seed in (1, 2, 1)
    ]
    assert texts[0] == texts[2] != texts[1]


async def test_a_model_that_is_freed_gives_its_memory_back(engine: EngineClient) -> None:
    """Weights and KV cache leave the process; the next request loads the model again and answers the same."""
    model = compiled(GUIDE, "fast")
    prompt = [5, 6, 7]
    first = await collect(engine, model, prompt, 8, Sampling(temperature=0))
    before = (await engine.stats()).rss
    await engine.unload()
    after = await engine.stats()
    assert after.model == ""
    assert before - after.rss > 0.8 * MLCDirectory.open(GUIDE).nbytes
    assert await collect(engine, model, prompt, 8, Sampling(temperature=0)) == first
    assert (await engine.stats()).model == str(GUIDE)


@pytest.mark.parametrize("directory", [golden("q4f16_1"), GUIDE], ids=["golden", "guide"])
async def test_memory_beside_weights_and_cache(engine: EngineClient, directory: Path) -> None:
    """After generating with a full context, the process has at most 120 MB beyond weights and KV cache."""
    model = compiled(directory, "fast")
    prompt = [5 + n % 90 for n in range(CONTEXT - 40)]
    tokens = await collect(engine, model, prompt, 100, Sampling(temperature=1, top_p=0.9, seed=0))
    assert len(tokens) == 40  # the context is full
    rest = (await engine.stats()).rss - known_bytes(directory)
    assert 0 < rest <= 120e6
