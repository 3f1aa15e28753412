"""The library for other Hobs: which models there are, and their files, with ranges (RFC 9110 §14)."""

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from appliance.errors import NotFoundError
from appliance.library.shelf import Entry, Shelf


def routes(shelf: Shelf) -> list[Route]:
    """GET /api/library and GET /api/library/NAME@VERSION/FILE, for callers that the gate knows."""

    async def listing(request: Request) -> Response:
        entries = await asyncio.to_thread(shelf.entries)
        return JSONResponse({"models": [described(entry) for entry in entries if entry.manifest]})

    async def content(request: Request) -> Response:
        # What the address says is looked up in manifests, and never becomes part of a path.
        entry = await asyncio.to_thread(shelf.find, request.path_params["model"])
        file = entry.manifest.file(request.path_params["file"]) if entry.manifest else None
        if file is None:
            raise NotFoundError(f"{entry.reference} has no such file")
        path = entry.path / file.name
        if path.is_symlink() or not path.is_file():
            raise NotFoundError(
                f"{file.name} of {entry.reference} is missing here", hint="`hob model verify` says more."
            )
        return FileResponse(path, media_type="application/octet-stream", headers={"etag": f'"{file.sha256}"'})

    return [
        Route("/api/library", listing, methods=["GET"]),
        Route("/api/library/{model:path}/{file}", content, methods=["GET"]),
    ]


def described(entry: Entry) -> dict[str, object]:
    """A model that can be copied: how to ask for it, and its manifest."""
    return {
        "reference": entry.reference,
        "name": entry.name,
        "version": entry.version,
        "manifest": msgspec.to_builtins(entry.manifest),
    }
