"""Fields of a model's description, checked one by one; every error names file and field."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from builder.errors import FormatError, UnsupportedError

LARGEST = 2**31 - 1  # no dimension of a model is beyond it
# Nor any number: what is computed from them stays inside float32.
NUMBERS = (1e-15, 1e15)


@dataclass(frozen=True)
class Sizes:
    """What a person may choose when converting.

    Attributes:
        context: tokens of context; None takes the checkpoint's own.
        chunk: tokens per prefill step; None takes MLC-LLM's default.
        batch: largest batch.
    """

    context: int | None
    chunk: int | None
    batch: int

    def chunk_of(self, context: int, limit: int = 8192) -> int:
        """Tokens per prefill step of a model of `context` tokens; `limit` is MLC-LLM's default."""
        return min(self.chunk or limit, context)


@dataclass(frozen=True)
class Fields:
    """An object of a JSON file.

    Attributes:
        where: how messages name it: a file, with the path inside it.
        values: the object. None counts as absent.
    """

    where: str
    values: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether the field is there."""
        return self.values.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """The field as it is."""
        return self.values[name] if self.has(name) else default

    def integer(self, name: str, default: int | None = None, *, most: int = LARGEST) -> int:
        """A positive integer, `most` at most."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(name, "is not a positive integer")
        if value > most:
            raise self.wrong(name, f"is more than {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number, an int where the file has one."""
        value = self.get(name, default)
        if not _is_number(value):
            raise self.wrong(name, "is not a positive number")
        return value

    def epsilon(self, name: str, default: float) -> float:
        """What a norm adds before it divides."""
        value = self.number(name, default)
        if value >= 1:
            raise self.wrong(name, "is not a small positive number")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "is not a boolean")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "is not a string")
        return value

    def numbers(self, name: str, count: int) -> list[float]:
        """A list of `count` positive numbers."""
        value = self.get(name)
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(name, f"is not a list of {count} numbers")
        if not all(map(_is_number, value)):
            raise self.wrong(name, "has a number that is not positive")
        return value

    def section(self, name: str) -> "Fields":
        """An object inside this one; empty where it is absent."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "is not an object")
        return Fields(f"{self.where}: {name}", value)

    def only(self, name: str, supported: object) -> None:
        """Refuse a field that says anything but what is supported.

        Raises:
            UnsupportedError: names field and value.
        """
        if self.get(name, supported) != supported:
            raise UnsupportedError(
                f"{self.where}: {name} {self.values[name]!r} is not supported", hint=f"Only {supported!r} is."
            )

    def wrong(self, name: str, problem: str) -> FormatError:
        """The error for a field; `problem` completes the sentence that starts with its value."""
        value = repr(self.values.get(name))
        value = value if len(value) <= 60 else value[:57] + "..."
        return FormatError(
            f"{self.where}: {name}: {value} {problem}", hint="Download or copy the model again."
        )


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a positive number of a size that models have."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return usable and NUMBERS[0] <= value <= NUMBERS[1]
