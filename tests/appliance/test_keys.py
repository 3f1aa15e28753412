"""API keys: made, listed and revoked on the command line, heeded by a running service."""

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli.key import command
from appliance.errors import InvalidRequestError, NotFoundError
from appliance.security.keys import Keys, add_key, bearer
from appliance.store import Store


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HOB_DATA_DIR."""
    monkeypatch.setenv("HOB_DATA_DIR", str(tmp_path))
    return tmp_path


def hob_key(*args: str) -> str:
    """What `hob key ...` prints on stdout."""
    result = CliRunner().invoke(command, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.anyio
async def test_a_key_works_until_it_is_revoked(data_dir: Path) -> None:
    """A key made beside a running service lets programs in at once, and no longer once it is revoked."""
    store = Store(data_dir / "hob.db")
    keys = Keys(store)
    key = hob_key("add", "laptop").strip()
    record = await keys.find(key)
    assert record is not None
    assert record.name == "laptop"
    hob_key("revoke", str(record.id))
    assert await keys.find(key) is None
    store.close()


def test_the_key_itself_is_not_kept(data_dir: Path) -> None:
    """The database holds a hash and the first letters; the key is in no file."""
    key = hob_key("add", "laptop").strip()
    assert key.startswith("hob_")
    assert len(key) == len("hob_") + 43
    for path in data_dir.rglob("*"):
        assert key.encode() not in path.read_bytes()
    (prefix,) = sqlite3.connect(data_dir / "hob.db").execute("SELECT prefix FROM api_keys").fetchone()
    assert key.startswith(prefix)
    assert len(prefix) == 10


def test_keys_are_listed_without_secrets(data_dir: Path) -> None:
    """`list` shows name, prefix and times; `--json` the same for programs."""
    assert "hob key add" in hob_key("list")
    first, second = hob_key("add", "laptop").strip(), hob_key("add", "phone").strip()
    shown = hob_key("list")
    assert "laptop" in shown
    assert "never used" in shown
    assert first not in shown
    rows = json.loads(hob_key("list", "--json"))
    assert [row["name"] for row in rows] == ["laptop", "phone"]
    assert second.startswith(rows[1]["prefix"])
    assert set(rows[0]) == {"id", "name", "prefix", "created", "used"}


def test_revoking_an_unknown_key_says_so(data_dir: Path) -> None:
    """There is no key 7: the error names it."""
    with pytest.raises(NotFoundError, match="key 7"):
        CliRunner().invoke(command, ["revoke", "7"], catch_exceptions=False)


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\nb"])
def test_a_key_needs_a_name(tmp_path: Path, name: str) -> None:
    """Names are one printable line."""
    store = Store(tmp_path / "hob.db")
    with pytest.raises(InvalidRequestError):
        add_key(store, name)
    store.close()


@pytest.mark.anyio
async def test_use_is_noted(tmp_path: Path) -> None:
    """The list says when a key was last used; looking up something else changes nothing."""
    store = Store(tmp_path / "hob.db")
    record, key = add_key(store, "laptop")
    keys = Keys(store)
    assert await keys.find(key[:-1]) is None
    assert await keys.find("sk-" + key) is None
    assert store.keys()[0].used is None
    await keys.find(key)
    assert store.keys()[0].used is not None
    assert store.keys()[0].id == record.id
    store.close()


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer hob_x", "hob_x"),
        ("bearer hob_x", "hob_x"),
        ("Bearer  hob_x ", "hob_x"),
        ("Basic aGk=", None),
        (None, None),
    ],
)
def test_bearer_tokens(header: str | None, token: str | None) -> None:
    """The scheme is case-insensitive; other schemes carry no key."""
    assert bearer(header) == token
