"""No engine: this machine runs no model, other servers answer."""

from collections.abc import AsyncGenerator

from appliance.engine.base import Engine
from appliance.engine.messages import Finished, Generate, ModelRef, Stats, Text, Tokens
from appliance.errors import ModelLoadError


class Absent(Engine):
    """Refuses every model."""

    async def start(self) -> None:
        """Nothing is started."""

    async def load(self, model: ModelRef) -> None:
        """As `Engine.load`; always an error."""
        raise _switched_off()

    async def unload(self) -> None:
        """As `Engine.unload`."""

    async def generate(self, request: Generate) -> AsyncGenerator[Tokens | Text | Finished, None]:
        """As `Engine.generate`; always an error."""
        raise _switched_off()
        yield  # what makes it a generator

    async def stats(self) -> Stats:
        """As `Engine.stats`: nothing is loaded, nothing runs."""
        return Stats(id="", model="", waiting=0, running=0, rss=0)

    async def close(self) -> None:
        """As `Engine.close`."""


def _switched_off() -> ModelLoadError:
    return ModelLoadError(
        "this Hob runs no models itself",
        hint='The setting engine = "upstream" says so; engine = "auto" runs them here too.',
    )
