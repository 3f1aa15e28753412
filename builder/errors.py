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


class RecipeError(BuildError):
    """A recipe asks for what does not exist, or lacks something; the message names the file and the key."""


class PrivilegeError(BuildError):
    """This step needs root or a user namespace, and neither is to be had."""


class MirrorError(BuildError):
    """The Debian mirror is unknown, cannot be reached, or lacks what was asked of it."""


class SpaceError(BuildError):
    """The disk has not enough room for what is to be written."""


class CommandError(BuildError):
    """A program that the builder runs has failed; the message ends with the last lines it wrote."""


class DriveError(BuildError):
    """A disk cannot be written, must not be, or does not give back what was written to it."""
