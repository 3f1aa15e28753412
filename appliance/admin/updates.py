"""Updating the device: what lies in its slots, and bringing a file into the other one."""

from pathlib import Path
from typing import Final

from msgspec.structs import replace

from appliance.admin.messages import (
    DescribeUpdates,
    Done,
    GoBack,
    InspectUpdate,
    InstallUpdate,
    Offered,
    Progress,
    Updates,
)
from appliance.admin.server import Tell
from appliance.errors import InvalidRequestError, NotFoundError
from appliance.update import install as installation
from appliance.update.verdict import judge, newer

FOLDERS: Final = (Path("/var/lib/hob/updates"), Path("/media"), Path("/run/media"), Path("/mnt"))
"""Where update files come from: what the service fetched, and sticks."""


async def describe(request: DescribeUpdates, tell: Tell) -> Updates:
    """The slots, and the last update."""
    _on_a_device()
    here = await installation.survey()
    kept = installation.history(here)
    told = Updates(
        compatible=here.compatible,
        version=here.version,
        slot=here.current,
        on_trial=here.on_trial,
        other=kept.versions.get(here.other, ""),
        can_go_back=here.other in here.good and not here.on_trial,
        next=here.next,
    )
    if (last := kept.attempt) is None:
        return told
    return replace(
        told,
        tried=last.version,
        tried_from=last.before,
        state=last.state,
        reason=last.reason,
        at=last.at,
    )


async def inspect(request: InspectUpdate, tell: Tell) -> Offered:
    """Whether a file would be taken."""
    _on_a_device()
    here, found = await installation.survey(), await installation.inspect(allowed(request.path))
    judge(found, here, force=True)
    return Offered(version=found.version, newer=newer(found.version, here.version))


async def install(request: InstallUpdate, tell: Tell) -> Done:
    """Write a file into the other slot."""
    _on_a_device()

    def told(text: str, share: float | None) -> None:
        tell(Progress(text=text, fraction=share))

    version = await installation.install(allowed(request.path), told)
    return Done(text=f"Version {version} is installed and will be tried at the next start.")


async def go_back(request: GoBack, tell: Tell) -> Done:
    """Have the other slot tried next."""
    _on_a_device()
    version = await installation.go_back()
    return Done(text=f"Version {version or 'before'} will be tried at the next start.")


def allowed(path: str) -> Path:
    """The file, if it lies where update files come from, wherever links in its path lead.

    Raises:
        InvalidRequestError: it lies elsewhere.
        NotFoundError: it is not there, or no file.
    """
    try:
        found = Path(path).resolve(strict=True)
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}", hint="Was the stick removed?") from error
    if not any(found.is_relative_to(folder) for folder in FOLDERS):
        raise InvalidRequestError(
            f"{path} is not where updates come from", param="path", hint="Put it on a stick, or upload it."
        )
    if not found.is_file():
        raise NotFoundError(f"{path} is no file")
    return found


def _on_a_device() -> None:
    if not installation.present():
        raise InvalidRequestError(
            "this kind of installation is not updated by Hob",
            hint="Only Hob's own images are. Here, use the package or image that it came from.",
        )
