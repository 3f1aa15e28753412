"""A device that fails a model, in the running service: the next one answers, and everybody can see why."""

import shutil
from pathlib import Path

import pytest

from appliance.shipped import GUIDE, GUIDE_DIRECTORY
from builder.compile.library import identify, manifest_of, write_manifest
from builder.compile.mlc import MLCDirectory
from builder.compile.targets import parse_target
from tests.conftest import StartHob
from tests.service import MODEL, TINY, run_hob

TARGET = "cuda-sm_89"


@pytest.fixture
def broken_library(data_dir: Path) -> None:
    """A library for a GPU that passes every check of its manifest, and that no loader takes."""
    shared = (data_dir / "libraries").resolve()
    (data_dir / "libraries").unlink()
    shutil.copytree(shared, data_dir / "libraries")
    for directory in (data_dir / "models" / TINY, GUIDE_DIRECTORY):
        if not directory.is_dir():
            continue
        identity = identify(MLCDirectory.open(directory), parse_target(TARGET), "fast")
        library = data_dir / "libraries" / identity.file_name
        library.write_bytes(b"not a library")
        write_manifest(library, identity, manifest_of(library))


@pytest.mark.usefixtures("broken_library")
def test_the_processor_answers(start_hob: StartHob) -> None:
    """A GPU whose library does not load is passed over with its reason: API, page, log, doctor."""
    hob = start_hob(HOB_DEVICES=f"{TARGET},cpu")
    status, answer = hob.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 4}
    )
    assert status == 200
    assert answer["usage"]["completion_tokens"] > 0
    status, system = hob.get("/api/system")
    assert status == 200
    assert system["engine"]["target"] == "cpu"
    states = {device["target"]: device for device in system["devices"]}
    assert states[TARGET]["state"] == "failed"
    assert states["cpu"]["state"] == "in use"
    (failure,) = system["failures"]
    assert (failure["model"], failure["target"]) == (MODEL, TARGET)
    assert "load" in failure["reason"].lower()
    assert f"{MODEL} does not run on {TARGET}" in hob.log.read_text()
    doctor = run_hob(hob.data_dir, "doctor", HOB_PORT=str(hob.port))
    assert f"device {TARGET}" in doctor.stdout


@pytest.mark.usefixtures("broken_library")
def test_another_model_falls_back_while_it_is_asked(start_hob: StartHob) -> None:
    """A model that is loaded by a question, not at the start, has its answer from the next device too."""
    if MODEL == TINY:
        pytest.skip("the built-in model is not here")
    hob = start_hob(HOB_DEVICES=f"{TARGET},cpu")
    status, answer = hob.post(
        "/v1/chat/completions",
        {"model": TINY, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
    )
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 4
    _, system = hob.get("/api/system")
    assert [failure["model"] for failure in system["failures"]] == [GUIDE, TINY]
    assert system["engine"]["model"] == TINY


@pytest.mark.usefixtures("broken_library")
def test_refusing_to_fall_back(start_hob: StartHob) -> None:
    """With the policy `refuse` nothing answers, and the reason is in the service's health."""
    hob = start_hob(ready=False, HOB_DEVICES=f"{TARGET},cpu", HOB_DEVICE_FALLBACK="refuse")
    status, health = hob.get("/healthz")
    assert status == 503
    assert f"{MODEL} does not run on {TARGET}" in health["reason"]
    _, system = hob.get("/api/system")
    assert system["engine"]["status"] == "failed"


def test_the_state_of_a_sound_service(start_hob: StartHob) -> None:
    """Machine, engine, memory, disk and speed are told, and real answers are timed."""
    hob = start_hob()
    _, system = hob.get("/api/system")
    assert system["engine"]["model"] == MODEL
    assert system["engine"]["memory"] > 0
    assert system["failures"] == []
    assert 0 < system["memory"]["available"] <= system["memory"]["total"]
    assert 0 < system["disk"]["available"] <= system["disk"]["total"]
    assert system["uptime"] > 0
    assert system["speed"]["due"]
    assert system["answers"] == []
    assert {device["kind"] for device in system["devices"]} == {"cuda", "metal", "vulkan", "cpu"}
