"""Whether a device takes an update: pure decisions."""

from packaging.version import InvalidVersion, Version

from appliance.errors import ConflictError, UpdateError
from appliance.update.bundle import Bundle
from appliance.update.slots import Slots


def judge(bundle: Bundle, here: Slots, *, force: bool = False) -> None:
    """Refuse what is for another device, not newer, or too large. `force` lets an older version in.

    Raises:
        UpdateError: it is refused; says why.
        ConflictError: not now: the system that runs is itself on trial, and the other slot is its way back.
    """
    if bundle.compatible != here.compatible:
        raise UpdateError(
            f"this update is for another device: {bundle.compatible}, and this is {here.compatible}",
            hint=f"Get the one for {here.compatible}.",
        )
    if not force and not newer(bundle.version, here.version):
        same = bundle.version == here.version
        raise UpdateError(
            f"version {bundle.version} is what runs here"
            if same
            else f"version {bundle.version} is older than {here.version}, which runs here",
            hint="Going back to the version before: hob update --rollback, or on the page Updates.",
        )
    if here.on_trial:
        raise ConflictError(
            f"version {here.version} is still on trial, and the other slot is the way back from it",
            hint="Wait until it has answered its first question; that takes minutes at most.",
        )
    for image in bundle.images:
        room = here.room.get(image.slot_class)
        if room is not None and image.size > room:
            raise UpdateError(
                f"this update is too large for this device: {image.size} bytes for {image.slot_class},"
                f" and there is room for {room}",
                hint="Flash the image of this version anew; a backup brings back what was here.",
            )


def newer(offered: str, running: str) -> bool:
    """Whether a version is later than the one that runs (PEP 440). One that cannot be compared is not.

    From a version that cannot be compared, any that can is a step forward.
    """
    try:
        there = Version(offered)
    except InvalidVersion:
        return False
    try:
        return there > Version(running)
    except InvalidVersion:
        return True
