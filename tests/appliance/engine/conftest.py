"""Toy models and the requests that the engine's tests send."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from appliance.engine.messages import Generate, ModelRef, Sampling

# Examples take longer on a busy machine; that is no failure.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

TOY_COMMAND = (sys.executable, "-m", "tests.appliance.engine.toy")


@pytest.fixture
def anyio_backend() -> str:
    """The engine is asyncio's."""
    return "asyncio"


@pytest.fixture
def make_toy(tmp_path: Path) -> Callable[..., ModelRef]:
    """Make a toy model directory."""

    def make(name: str = "toy", context: int = 2**20, **arguments: Any) -> ModelRef:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "toy.json").write_text(json.dumps(arguments))
        return ModelRef(directory=str(directory), library="", context=context)

    return make


@pytest.fixture
def toy(make_toy: Callable[..., ModelRef]) -> ModelRef:
    """One toy model."""
    return make_toy()


def generate(
    model: ModelRef,
    id: str = "a",
    *,
    prompt: list[int] | None = None,
    max_tokens: int = 8,
    stop: list[int] | None = None,
    **sampling: Any,
) -> Generate:
    """A request."""
    return Generate(
        id=id,
        model=model,
        prompt_ids=prompt or [3, 4, 5],
        max_tokens=max_tokens,
        stop_token_ids=stop or [],
        sampling=Sampling(**{"temperature": 0.0, **sampling}),
    )
