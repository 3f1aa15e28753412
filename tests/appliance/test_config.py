"""Where settings come from, and what is said about wrong ones."""

from pathlib import Path

import pytest

from appliance.config import load_settings
from appliance.errors import SettingsError


def test_flags_beat_variables_beat_files_beat_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each source overrides the one below it; a flag that was not given overrides nothing."""
    file = tmp_path / "hob.toml"
    file.write_text('port = 1\nname = "attic"\nthreads = 3\n')
    monkeypatch.setenv("HOB_CONFIG", str(file))
    monkeypatch.setenv("HOB_PORT", "2")
    monkeypatch.setenv("HOB_NAME", "cellar")
    settings = load_settings(port=3, name=None)
    assert (settings.port, settings.name, settings.threads, settings.context) == (3, "cellar", 3, 4096)


def test_own_file_beats_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that HOB_CONFIG names wins over the person's own."""
    own = tmp_path / "config" / "hob"
    own.mkdir(parents=True)
    (own / "hob.toml").write_text("port = 1\nthreads = 5\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    named = tmp_path / "named.toml"
    named.write_text("port = 2\n")
    monkeypatch.setenv("HOB_CONFIG", str(named))
    settings = load_settings()
    assert (settings.port, settings.threads) == (2, 5)


def test_data_folder_is_the_desktops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State lies in the XDG data folder unless HOB_DATA_DIR says otherwise."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load_settings().data_dir == tmp_path / "hob"
    monkeypatch.setenv("HOB_DATA_DIR", "/var/lib/hob")
    assert load_settings().data_dir == Path("/var/lib/hob")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("port", "many"),
        ("context", "1"),
        ("threads", "-1"),
        ("kernels", "sloppy"),
        ("log_level", "loud"),
        ("name", "Hob Kitchen"),
        ("name", "hob.local"),
        ("lan", "perhaps"),
        ("devices", "cuda,gpu"),
        ("devices", '["cuda-87"]'),
        ("devices", "[cuda"),
        ("device_fallback", "perhaps"),
    ],
)
def test_wrong_value_names_key_and_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """An impossible value is an error with the setting's name, the value, and where to look."""
    monkeypatch.setenv(f"HOB_{name.upper()}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert f"setting '{name}" in caught.value.message  # of several values, the one at fault has its number
    assert value.split(",")[-1].strip('[]"') in caught.value.message
    assert f"HOB_{name.upper()}" in caught.value.hint


@pytest.mark.parametrize("text", ["prot = 8080\n", "[server]\nport = 1\n"])
def test_unknown_key_in_a_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A misspelt setting is never ignored."""
    file = tmp_path / "hob.toml"
    file.write_text(text)
    monkeypatch.setenv("HOB_CONFIG", str(file))
    with pytest.raises(SettingsError, match=r"prot|server"):
        load_settings()


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe"])
def test_file_that_is_not_toml_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """A file that cannot be read is named."""
    file = tmp_path / "hob.toml"
    file.write_bytes(content)
    monkeypatch.setenv("HOB_CONFIG", str(file))
    with pytest.raises(SettingsError, match=r"hob\.toml"):
        load_settings()


def test_named_file_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that HOB_CONFIG names is wanted; one that is not there is an error, not a shrug."""
    monkeypatch.setenv("HOB_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(SettingsError, match=r"missing\.toml"):
        load_settings()


def test_settings_never_change() -> None:
    """Settings are read once."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1


@pytest.mark.parametrize("text", ["cuda-sm_87, cpu", '["cuda-sm_87", "cpu"]'])
def test_lists_in_variables(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A variable lists values with commas, or as JSON; an empty one lists nothing."""
    monkeypatch.setenv("HOB_DEVICES", text)
    monkeypatch.setenv("HOB_ALLOWED_HOSTS", "")
    settings = load_settings()
    assert settings.devices == ("cuda-sm_87", "cpu")
    assert settings.allowed_hosts == ()


@pytest.mark.parametrize("name", ["cuda", "cuda-sm_90a", "cuda-sm_110", "metal", "vulkan", "cpu"])
def test_devices(name: str) -> None:
    """Kinds of devices and CUDA's targets may be listed."""
    assert load_settings(devices=name).devices == (name,)
