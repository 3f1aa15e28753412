"""What `hob doctor` says of other servers."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import doctor
from appliance.config import load_settings
from tests.appliance.upstream.wire import Wire, wire


@pytest.fixture
def serving() -> Iterator[Callable[[], Wire]]:
    """Start a server on a loop of its own, since the doctor brings one too."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stack = contextlib.AsyncExitStack()

    def start() -> Wire:
        return asyncio.run_coroutine_threadsafe(stack.enter_async_context(wire()), loop).result(30)

    yield start
    asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


def findings(upstreams: list[dict[str, object]]) -> list[Any]:
    """What is found with these settings."""
    return list(doctor.upstreams(load_settings(upstreams=json.dumps(upstreams))))


def test_each_address_has_its_finding(serving: Callable[[], Wire], tmp_path: Path) -> None:
    """One that answers is well; one that does not is a warning with the reason, for Hob works without it."""
    live = serving().url
    good, bad = findings([{"name": "gpu", "urls": [live, "http://127.0.0.1:9/v1"]}])
    assert (good.check, good.status, good.detail) == ("upstream gpu", "ok", f"{live}: 1 model")
    assert bad.status == "warning"
    assert "http://127.0.0.1:9/v1: it cannot be reached" in bad.detail
    assert bad.hint
    (missing,) = findings([{"name": "gpu", "url": live, "key_file": str(tmp_path / "no.key")}])
    assert f"the key file {tmp_path / 'no.key'} cannot be read" in missing.detail


def test_key_in_clear_text_is_a_warning(tmp_path: Path) -> None:
    """A key that crosses the network without TLS is told of; on its way within this machine it is not."""
    key = tmp_path / "key"
    key.write_text("sk-1")
    key.chmod(0o600)
    settings = {"name": "gpu", "key_file": str(key), "connect_timeout": 0.2}
    (_, clear) = findings([{**settings, "url": "http://192.0.2.1:8000"}])
    assert clear.detail == "its key travels unencrypted to http://192.0.2.1:8000/v1"
    assert len(findings([{**settings, "url": "https://192.0.2.1:8000"}])) == 1
    assert len(findings([{**settings, "url": "http://127.0.0.1:9"}])) == 1


def test_nothing_is_said_without_other_servers() -> None:
    """No setting, no finding."""
    assert findings([]) == []
    assert list(doctor.engine(load_settings())) == []


def test_mlc_that_is_wanted_and_missing_is_a_problem() -> None:
    """engine = "mlc" without the package cannot work, and the finding says what to do."""
    (found,) = doctor.engine(load_settings(engine="mlc"))
    assert found.status == "problem"
    assert 'engine = "auto"' in found.hint
