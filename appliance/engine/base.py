"""The seams between the service and whatever runs models.

`Engine` takes token ids: the engine process behind `client.EngineClient`. `ChatModel`, one level up, takes
messages: a model on this machine (`local`: chat template, engine, detokenising) or on another (`upstream`:
HTTP, where template and tokenizer are the other server's).
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from appliance.domain import Delta, Message, ModelCard
from appliance.engine.messages import Finished, Generate, ModelRef, Stats, Text, Tokens, Wishes


class Engine(Protocol):
    """Request-level engine: token ids in, token ids (or text) out."""

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

    def generate(self, request: Generate) -> AsyncGenerator[Tokens | Text | Finished, None]:
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


class ChatModel(Protocol):
    """A model that answers messages."""

    @property
    def card(self) -> ModelCard:
        """The model as people and programs see it."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """How it samples when a request says nothing: fields of `Sampling`, as far as they are known here."""
        ...

    def answer(
        self, messages: Sequence[Message], wishes: Wishes, max_tokens: int | None, stops: Sequence[str]
    ) -> AsyncGenerator[Delta, None]:
        """Answer `messages`; the last delta has `finish`. Closing the generator early cancels.

        `max_tokens` is an upper bound: the end of the context window ends an answer as well, with finish
        "length". No text follows one of `stops`.

        Raises:
            ContextLengthError: the messages do not fit the context window.
            InvalidRequestError: the model cannot do what is asked for.
            EngineUnavailableError, ModelLoadError: it cannot answer now; possible after any delta.
        """
        ...


class ChatModels(Protocol):
    """Where models come from: this machine, or other servers."""

    def cards(self) -> Sequence[ModelCard]:
        """The models that can be asked, as far as is known now. Never waits for a network."""
        ...

    async def find(self, name: str) -> ChatModel | None:
        """The model of this name, or None.

        Raises:
            ModelLoadError: there is one, but it is damaged.
        """
        ...
