"""The one seam between the service and whatever runs models."""

from collections.abc import AsyncGenerator
from typing import Protocol

from appliance.engine.messages import Finished, Generate, ModelRef, Stats, Tokens


class Engine(Protocol):
    """Request-level engine: token ids in, token ids out."""

    async def load(self, model: ModelRef) -> None:
        """Make `model` ready, so that its first request does not wait for it.

        Raises:
            ModelLoadError: it cannot run here; the message says why.
            EngineUnavailableError: the engine is down.
        """
        ...

    async def unload(self) -> None:
        """Free the loaded model once the requests before this one have ended; the next request loads its own.

        Raises:
            EngineUnavailableError: the engine is down.
        """
        ...

    def generate(self, request: Generate) -> AsyncGenerator[Tokens | Finished, None]:
        """Run one request. Closing the generator early cancels it within one token.

        Raises:
            ModelLoadError, EngineUnavailableError: as in `load`, also in the middle of the stream.
        """
        ...

    async def stats(self) -> Stats:
        """What the engine is doing now."""
        ...

    async def close(self) -> None:
        """Stop the engine; running requests end with `EngineUnavailableError`."""
        ...
