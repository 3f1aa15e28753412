"""The process that keeps a device on a network, in a small world of one radio, a cable and a few routers."""

import asyncio
import fcntl
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.admin import settings as admin_settings
from appliance.admin import wifi as admin_wifi
from appliance.admin.messages import DescribeDevice, ForgetWifi, Progress, ScanWifi, SetWifi, WifiNetwork
from appliance.errors import AdminError, ConflictError, InvalidRequestError
from appliance.setup import apply, decide, network, wish
from appliance.setup.network import Keeper
from appliance.setup.places import Places
from appliance.setup.state import State, load, save
from appliance.setup.wish import Outcome, Wish
from appliance.setup.wishes import Wifi
from tests.appliance.setup import programs
from tests.appliance.setup.device import make

pytestmark = pytest.mark.anyio

HOME = Wifi(ssid="home", password="correct horse")


class World:
    """What the stand-ins of the system's programs see and change."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(cable=False, air={"home": "correct horse", "cafe": ""}, radio="", guests=0, called=[])

    def get(self) -> dict[str, Any]:
        """The world now."""
        found: dict[str, Any] = json.loads(self._file.read_text())
        return found

    def set(self, **changes: Any) -> None:
        """Change it, whole, between two programs."""
        with self._file.with_suffix(".lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            now = self.get() if self._file.exists() else {}
            new = self._file.with_suffix(".test")
            new.write_text(json.dumps(now | changes))
            new.replace(self._file)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A device with a radio, set up, whose code is known."""
    places = make(tmp_path / "device")
    (places.radios / "phy0").mkdir(parents=True)
    (places.state / "machine-id").write_text("0" * 31 + "1\n")
    state = State(setup_code="K7WQ-3MZP-XR5T")
    save(places.state, state)
    apply.write_files(places, state)
    monkeypatch.setattr(admin_settings, "places", places)
    monkeypatch.setattr(admin_wifi, "places", places)
    return places


@pytest.fixture
def world(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The programs of the system, in a world of their own; time passes as fast as it can."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("nmcli", "iw", "nft", "ip"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {programs.__file__} {name} "$@"\n')
        program.chmod(0o755)
    (folder / "ip").write_text(
        '#!/bin/sh\necho \'[{"ifname":"wlan0","addr_info":[{"scope":"global","local":"192.168.1.7"}]}]\'\n'
    )
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("WORLD", str(tmp_path / "world.json"))
    monkeypatch.setenv("HOB_ROOT", str(places.root))
    monkeypatch.setattr(network, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(admin_wifi, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(decide, "FRESH", 0.0)
    monkeypatch.setattr(decide, "PATIENT", 0.0)
    return World(tmp_path / "world.json")


async def until(keeper: asyncio.Task[None], met: Callable[[], bool]) -> None:
    """Wait until something is the case while the process runs."""
    for _ in range(400):
        if met():
            return
        if keeper.done():
            await keeper
            break
        await asyncio.sleep(0.02)
    assert met()


async def test_without_a_network_it_opens_its_own(places: Places, world: World) -> None:
    """The firewall lets guests in, the screen says how, and a cable ends it all."""
    keeper = asyncio.create_task(Keeper(places).run())
    note = places.notes / network.NOTE
    await until(keeper, note.exists)
    assert world.get()["radio"] == "set-up"
    assert "nft add element inet hob set_up { wlan0 }" in world.get()["called"]
    assert "K7WQ-3MZP-XR5T" in note.read_text()
    assert "http://10.42.0.1" in note.read_text()
    assert network.found_before(places) == [
        WifiNetwork(ssid="home", signal=70, secure=True),
        WifiNetwork(ssid="cafe", signal=70, secure=False),
    ]
    world.set(cable=True)
    await asyncio.wait_for(keeper, 30)
    assert world.get()["radio"] == ""
    assert "nft flush set inet hob set_up" in world.get()["called"]
    assert not note.exists()


async def test_with_a_cable_it_does_nothing(places: Places, world: World) -> None:
    """It looks, and ends."""
    world.set(cable=True)
    await asyncio.wait_for(Keeper(places).run(), 30)
    assert not any("connection" in call for call in world.get()["called"])


async def test_a_wish_from_the_set_up_network(places: Places, world: World) -> None:
    """The set-up network makes way, the wish comes true and is kept for all further starts."""
    keeper = asyncio.create_task(Keeper(places).run())
    await until(keeper, lambda: world.get()["radio"] == "set-up")
    done = await admin_wifi.join(SetWifi(ssid="home", password="correct horse", country="DE"), lambda _: None)
    assert "joins home now, and this network ends" in done.text
    await asyncio.wait_for(keeper, 30)
    assert world.get()["radio"] == "wifi"
    assert load(places.state).wifi == HOME
    assert load(places.state).country == "DE"
    assert "iw reg set DE" in world.get()["called"]
    assert wish.get(places.network, Wish) is None


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (
            SetWifi(ssid="home", password="wrong password"),
            "home did not let Hob in: the password is not right.",
        ),
        (SetWifi(ssid="elsewhere", password="correct horse"), "elsewhere is not in reach."),
    ],
)
async def test_a_wish_that_fails_leaves_all_as_it_was(
    asked: SetWifi, why: str, places: Places, world: World
) -> None:
    """The reason is told, the state is the old one, and the set-up network comes back for another try."""
    keeper = asyncio.create_task(Keeper(places).run())
    await until(keeper, lambda: world.get()["radio"] == "set-up")
    await admin_wifi.join(asked, lambda _: None)
    await until(keeper, lambda: wish.get(places.network, Outcome) is not None)
    outcome = wish.get(places.network, Outcome)
    assert outcome is not None
    assert outcome.problem == why
    assert load(places.state).wifi is None
    await until(keeper, lambda: world.get()["radio"] == "set-up")
    told = await admin_settings.describe(DescribeDevice(), lambda _: None)
    assert told.wifi_problem == why
    assert told.set_up_network.startswith("Hob-")
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)


async def test_changing_networks_over_a_cable(places: Places, world: World) -> None:
    """Who asks hears how it goes and what came of it; a failure brings the network before back."""
    world.set(cable=True)
    state = State(setup_code="K7WQ-3MZP-XR5T", wifi=HOME)
    save(places.state, state)
    apply.write_files(places, state)

    async def ask(request: SetWifi) -> list[Progress]:
        heard: list[Progress] = []
        keeper = asyncio.create_task(started(places))
        try:
            await asyncio.wait_for(admin_wifi.join(request, heard.append), 30)
        finally:
            await keeper
        return heard

    assert await ask(SetWifi(ssid="cafe")) == [Progress(text="Joining cafe …")]
    assert load(places.state).wifi == Wifi(ssid="cafe")
    with pytest.raises(AdminError, match="the password is not right"):
        await ask(SetWifi(ssid="home", password="wrong password"))
    assert load(places.state).wifi == Wifi(ssid="cafe")
    assert "psk" not in (places.state / "connections/wifi.nmconnection").read_text()


async def started(places: Places) -> None:
    """As hob-network.path does: start the process once there is a wish."""
    for _ in range(400):
        if wish.get(places.network, Wish):
            break
        await asyncio.sleep(0.01)
    await Keeper(places).run()


async def test_forgetting_a_network(places: Places, world: World) -> None:
    """Its file and its password go, here and in the state."""
    state = State(setup_code="K7WQ-3MZP-XR5T", wifi=HOME)
    save(places.state, state)
    apply.write_files(places, state)
    world.set(cable=True, radio="wifi")
    keeper = asyncio.create_task(started(places))
    await asyncio.wait_for(admin_wifi.forget(ForgetWifi(), lambda _: None), 30)
    await keeper
    assert load(places.state).wifi is None
    assert not (places.state / "connections/wifi.nmconnection").exists()
    assert world.get()["radio"] == ""


async def test_other_settings_changed_meanwhile_stay(places: Places, world: World) -> None:
    """Joining takes a while; a name given in between is not lost."""
    world.set(cable=True)
    keeper = Keeper(places)
    real = keeper._switch

    async def slow(state: State, *, wait: bool = True) -> None:
        await real(state, wait=wait)
        save(places.state, State(setup_code="K7WQ-3MZP-XR5T", host_name="kitchen"))

    keeper._switch = slow  # type: ignore[method-assign]  # the moment at which somebody else saves
    wish.put(places.network, Wish(number="1", wifi=HOME))
    await asyncio.wait_for(keeper.run(), 30)
    assert load(places.state).host_name == "kitchen"
    assert load(places.state).wifi == HOME


async def test_looking_around(places: Places, world: World) -> None:
    """While the set-up network is open, what was in reach before it."""
    found = await admin_wifi.scan(ScanWifi(), lambda _: None)
    assert [one.ssid for one in found.networks] == ["home", "cafe"]
    world.set(radio="set-up", air={})
    assert (await admin_wifi.scan(ScanWifi(), lambda _: None)).networks == []


async def test_what_cannot_be_is_refused(places: Places, world: World) -> None:
    """Names and passwords that no network has, and Wi-Fi without a radio."""
    with pytest.raises(InvalidRequestError, match="8 to 63"):
        await admin_wifi.join(SetWifi(ssid="home", password="short"), lambda _: None)
    with pytest.raises(InvalidRequestError, match="32 bytes"):
        await admin_wifi.join(SetWifi(ssid="ä" * 20), lambda _: None)
    (places.radios / "phy0").rmdir()
    with pytest.raises(ConflictError, match="no Wi-Fi"):
        await admin_wifi.scan(ScanWifi(), lambda _: None)


async def test_the_device_is_described(places: Places, world: World) -> None:
    """Settings, links with their addresses, and that no clock is kept here."""
    world.set(radio="wifi")
    told = await admin_settings.describe(DescribeDevice(), lambda _: None)
    assert told.host_name == "hob"
    assert [(link.interface, link.network, link.addresses) for link in told.links] == [
        ("eth0", "", []),
        ("wlan0", "wifi", ["192.168.1.7"]),
    ]
    assert told.wifi
    assert not told.clock_kept
    assert told.set_up_network == ""
