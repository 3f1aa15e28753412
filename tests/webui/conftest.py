"""Fixtures for the page: a service whose answers wait for the test, and browsers to look at it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.webui.desk import Desk
from tests.webui.site import Site, serve


@pytest.fixture(scope="session")
def site_of_session(tmp_path_factory: pytest.TempPathFactory, libraries: Path) -> Iterator[Site]:
    """One service for all tests of the page."""
    with serve(tmp_path_factory.mktemp("page"), libraries) as site:
        yield site


@pytest.fixture
def site(site_of_session: Site) -> Site:
    """The service, its answers held back after six tokens."""
    site_of_session.engine.hold(6)
    return site_of_session


@pytest.fixture
def desk(chromium: Browser, site: Site) -> Iterator[Desk]:
    """Browsers on the service. No page may complain, break the content security policy or ask elsewhere."""
    desk = Desk(chromium, site.url)
    yield desk
    site.engine.release()
    desk.close()
    assert desk.complaints == []
