"""What is backed up beside the database: settings that belong to the house, and the list of models."""

from collections.abc import Iterable
from typing import Any, Final

from appliance.backup.content import Model
from appliance.config import Settings
from appliance.library.shelf import Entry

PORTABLE: Final = (
    "name",
    "allowed_hosts",
    "context",
    "unload_after",
    "device_fallback",
    "upstreams",
    "kernels",
    "max_body",
    "backups_kept",
)
"""Settings that mean the same on another machine. Addresses, ports, folders, threads and devices do not, and
the default model may not be there."""


def settings(current: Settings) -> dict[str, Any]:
    """The portable settings that somebody made, as JSON has them.

    Servers whose key or certificates lie in a file of this machine are left out: they would keep another
    Hob from starting.
    """
    made = set(PORTABLE) & current.model_fields_set
    found = current.model_dump(mode="json", include=made)
    if "upstreams" in found:
        found["upstreams"] = [one for one in found["upstreams"] if not (one["key_file"] or one["ca_file"])]
    return found


def models(entries: Iterable[Entry]) -> tuple[Model, ...]:
    """The models on a shelf, to bring them back by; those without a manifest have no origin to name."""
    return tuple(
        Model(entry.name, kept.version, kept.size, kept.origin, kept.licence)
        for entry in entries
        if (kept := entry.manifest) is not None
    )
