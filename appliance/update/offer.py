"""What an address offers: the newest version, by the manifest that lies beside every image that is built.

The manifest only says where to look. Whether a file is taken is decided by its own signature, so an address
need not be trusted: at worst it wastes a download.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit

import httpx2 as httpx
import msgspec

from appliance.errors import DownloadError
from appliance.library.remote import Remote, read
from appliance.update.arrivals import SUFFIX

LARGEST: Final = 16 * 2**20
"""Bytes of a manifest; one that lists a thousand packages has 200 kB."""


class _File(msgspec.Struct):
    name: str
    size: int
    sha256: str


class _Manifest(msgspec.Struct):
    """The fields that are read here; docs/image-format.md has all."""

    version: str
    compatible: str
    files: list[_File]


@dataclass(frozen=True)
class Offer:
    """A version and the file that installs it. `version` and `compatible` are "" where nobody tells."""

    version: str
    compatible: str
    file: Remote


def is_bundle(url: str) -> bool:
    """Whether an address is that of an update file itself."""
    return urlsplit(url).path.lower().endswith(SUFFIX)


def find(client: httpx.Client, url: str) -> Offer:
    """What an address offers: that of a manifest, or of an update file.

    Raises:
        DownloadError, AuthenticationError: it cannot be read, or is neither.
    """
    name = urlsplit(url).path.rpartition("/")[2] or "update"
    if is_bundle(url):
        return Offer("", "", Remote(url, name))
    return parse(read(client, Remote(url, name), LARGEST), url)


def parse(data: bytes, url: str) -> Offer:
    """The offer in a manifest that was found at `url`; its files lie beside it.

    Raises:
        DownloadError: it is no manifest, or lists no update file.
    """
    try:
        told = msgspec.json.decode(data, type=_Manifest)
    except msgspec.MsgspecError as error:
        raise DownloadError(
            f"{url} is no manifest of an image",
            hint="It should be the address of a .manifest.json, or of a .raucb file.",
        ) from error
    for file in told.files:
        if file.name.endswith(SUFFIX) and "/" not in file.name:
            remote = Remote(urljoin(url, file.name), file.name, file.size, file.sha256)
            return Offer(told.version, told.compatible, remote)
    raise DownloadError(
        f"{url} lists no update", hint="Updates are only made where the builder was given keys: --keys."
    )
