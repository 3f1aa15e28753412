"""The measuring process: what it prints, and that it gives way."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.measure import device_bandwidth
from appliance.errors import DeviceError
from tests.compiled import golden, library


def measure(*arguments: str) -> dict[str, Any]:
    """What one attempt of the process prints."""
    command = [sys.executable, "-m", "appliance.engine.measure", "--threads", "1", "--attempts", "1"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, timeout=300)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_memory_and_a_model() -> None:
    """Speed of memory, and tokens a second; the only complaint it may have is that others were busy."""
    directory = golden("q4f16_1")
    found = measure("--directory", str(directory), "--library", str(library(directory)))
    assert found["bandwidth"] > 0.1
    assert found["prefill"] > 1
    assert found["decode"] > 1
    assert all(error.startswith("busy: ") for error in found["errors"])


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    """What cannot be measured is named with its reason, and no figure is made up."""
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    found = measure(
        "--target", "cuda-sm_999", "--directory", str(golden("q4f16_1")), "--library", str(broken)
    )
    assert not {"prefill", "decode"} & found.keys()
    assert any(error.startswith("model: ") for error in found["errors"])


def test_copying_on_a_device() -> None:
    """The runtime's own copy is timed; a device that it has not is an error."""
    assert device_bandwidth("cpu", size=2**22, rounds=2) > 0.1


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has Metal")
def test_a_device_without_support() -> None:
    """A device that the runtime cannot drive is an error in words."""
    with pytest.raises(DeviceError, match="Metal"):
        device_bandwidth("metal")


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="only Linux has the idle policy")
def test_it_gives_way() -> None:
    """The process computes only when nobody else wants the processor."""
    code = (
        "import os; from appliance.engine.measure import step_back; step_back();"
        " print(os.sched_getscheduler(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == os.SCHED_IDLE
