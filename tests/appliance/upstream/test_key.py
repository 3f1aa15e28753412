"""Keys in files."""

import os
from pathlib import Path

import pytest

from appliance.errors import SettingsError
from appliance.upstream.key import read_key


def written(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    """A key file."""
    file = folder / "key"
    file.write_bytes(content)
    file.chmod(mode)
    return file


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o440])
def test_key_is_read_without_its_newline(tmp_path: Path, mode: int) -> None:
    """Owner and group may read the file."""
    assert read_key(written(tmp_path, b" sk-abc_123==\r\n", mode)) == "sk-abc_123=="


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o666, 0o601])
def test_open_file_is_refused(tmp_path: Path, mode: int) -> None:
    """A key that others may read, or the group may exchange, is no secret; what helps is named."""
    with pytest.raises(SettingsError, match=f"{mode:04o}") as caught:
        read_key(written(tmp_path, b"sk-secret", mode))
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" \n",
        b"sk-secret two",
        b"sk-secret\nsk-more",
        b"sk-secret\r\nx-evil: 1",
        b"\xff\xfe",
        b"s" * 5000,
    ],
)
def test_file_without_one_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """Nothing that could break out of a header is a key, and what is there is not repeated."""
    with pytest.raises(SettingsError, match="does not hold one key") as caught:
        read_key(written(tmp_path, content))
    assert "secret" not in caught.value.explanation


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    """What cannot be read is named with the reason."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(SettingsError, match=os.path.basename(path)):
            read_key(path)
