"""`hob owner reset`: a lost password is no lost Hob."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli.owner import command
from appliance.errors import PermissionDeniedError
from appliance.security.owner import Owner
from appliance.security.sessions import Sessions
from appliance.store import Store

PASSWORD = "correct horse battery"


@pytest.mark.anyio
async def test_reset_makes_room_for_a_new_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reset nobody is signed in, keys stay, and the next start's code sets a new password."""
    monkeypatch.setenv("HOB_DATA_DIR", str(tmp_path))
    store = Store(tmp_path / "hob.db")
    owner, sessions = Owner(store), Sessions(store)
    await owner.set_up(owner.setup_code, PASSWORD, "192.0.2.7")
    token = await sessions.open("a browser")
    store.add_key("laptop", "hash", "hob_12")

    result = CliRunner().invoke(command, ["reset", "--yes"], catch_exceptions=False)

    assert result.exit_code == 0
    assert "Start Hob again" in result.output
    assert await sessions.find(token) is None
    assert not await owner.exists()
    assert store.key_by_hash("hash") is not None
    again = Owner(store)
    await again.set_up(again.setup_code, "another good password", "192.0.2.7")
    await again.check("another good password", "192.0.2.7")
    store.close()


@pytest.mark.anyio
async def test_a_device_has_one_code_for_all_its_starts(tmp_path: Path) -> None:
    """What its screen shows is the settings' code, until there is an owner; then it opens nothing."""
    store = Store(tmp_path / "hob.db")
    owner = Owner(store, code="K7WQ-3MZP-XR5T")
    assert owner.setup_code == "K7WQ-3MZP-XR5T"
    await owner.set_up("k7wq 3mzp xr5t", PASSWORD, "192.0.2.7")
    with pytest.raises(PermissionDeniedError):
        await owner.set_up("K7WQ-3MZP-XR5T", "another good password", "192.0.2.7")
    store.close()


def test_reset_asks_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a yes nothing is forgotten."""
    monkeypatch.setenv("HOB_DATA_DIR", str(tmp_path))
    store = Store(tmp_path / "hob.db")
    store.create_owner("hash")
    assert CliRunner().invoke(command, ["reset"], input="n\n").exit_code == 1
    assert store.owner_hash() == "hash"
    store.close()


def test_reset_without_an_owner_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to forget is no error."""
    monkeypatch.setenv("HOB_DATA_DIR", str(tmp_path))
    result = CliRunner().invoke(command, ["reset", "--yes"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "no owner yet" in result.output
