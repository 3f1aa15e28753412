"""Whether an address has a newer version for this device."""

from appliance.errors import DownloadError
from appliance.library.remote import session
from appliance.update import offer
from appliance.update.verdict import newer


def newest(url: str, compatible: str, version: str) -> str:
    """The version that an address offers to a device of this kind; "" when it is not newer than `version`.

    Raises:
        DownloadError: it cannot be read, is for another device, or does not tell which version it has.
        AuthenticationError: it wants a key.
    """
    with session() as http:
        found = offer.find(http, url)
    if not found.version:
        raise DownloadError(
            f"{url} does not tell which version it has",
            hint="Set update_url to the address of the .manifest.json that lies beside it.",
        )
    if found.compatible != compatible:
        raise DownloadError(f"{url} has updates for {found.compatible}, and this is {compatible}")
    return found.version if newer(found.version, version) else ""
