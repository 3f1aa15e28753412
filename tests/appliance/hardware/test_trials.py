"""When a device fails a model the next one is tried, or none, and every reason is kept."""

import logging

import pytest

from appliance.errors import ModelLoadError
from appliance.hardware.describe import describe
from appliance.hardware.trials import Policy, Trials
from tests.appliance.hardware.machines import recording, room


def trials(name: str, *wanted: str, policy: Policy = "next") -> Trials:
    """Trials on a recorded machine."""
    return Trials(wanted, policy, lambda: describe(recording(name), room(name)))


@pytest.mark.anyio
async def test_the_next_one_is_tried(caplog: pytest.LogCaptureFixture) -> None:
    """A failure moves one model on and not the others; the log says why."""
    orin = trials("orin-nano")
    assert (await orin.choose("llama")).target == "cuda-sm_87"
    with caplog.at_level(logging.WARNING):
        orin.failed("cuda-sm_87", "llama", "nvcc is missing", "Install it.")
    assert "llama does not run on cuda-sm_87: nvcc is missing" in caplog.text
    assert (await orin.choose("llama")).target == "vulkan"
    orin.failed("vulkan", "llama", "TVM has no Vulkan")
    assert (await orin.choose("llama")).target == "cpu"
    assert (await orin.choose("qwen")).target == "cuda-sm_87"


@pytest.mark.anyio
async def test_refusing_to_fall_back() -> None:
    """By the policy `refuse` the first failure is the last word, with its reason."""
    orin = trials("orin-nano", policy="refuse")
    orin.failed("cuda-sm_87", "llama", "nvcc is missing", "Install it.")
    with pytest.raises(ModelLoadError, match="nvcc is missing") as refused:
        await orin.choose("llama")
    assert refused.value.hint == "Install it."
    assert (await trials("pi5", policy="refuse").choose("llama")).target == "cpu"


@pytest.mark.anyio
async def test_nothing_left() -> None:
    """When all have failed, or none was there, the error has everybody's reason."""
    pi = trials("pi5", "cuda", "cpu")
    pi.failed("cpu", "llama", "its logits are not finite")
    with pytest.raises(ModelLoadError) as refused:
        await pi.choose("llama")
    assert "cpu: its logits are not finite" in refused.value.message
    assert "cuda: there is no NVIDIA GPU" in refused.value.message
    with pytest.raises(ModelLoadError, match="no NVIDIA GPU"):
        await trials("pi5", "cuda").choose("llama")


@pytest.mark.anyio
async def test_changed_files_are_tried_anew() -> None:
    """What failed with a model's old files says nothing of the new ones."""
    orin = trials("orin-nano")
    orin.failed("cuda-sm_87", "llama", "a tensor is missing")
    orin.failed("cuda-sm_87", "qwen", "no memory")
    orin.forget("llama")
    assert (await orin.choose("llama")).target == "cuda-sm_87"
    assert (await orin.choose("qwen")).target == "vulkan"


@pytest.mark.anyio
async def test_what_runs_where() -> None:
    """The target of each loaded model is known, until that target fails it."""
    orin = trials("orin-nano")
    orin.works("cuda-sm_87", "llama")
    assert orin.running == {"llama": "cuda-sm_87"}
    orin.failed("cuda-sm_87", "llama", "the engine stopped")
    assert orin.running == {}
