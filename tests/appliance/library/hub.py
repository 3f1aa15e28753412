"""A server on this machine that behaves like Hugging Face's, and misbehaves on demand.

The routes, headers and redirects are the hub's: `/api/models/OWNER/NAME/revision/REV?blobs=true` describes a
repository; `/OWNER/NAME/resolve/REV/FILE` gives a file, large ones by way of another address, with ETag,
X-Repo-Commit and X-Linked-Size.
"""

import hashlib
import json
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 4096
"""Files from this size on are "LFS" files: described by SHA-256 and given by redirect."""


class Hub:
    """Repositories, and what goes wrong with them.

    Attributes:
        url: without a slash at its end.
        repositories: by id, then revision, then file name.
        gated: ids that want a token.
        token: the one that is right.
        faults: by file name, what happens to the next requests for it, first come first served. A number is
            a status; "stall" sends half and then nothing; "truncate" sends half and hangs up; "longer" sends
            more than announced; "shorter" announces half; "change" gives other content under another tag;
            "corrupt" gives other content under the same tag; "no range" ignores ranges; "chunked" tells no
            length; "other part" answers a range with another one;
            "gateway" sends a page of something in between.
        requests: method, path and headers of every request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.token = "hf_right"
        self.licence = "apache-2.0"
        self.faults: defaultdict[str, list[Any]] = defaultdict(list)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stop = threading.Event()

    def publish(self, repository: str, files: dict[str, bytes] | Path, revision: str = "main") -> str:
        """Put files into a repository, under a branch and its commit; the commit."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in sorted(files.iterdir()) if path.is_file()}
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()  # noqa: S324 - as git has it
        revisions = self.repositories.setdefault(repository, {})
        revisions[revision] = revisions[commit] = files
        return commit

    def asked(self, name: str) -> list[dict[str, str]]:
        """Headers of the requests for a file's content, those that were led elsewhere left out."""
        return [headers for path, headers in self.requests if path.endswith(f"/{name}") and "/cdn/" in path]


@contextmanager
def running() -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
    server = _Server(("127.0.0.1", 0), _Handler)
    hub = server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        hub.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


def git_blob(data: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - git's


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up: that is part of these tests."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((path, headers))
        with suppress(ConnectionError):
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self._describe(found[1], found[2] or "main", headers)
            elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path):
                self._content(found[1], found[2], found[3], headers)
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(found[1], found[2], found[3], headers)
            else:
                self._refuse(404, "EntryNotFound")

    def _describe(self, repository: str, revision: str, headers: dict[str, str]) -> None:
        if self._fault("api", repository):
            return
        known = self.hub.repositories.get(repository)
        if known is None:
            self._refuse(401, "RepoNotFound")  # the hub does not tell strangers what is private
        elif revision not in known:
            self._refuse(404, "RevisionNotFound")
        else:
            files = known[revision]
            commit = next(r for r, f in known.items() if f is files and re.fullmatch("[0-9a-f]{40}", r))
            siblings: list[dict[str, Any]] = []
            for name, data in files.items():
                sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_blob(data)}
                if len(data) >= LARGE:
                    sha = hashlib.sha256(data).hexdigest()
                    sibling["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 130}
                siblings.append(sibling)
            gated = "manual" if repository in self.hub.gated else False
            card = {"license": self.hub.licence}
            told = {"id": repository, "sha": commit, "siblings": siblings, "cardData": card, "gated": gated}
            self._json(200, {**told, "tags": [], "downloads": 0, "likes": 0, "private": False})

    def _resolve(self, repository: str, revision: str, name: str, headers: dict[str, str]) -> None:
        if repository in self.hub.gated and headers.get("authorization") != f"Bearer {self.hub.token}":
            self._refuse(401, "GatedRepo")
            return
        data = self.hub.repositories.get(repository, {}).get(revision, {}).get(name)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        self.send_response(302)
        # Another name for this machine: another host, as the hub's storage is.
        port = urlsplit(self.hub.url).port
        self.send_header(
            "location", f"http://localhost:{port}/cdn/{repository}/{revision}/{name}?signature=x"
        )
        self.send_header("x-repo-commit", revision)
        self.send_header("x-linked-size", str(len(data)))
        self.send_header("x-linked-etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("content-length", "0")
        self.end_headers()

    def _content(self, repository: str, revision: str, name: str, headers: dict[str, str]) -> None:
        data = self.hub.repositories[repository][revision][name]
        fault = self._fault(name, repository)
        if fault is True:
            return
        if fault == "gateway":
            self._json(200, {"please": "sign in"})
            return
        etag = f'"{hashlib.md5(data).hexdigest()}"'  # noqa: S324 - as S3 has it
        if fault in ("change", "corrupt"):
            data = bytes(byte ^ 1 for byte in data)
            etag = f'"{hashlib.md5(data).hexdigest()}"' if fault == "change" else etag  # noqa: S324 - as S3
        asked = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        start = int(asked[1]) if asked else 0
        fresh = headers.get("if-range", etag) == etag
        if asked and start >= len(data) and fresh:
            self._refuse(416, "RangeNotSatisfiable")
            return
        if asked and fresh and fault != "no range":
            self.send_response(206)
            first = start + 1 if fault == "other part" else start
            self.send_header("content-range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            start = 0
            self.send_response(200)
        body = data[start:]
        length = {"shorter": len(body) // 2, "longer": len(body)}.get(str(fault), len(body))
        if fault == "longer":
            body += b"more"
            length = len(body)
        if fault == "chunked":
            self.send_header("connection", "close")
            self.close_connection = True
        else:
            self.send_header("content-length", str(length))
        self.send_header("etag", etag)
        self.send_header("accept-ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("stall", "truncate"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.hub.stop.wait(20)
            self.close_connection = True
            return
        self.wfile.write(body[:length])

    def _fault(self, name: str, repository: str) -> Any:
        """The next fault for a file; True when it was a status and is dealt with."""
        waiting = self.hub.faults[name]
        fault = waiting.pop(0) if waiting else None
        if isinstance(fault, int):
            self._refuse(fault, "")
            return True
        return fault

    def _refuse(self, status: int, code: str) -> None:
        self._json(status, {"error": code}, {"x-error-code": code, "x-error-message": code} if code else {})

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        if status == 429:
            self.send_header("retry-after", "0")
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
