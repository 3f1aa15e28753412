"""Fixtures for the page: a service whose answers wait for the test, and browsers to look at it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

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


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A browser for all tests; they skip where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    arguments = [
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses to start as root with it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def desk(chromium: Browser, site: Site) -> Iterator[Desk]:
    """Browsers on the service. No page may complain, break the content security policy or ask elsewhere."""
    desk = Desk(chromium, site.url)
    yield desk
    site.engine.release()
    desk.close()
    assert desk.complaints == []
