"""Recorded machines, by name."""

from dataclasses import fields
from pathlib import Path

from appliance.hardware.memory import Memory
from appliance.hardware.recording import Recording

FOLDER = Path(__file__).parent
MACHINES = sorted(path.parent.name for path in FOLDER.glob("*/expected.json"))


def recording(name: str) -> Recording:
    """What a machine said of itself."""
    texts = {field.name: FOLDER / name / field.name for field in fields(Recording)}
    found = {field: path.read_text() for field, path in texts.items() if path.exists()}
    return Recording(**{**found, "machine": found["machine"].strip()})


def room(name: str) -> Memory:
    """Its memory: of Linux's /proc/meminfo, or all that a Mac has."""
    if (sysctl := FOLDER / name / "sysctl").exists():
        lines = (line.partition(": ") for line in sysctl.read_text().splitlines())
        size = next(int(value) for key, _, value in lines if key == "hw.memsize")
        return Memory(size, size // 2)
    text = (FOLDER / name / "meminfo").read_text()
    kib = {
        key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    return Memory(kib["MemTotal"] * 2**10, kib["MemAvailable"] * 2**10)
