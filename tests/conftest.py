"""Fixtures for all tests: compiled models, fresh data folders, running services."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.service import ENDLESS, GOLDEN, MODEL, TINY, Hob, run_hob, start

StartHob = Callable[..., Hob]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that the person running the tests has set reaches them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HOB_")]:
            patch.delenv(name)
        nowhere = tmp_path_factory.mktemp("nowhere")
        patch.setenv("XDG_CONFIG_HOME", str(nowhere / "config"))
        patch.setenv("XDG_DATA_HOME", str(nowhere / "data"))
        yield


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library folder with the test models compiled, once for all tests."""
    folder = tmp_path_factory.mktemp("compiled")
    _add_models(folder)
    for model in {MODEL, TINY}:
        done = run_hob(folder, "model", "compile", model)
        assert done.returncode == 0, done.stderr
    return folder / "libraries"


@pytest.fixture
def data_dir(tmp_path: Path, libraries: Path) -> Path:
    """A fresh data folder with the test models, compiled."""
    return fresh(tmp_path / "data", libraries)


@pytest.fixture
def start_hob(data_dir: Path) -> Iterator[StartHob]:
    """Starts services on `data_dir`: `start_hob(*flags, **environment)`. They end with the test, quietly."""
    running: list[Hob] = []

    def start_one(*flags: str, ready: bool = True, **settings: str) -> Hob:
        running.append(start(data_dir, *flags, ready=ready, **settings))
        return running[-1]

    yield start_one
    for hob in running:
        hob.stop()
    for hob in running:
        assert hob.killed or not hob.complaints(), hob.complaints()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, libraries: Path) -> Iterator[Hob]:
    """One service shared by all tests that leave it as it is; its chats are anybody's."""
    hob = start(fresh(tmp_path_factory.mktemp("server"), libraries))
    yield hob
    hob.stop()
    assert not hob.complaints(), hob.complaints()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A browser for all tests; they skip where there is none.

    One for the pages and the images alike: from here on Playwright's loop runs in this thread, so that no
    second browser could be started, and no asynchronous test can come after the first that asks for this.
    """
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


def fresh(folder: Path, libraries: Path) -> Path:
    """A data folder with the test models, compiled."""
    folder.mkdir(exist_ok=True)
    _add_models(folder)
    (folder / "libraries").symlink_to(libraries)
    return folder


def _add_models(folder: Path) -> None:
    tiny = folder / "models" / TINY
    shutil.copytree(GOLDEN / "llama3rope" / "q4f16_1", tiny)
    description = tiny / "mlc-chat-config.json"
    config = json.loads(description.read_text())
    config["context_window_size"] = config["model_config"]["context_window_size"] = ENDLESS
    config["temperature"] = 0  # sampled, it would end by chance
    description.write_text(json.dumps(config))
