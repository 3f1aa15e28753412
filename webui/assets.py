"""Static files under addresses that carry a hash of their content, so that browsers keep them for good."""

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Final

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER: Final = Path(__file__).parent / "static"


@cache
def url(name: str) -> str:
    """The address of a static file, with the version that makes it immutable.

    Raises:
        FileNotFoundError: there is no such file; a template names it wrongly.
    """
    digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


class Assets(StaticFiles):
    """The folder's files; a right `v` may be cached for ever, anything else is asked for again by ETag."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """As the base class, plus Cache-Control."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        _, _, version = url(Path(full_path).name).partition("?")
        fresh = scope["query_string"] == version.encode()
        response.headers["cache-control"] = "public, max-age=31536000, immutable" if fresh else "no-cache"
        return response
