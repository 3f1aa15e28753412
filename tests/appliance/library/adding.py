"""Adding models as the command does, with what was reported on the way."""

from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx

from appliance.library.add import Plan, add, plan
from appliance.library.offer import find
from appliance.library.remote import Patience
from appliance.library.shelf import Entry, Shelf
from appliance.library.source import parse
from builder.compile.convert import convert
from tests.service import GOLDEN

MLC = GOLDEN / "llama3rope" / "q4f16_1"
CHECKPOINT = GOLDEN / "llama3rope" / "hf"

QUICK = Patience(silence=0.4, pause=0.01, window=60)
"""For servers on this machine."""

REPOSITORY = "someone/Tiny-q4f16_1-MLC"
"""A repository on the hub that is there when a test publishes it."""


class Adding:
    """Adds models to a shelf as the command does, and keeps what was reported."""

    def __init__(self, shelf: Shelf, client: httpx.Client) -> None:
        self.shelf = shelf
        self.client = client
        self.steps: list[tuple[str, float]] = []
        self.planned: Plan | None = None
        self.at: dict[str, Callable[[], None]] = {}

    def __call__(
        self,
        source: str | Path,
        *,
        name: str = "",
        key: str = "",
        force: bool = False,
        quantization: str = "q4f16_1",
    ) -> Entry:
        offer = find(parse(str(source)), self.client, key, QUICK)
        self.planned = plan(offer, name=name, quantization=quantization, context=4096)
        return add(
            self.shelf, offer, self.planned, self.client, convert, self.report, force=force, patience=QUICK
        )

    def report(self, step: str, fraction: float, done: int | None = None, total: int | None = None) -> None:
        self.steps.append((step, fraction))
        for start, act in self.at.items():
            if step.startswith(start):
                act()
