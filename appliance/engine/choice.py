"""Which engine runs the models of this machine, and how to reach it."""

import importlib.util
import sys
from pathlib import Path
from typing import Literal

from appliance.config import Settings
from appliance.engine.absent import Absent
from appliance.engine.client import EngineClient
from appliance.hardware.describe import detect
from appliance.hardware.devices import candidates

Kind = Literal["native", "mlc", "upstream"]


def engine_kind(settings: Settings) -> Kind:
    """The engine of the setting `engine`. With "auto": MLC-LLM where it is installed and a GPU computes.

    MLC-LLM is looked for without importing it, and the hardware only where it is there.
    """
    if settings.engine != "auto":
        return settings.engine
    if importlib.util.find_spec("mlc_llm") is None:
        return "native"
    usable = [one.kind for one in candidates(detect(), settings.devices) if one.usable]
    return "native" if usable[:1] in ([], ["cpu"]) else "mlc"


def make_engine(settings: Settings) -> EngineClient | Absent:
    """The engine of these settings; it does nothing before `start`."""
    kind = engine_kind(settings)
    if kind == "upstream":
        return Absent()
    address = Path(settings.engine_socket) if settings.engine_socket else None
    return EngineClient(threads=settings.threads, worker_command=worker_command(kind), address=address)


def worker_command(kind: Literal["native", "mlc"]) -> tuple[str, ...]:
    """The engine process of a kind, to which its arguments are added."""
    return sys.executable, "-m", "appliance.engine.mlc" if kind == "mlc" else "appliance.engine.worker"
