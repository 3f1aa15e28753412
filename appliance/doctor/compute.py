"""What computes: devices that are opened to see, and what a running Hob says of them."""

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from appliance.config import Settings
from appliance.doctor.finding import Finding
from appliance.hardware.devices import Candidate


def devices(found: Sequence[Candidate]) -> Iterator[Finding]:
    """What computes, what it lacks, and what keeps a device that is there from being used."""
    usable = [candidate for candidate in found if candidate.usable]
    if not usable:
        yield Finding(
            check="device",
            status="problem",
            detail="none of the setting `devices` is here: "
            + "; ".join(f"{one.target}: {one.reason}" for one in found if "left out" not in one.reason),
            hint='Leave the setting out, or add "cpu" to it.',
        )
    for place, candidate in enumerate(usable):
        lacking = missing(candidate)
        first = "tried first" if place == 0 and len(usable) > 1 else "tried next" if place else "the one used"
        yield Finding(
            check=f"device {candidate.target}",
            status="warning" if lacking else "ok",
            detail=f"{candidate.name}: {lacking or candidate.reason}; {first}",
            hint="" if not lacking else "Without it the next device computes: docs/models.md, Devices.",
        )
    for candidate in found:
        if not candidate.usable and candidate.name and candidate.hint:
            yield Finding(
                check=f"device {candidate.target}",
                status="ok" if "To try it" in candidate.hint else "warning",
                detail=f"{candidate.name} is not used: {candidate.reason}",
                hint=candidate.hint,
            )


def missing(candidate: Candidate) -> str:
    """What a device lacks here to run models; empty when nothing. A GPU is opened, in another process."""
    if candidate.kind == "cpu":
        return ""
    command = (sys.executable, "-m", "appliance.engine.measure", "--attempts", "1", "--target")
    try:
        done = subprocess.run(
            [*command, candidate.target], capture_output=True, text=True, timeout=30, check=True
        )
        errors: list[str] = json.loads(done.stdout)["errors"]
    except (subprocess.SubprocessError, ValueError) as error:
        return f"it cannot be opened: {error}"
    for text in errors:
        if text.startswith("memory: "):
            return text.removeprefix("memory: ").rstrip(".")
    if candidate.kind == "cuda" and shutil.which("nvcc") is None:
        return "there is no nvcc to compile models with"
    return ""


def running(settings: Settings) -> dict[str, Any]:
    """What a Hob that runs here says of itself (`overview.Overview`); empty where none answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.port}/api/system", timeout=5) as answer:
            told = json.load(answer)
    except (OSError, ValueError):  # none is running, or another program, or an older Hob
        return {}
    return told if isinstance(told, dict) else {}


def failures(told: Mapping[str, Any]) -> Iterator[Finding]:
    """What a Hob that is running here says of devices that failed a model."""
    for failure in told.get("failures", []):
        yield Finding(
            check=f"device {failure['target']}",
            status="warning",
            detail=f"{failure['model']} does not run on it: {failure['reason']}",
            hint=failure["hint"],
        )
