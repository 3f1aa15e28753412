"""Another Hob on this network: what it has, and where its files are."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import quote

import httpx2 as httpx
import msgspec

from appliance.errors import AuthenticationError, DownloadError, UnknownModelError
from appliance.library import manifest
from appliance.library.manifest import Manifest
from appliance.library.remote import USUAL, Patience, Remote, read
from appliance.library.source import Peer

LISTEN = 3.0
"""Seconds to listen for the one that is asked for."""
PORT = 8080
MAX_LISTING = 64 * 2**20


def address(host: str) -> str:
    """The URL of the Hob at `host`: "hob-2.local" as it announces itself, "name:port", or a URL.

    Raises:
        DownloadError: nobody on this network answers to the name.
    """
    if host.startswith(("http://", "https://")):
        scheme, _, rest = host.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}"
    if (literal := _bracketed(host.strip("[]"))) != host.strip("[]"):
        return f"http://{literal}:{PORT}"
    _, colon, port = host.rpartition(":")
    if colon and port.isdigit():
        return f"http://{host}"
    if not host.lower().endswith(".local"):
        return f"http://{host}:{PORT}"
    from appliance.discovery.browse import browse  # a tenth of a second that only a search is worth

    found = [hob for hob in asyncio.run(browse(LISTEN)) if hob.host == host.lower()]
    if not found:
        raise DownloadError(
            f"no Hob called {host} answers on this network",
            hint="`hob discover` lists those that do; its address works too: --from 192.0.2.7:8080.",
        )
    # By address: not every system resolves .local names.
    where = found[0].addresses[0] if found[0].addresses else found[0].host
    return f"http://{_bracketed(where)}:{found[0].port}"


class Listed(msgspec.Struct, frozen=True):
    """A model in the list of another Hob. Its manifest, maybe of a later form, is read when it is wanted."""

    reference: str
    name: str
    manifest: msgspec.Raw


class Listing(msgspec.Struct, frozen=True):
    """What another Hob answers."""

    models: tuple[Listed, ...]


def look(
    client: httpx.Client, source: Peer, key: str, patience: Patience = USUAL
) -> tuple[Manifest, tuple[Remote, ...]]:
    """A model of another Hob and where its files are.

    Raises:
        DownloadError: it does not answer, or not as a Hob does.
        AuthenticationError: it wants a key.
        UnknownModelError: it has no such model.
        DamagedError: the manifest it sends is not valid.
    """
    base = address(source.host)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    listing = Remote(f"{base}/api/library", "list of models", headers=headers)
    try:
        data = read(client, listing, MAX_LISTING, patience)
    except AuthenticationError as error:
        raise AuthenticationError(
            f"{source.host} wants one of its API keys",
            hint="Make one there with `hob key add NAME`; then HOB_API_KEY, or --key-file FILE.",
        ) from error
    try:
        models = msgspec.json.decode(data, type=Listing).models
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DownloadError(f"{source.host} does not answer as a Hob does", hint="Is it a Hob?") from error
    kept = _chosen(source, models)
    folder = f"{base}/api/library/{quote(f'{kept.name}@{kept.version}')}"
    files = tuple(
        Remote(f"{folder}/{quote(file.name)}", file.name, file.size, file.sha256, headers=headers)
        for file in kept.files
    )
    return kept, files


def _chosen(source: Peer, models: Sequence[Listed]) -> Manifest:
    """The manifest of the model that is asked for, by name, NAME@VERSION or NAME@REVISION."""

    def read_manifest(model: Listed) -> Manifest:
        return manifest.decode(bytes(model.manifest), f"{source.model} on {source.host}")

    if exact := [model for model in models if model.reference == source.model]:
        return read_manifest(exact[0])
    name, _, wanted = source.model.rpartition("@")
    found = [
        kept for kept in (read_manifest(m) for m in models if m.name == name) if kept.is_meant_by(wanted)
    ]
    if len(found) == 1:
        return found[0]
    known = ", ".join(model.reference for model in models)
    raise UnknownModelError(
        f"{source.host} has no model {source.model!r} to copy",
        hint=f"It has {known}." if known else "It has none that can be copied.",
    )


def _bracketed(host: str) -> str:
    """An IPv6 address as URLs have it; everything else as it is."""
    try:
        return f"[{host}]" if ip_address(host).version == 6 else host
    except ValueError:
        return host
