"""What may be said about other servers, and that nothing secret is repeated when it is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.config import load_settings
from appliance.errors import SettingsError
from appliance.upstream.settings import Upstream, base_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://gpu.home:8000", "http://gpu.home:8000/v1"),
        (" https://gpu.home/ ", "https://gpu.home/v1"),
        ("http://gpu.home:8000/v1/", "http://gpu.home:8000/v1"),
        ("https://api.example/openai/v2", "https://api.example/openai/v2"),
        ("http://[fd00::1]:8000", "http://[fd00::1]:8000/v1"),
    ],
)
def test_address_is_completed(text: str, url: str) -> None:
    """Without a path it is /v1; a slash at the end makes no difference."""
    assert base_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "gpu.home:8000",
        "ftp://gpu.home",
        "file:///etc/passwd",
        "http://",
        "http://gpu.home:0",
        "http://gpu.home:99999",
        "http://[fd00::1",
        "http://gpu.home/v1?key=secret",
        "http://gpu.home/#v1",
        "http://me:secret@gpu.home",
        "",
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    """Only plain addresses of http and https are taken, and what is wrong with others is not repeated."""
    with pytest.raises(SettingsError, match="setting 'upstreams") as caught:
        load_settings(upstreams=json.dumps([{"name": "gpu", "url": text}]))
    assert "secret" not in caught.value.explanation


def test_key_in_the_settings_is_refused_and_not_repeated() -> None:
    """Keys lie in files; one that is written into the settings by mistake does not reach the console."""
    with pytest.raises(SettingsError, match=r"upstreams\.0\.api_key") as caught:
        load_settings(upstreams='[{"url": "http://gpu.home", "api_key": "sk-secret"}]')
    assert "sk-secret" not in caught.value.explanation


@pytest.mark.parametrize("name", ["GPU", "a b", "a@b", "", "-a", "cafe", "1234", "x" * 64])
def test_name_is_a_word(name: str) -> None:
    """It has no @, no capital, and does not read like a model's version."""
    with pytest.raises(SettingsError, match=r"upstreams\.0\.name"):
        load_settings(upstreams=json.dumps([{"name": name, "url": "http://gpu.home"}]))


def test_two_of_one_name_are_refused() -> None:
    """Each server has a name of its own, given or taken from its address."""
    with pytest.raises(SettingsError, match=r"two of them are called 'gpu\.home'"):
        load_settings(upstreams="http://gpu.home:1, http://gpu.home:2")


@pytest.mark.parametrize("wrong", [{"urls": []}, {}, {"url": 5}, 5, {"url": "http://a", "token_timeout": 0}])
def test_wrong_shapes_are_refused(wrong: Any) -> None:
    """A server has an address, and times above zero."""
    with pytest.raises(SettingsError, match="upstreams"):
        load_settings(upstreams=json.dumps([wrong]))


def test_file_and_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables in a file, a list of addresses in a variable; names come from the addresses."""
    file = tmp_path / "hob.toml"
    file.write_text(
        '[[upstreams]]\nname = "gpu"\nurls = ["http://a.home", "http://b.home"]\nkey_file = "/etc/hob/key"\n'
        '[[upstreams]]\nurl = "http://C.home"\n'
    )
    monkeypatch.setenv("HOB_CONFIG", str(file))
    gpu, other = load_settings().upstreams
    assert gpu.urls == ("http://a.home/v1", "http://b.home/v1")
    assert gpu.key_file == Path("/etc/hob/key")
    assert (other.name, other.token_timeout) == ("c.home", 60)
    monkeypatch.setenv("HOB_UPSTREAMS", "http://[fd00::1]:80,http://10.0.0.5")
    assert [one.name for one in load_settings().upstreams] == ["fd00--1", "10.0.0.5"]
    assert Upstream.model_validate("http://10.0.0.5").urls == ("http://10.0.0.5/v1",)
