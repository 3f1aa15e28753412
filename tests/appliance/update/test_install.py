"""The way of an update into the other slot, its trial, and back."""

import asyncio
from pathlib import Path

import pytest

from appliance.errors import ConflictError, UpdateError
from appliance.update import install, record
from tests.appliance.update.device import Device

pytestmark = pytest.mark.anyio


def attempt() -> record.Attempt:
    """What is on record."""
    found = record.read().attempt
    assert found is not None
    return found


async def history() -> record.Record:
    """What is to be told of the past, as of now."""
    return install.history(await install.survey())


async def test_a_good_update(device: Device) -> None:
    """It goes into the other slot, is tried at the next start, and stays once it has answered."""
    told: list[tuple[str, float]] = []
    version = await install.install(device.bundle(), lambda text, share: told.append((text, share or 0)))
    assert version == device.state["content"] == "0.2.0"
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[0] == ("checking the signature", 0.0)
    assert dict(told)["Copying image to rootfs.1"] == pytest.approx(0.58)
    assert device.state["once"] == "b"
    assert (attempt().state, attempt().slot, attempt().before) == ("waiting", "b", "0.1.0")
    device.boot("0.2.0")
    here = await install.survey()
    assert (here.current, here.version, here.on_trial) == ("b", "0.2.0", True)
    await install.accept()
    here = await install.survey()
    assert (here.on_trial, here.default, sorted(here.good)) == (False, "b", ["a", "b"])
    kept = await history()
    assert kept.attempt is not None
    assert kept.attempt.state == "good"
    assert kept.versions == {"a": "0.1.0", "b": "0.2.0"}


async def test_a_trial_in_vain(device: Device) -> None:
    """A system that does not answer leaves its reason to the one before, which tells it."""
    await install.install(device.bundle(), lambda text, share: None)
    device.boot("0.2.0")
    await install.give_up("hob-guide is damaged")
    assert attempt().state == "waiting"
    device.boot("0.1.0")
    kept = await history()
    assert kept.attempt is not None
    assert (kept.attempt.state, kept.attempt.reason) == ("returned", "hob-guide is damaged")
    assert (await install.survey()).current == "a"


async def test_a_trial_that_never_got_there(device: Device) -> None:
    """A system that did not even start leaves no reason; then that is what is told."""
    await install.install(device.bundle(), lambda text, share: None)
    device.boot()
    device.boot("0.1.0")
    kept = await history()
    assert kept.attempt is not None
    assert (kept.attempt.state, kept.attempt.reason) == ("returned", record.SILENT)


async def test_a_power_cut_while_it_is_written(device: Device) -> None:
    """What runs goes on running, what happened is told, and the next attempt works."""
    device.set(hold=True)
    begun = asyncio.Event()

    def tell(text: str, share: float | None) -> None:
        if text.startswith("Copying"):
            begun.set()

    task = asyncio.create_task(install.install(device.bundle(), tell))
    await asyncio.wait_for(begun.wait(), 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    device.set(hold=False)
    device.boot()
    assert (await install.survey()).current == "a"
    kept = await history()
    assert kept.attempt is not None
    assert (kept.attempt.state, kept.attempt.reason) == ("failed", record.CUT_OFF)
    assert "b" not in kept.versions
    assert await install.install(device.bundle(), lambda text, share: None) == "0.2.0"


async def test_what_is_refused_costs_nothing(device: Device) -> None:
    """Whatever is wrong with a file is found before the other slot is touched."""
    before = device.state
    damaged = device.bundle("damaged.raucb")
    data = bytearray(damaged.read_bytes())
    data[7000] ^= 1
    damaged.write_bytes(data)
    cut = device.bundle("cut.raucb")
    cut.write_bytes(cut.read_bytes()[:9000])
    for file, complaint in (
        (damaged, "damaged"),
        (cut, "only a part"),
        (device.bundle("theirs.raucb", signer="stranger"), "not signed by somebody"),
        (device.bundle("pi.raucb", compatible="hob-rpi5"), "another device: hob-rpi5"),
        (device.bundle("old.raucb", version="0.0.9"), "older than 0.1.0"),
        (device.bundle("same.raucb", version="0.1.0"), "is what runs here"),
    ):
        with pytest.raises(UpdateError, match=complaint):
            await install.install(file, lambda text, share: None)
    assert device.state == before
    assert record.read() == record.Record()


async def test_by_force_an_older_one(device: Device) -> None:
    """At the console an older version may be put in; another device's may not."""
    assert await install.install(device.bundle(version="0.0.9"), lambda *told: None, force=True) == "0.0.9"
    with pytest.raises(UpdateError, match="another device"):
        await install.install(device.bundle(compatible="x"), lambda *told: None, force=True)


async def test_a_disk_that_fails(device: Device) -> None:
    """RAUC's own complaint is told and kept; what runs is untouched."""
    device.set(fails="Input/output error")
    with pytest.raises(UpdateError, match="could not be written: Input/output error"):
        await install.install(device.bundle(), lambda *told: None)
    assert (attempt().state, attempt().reason) == (
        "failed",
        "it could not be written: Input/output error",
    )
    assert device.state["once"] == ""


async def test_two_at_once(device: Device) -> None:
    """RAUC takes one at a time; the second hears that."""
    device.set(fails="Already processing a different method")
    with pytest.raises(ConflictError, match="another update"):
        await install.install(device.bundle(), lambda *told: None)


async def test_nothing_goes_in_during_a_trial(device: Device) -> None:
    """The other slot is then the only way back."""
    await install.install(device.bundle(), lambda *told: None)
    device.boot("0.2.0")
    with pytest.raises(ConflictError, match="on trial"):
        await install.install(device.bundle(version="0.3.0"), lambda *told: None)
    with pytest.raises(ConflictError, match="on trial"):
        await install.go_back()


async def test_going_back(device: Device) -> None:
    """What answered before is tried again, as an update is; what never ran is not gone back to."""
    with pytest.raises(UpdateError, match="no earlier version"):
        await install.go_back()
    await install.install(device.bundle(), lambda *told: None)
    device.boot("0.2.0")
    await install.accept()
    assert await install.go_back() == "0.1.0"
    assert (attempt().state, attempt().version, attempt().before) == ("waiting", "0.1.0", "0.2.0")
    device.boot("0.1.0")
    assert (await install.survey()).on_trial
    await install.accept()
    kept = await history()
    assert kept.attempt is not None
    assert kept.attempt.state == "good"
    assert kept.versions == {"a": "0.1.0", "b": "0.2.0"}


async def test_a_trial_that_nothing_is_known_of(device: Device) -> None:
    """Chosen in the boot menu, or after the data partition was made anew, an answer counts all the same."""
    device.set(booted="b", states={"a": "good", "b": "bad"})
    await install.accept()
    assert device.state["default"] == "b"
    assert record.read().versions == {"b": "0.1.0"}


async def test_a_system_without_rauc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other installations there is nothing to update, and that is said."""
    monkeypatch.setattr(install, "CONFIG", tmp_path / "absent")
    assert not install.present()
