"""Models that are worth knowing: a data file, and whether each fits this machine."""

from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec

from appliance.hardware.memory import Fit, fits, memory

FILE = Path(__file__).with_name("catalogue.toml")

Words = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Count = Annotated[int, msgspec.Meta(gt=0, le=2**50)]


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of the catalogue; the file's head says what each field is."""

    name: Words
    source: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
    revision: Annotated[str, msgspec.Meta(pattern=r"^[\w./-]+$")]
    licence: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.+-]+$")]
    download: Count
    weights: Count
    cache: Count
    context: Count
    good_for: Words
    languages: Annotated[tuple[Words, ...], msgspec.Meta(min_length=1)]
    gated: bool = False

    @property
    def address(self) -> str:
        """What `hob model add` is given."""
        return f"{self.source}@{self.revision}"

    def fit(self, context: int) -> Fit:
        """Hold what it needs, with so many tokens of context at most, against this machine's memory."""
        now = memory()
        return fits(self.weights, self.cache * min(context, self.context), now.available, now.total)


@cache
def catalogue() -> tuple[Known, ...]:
    """All entries, in the file's order."""
    return msgspec.toml.decode(FILE.read_bytes(), type=dict[str, tuple[Known, ...]])["model"]
