"""Static files are cached for ever under the address that carries their version, and only there."""

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from webui import assets


@pytest.fixture
def client() -> TestClient:
    """A client of the static files alone."""
    return TestClient(Starlette(routes=[Mount("/static", assets.Assets())]))


def test_a_versioned_file_never_changes(client: TestClient) -> None:
    """The address a page uses may be kept for good."""
    response = client.get(assets.url("app.css"))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/css")
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("query", ["", "?v=", "?v=000000000000"])
def test_other_addresses_are_asked_for_again(client: TestClient, query: str) -> None:
    """Without the right version a file is not kept, but an unchanged one is not sent twice either."""
    response = client.get(f"/static/app.css{query}")
    assert response.headers["cache-control"] == "no-cache"
    again = client.get(f"/static/app.css{query}", headers={"if-none-match": response.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("path", ["nothing.css", "../views.py", "%2e%2e/views.py", ""])
def test_only_the_folder_is_served(client: TestClient, path: str) -> None:
    """Whatever is not a file of the folder is not found."""
    assert client.get(f"/static/{path}").status_code == 404


def test_a_wrong_name_is_found_out() -> None:
    """A template that names a file which does not exist fails at once."""
    with pytest.raises(FileNotFoundError):
        assets.url("nothing.css")
