"""Errors of the builder. Each says what is wrong, names the file or field, and what to do next."""


class BuildError(Exception):
    """Root of everything the builder raises on purpose.

    Attributes:
        hint: the next step for a person, one sentence; empty when there is none.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class FormatError(BuildError):
    """A file is damaged, truncated, or not what its name promises."""


class UnsupportedError(BuildError):
    """The input is well-formed, but this architecture, quantisation or target is not built for it."""


class StaleLibraryError(BuildError):
    """A compiled library belongs to another model, target or compiler version."""


class ToolMissingError(BuildError):
    """A program or wheel that this step needs is not installed."""
