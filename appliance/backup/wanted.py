"""The models of a restored backup that are not here, and how each would come back."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.backup.content import Model, Models
from appliance.backup.pending import RESTORED_MODELS
from appliance.library.manifest import Origin


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that was there. `source` adds it again, "" where only a file had it; `default`: it answered."""

    model: Model
    source: str
    default: bool


def read(data_dir: Path) -> Models:
    """The models of the restored backup; none where none was restored, or the list cannot be read."""
    try:
        return msgspec.json.decode((data_dir / RESTORED_MODELS).read_bytes(), type=Models)
    except (OSError, msgspec.MsgspecError):
        return Models()


def missing(listed: Models, here: Iterable[str]) -> list[Wanted]:
    """Those whose name nothing here has."""
    names = set(here)
    return [
        Wanted(model, source(model.origin), model.name == listed.default)
        for model in listed.models
        if model.name not in names
    ]


def source(origin: Origin) -> str:
    """What `hob model add` is given to bring a model back; "" where its file is not to be found by itself."""
    match origin.kind:
        case "hub":
            revision = f"@{origin.revision}" if origin.revision else ""
            return f"{origin.source}{revision}"
        case "url" | "hob":
            return origin.source
        case _:
            return ""
