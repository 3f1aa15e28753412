"""Another Hob on this network: what it has, and where its files are."""

import asyncio
import json
from ipaddress import ip_address
from urllib.parse import quote, urlsplit

import httpx2 as httpx
import msgspec

from appliance.errors import DownloadError, UnknownModelError
from appliance.library import manifest
from appliance.library.download import Remote, read
from appliance.library.manifest import MAX_BYTES, Manifest
from appliance.library.source import Peer

LISTEN = 3.0
"""Seconds to listen for the one that is asked for."""


def address(host: str) -> str:
    """The URL of the Hob at `host`: "hob-2.local" as it announces itself, "name:port", or a URL.

    Raises:
        DownloadError: nobody on this network answers to the name.
    """
    if host.startswith(("http://", "https://")):
        parts = urlsplit(host)
        return f"{parts.scheme}://{parts.netloc}"
    _, colon, port = host.rpartition(":")
    if colon and port.isdigit() and not host.endswith("]"):
        return f"http://{host}"
    if not host.endswith(".local"):
        return f"http://{_bracketed(host)}:8080"
    from appliance.discovery import browse  # a tenth of a second that only a search is worth

    found = [hob for hob in asyncio.run(browse(LISTEN)) if hob.host == host.lower()]
    if not found:
        raise DownloadError(
            f"no Hob called {host} answers on this network",
            hint="`hob discover` lists those that do; its address works too: --from 192.0.2.7:8080.",
        )
    # By address: not every system resolves .local names.
    where = found[0].addresses[0] if found[0].addresses else found[0].host
    return f"http://{_bracketed(where)}:{found[0].port}"


def look(client: httpx.Client, source: Peer, key: str) -> tuple[Manifest, tuple[Remote, ...]]:
    """A model of another Hob and where its files are.

    Raises:
        DownloadError: it does not answer, or not as a Hob does.
        AuthenticationError: it wants a key.
        UnknownModelError: it has no such model.
        DamagedError: the manifest it sends is not valid.
    """
    base = address(source.host)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    listing = Remote(f"{base}/api/library", "its list of models", headers=headers)
    data = read(client, listing, 16 * MAX_BYTES)
    try:
        models = msgspec.json.decode(data, type=dict[str, list[dict[str, object]]])["models"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError) as error:
        raise DownloadError(f"{source.host} does not answer as a Hob does", hint="Is it a Hob?") from error
    known = {str(model.get("reference")): model for model in models}
    chosen = known.get(source.model)
    if chosen is None:
        name, at, version = source.model.rpartition("@")
        matching = [
            model
            for model in models
            if at and model.get("name") == name and str(model.get("version", "")).startswith(version)
        ]
        if len(matching) != 1:
            raise UnknownModelError(
                f"{source.host} has no model {source.model!r} to copy",
                hint=f"It has {', '.join(known)}." if known else "It has none that can be copied.",
            )
        chosen = matching[0]
    kept = manifest.decode(json.dumps(chosen.get("manifest")).encode(), f"{source.model} on {source.host}")
    folder = f"{base}/api/library/{quote(f'{kept.name}@{kept.version}')}"
    files = tuple(
        Remote(f"{folder}/{quote(file.name)}", file.name, file.size, file.sha256, headers=headers)
        for file in kept.files
    )
    return kept, files


def _bracketed(host: str) -> str:
    """An IPv6 address as URLs have it; everything else as it is."""
    try:
        return f"[{host}]" if ip_address(host).version == 6 else host
    except ValueError:
        return host
