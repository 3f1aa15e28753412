"""`python -m appliance.setup.network`: see to it that the device is on a network that somebody can reach it
by.

hob-network.service runs this while there is none: from the moment a radio appears, whenever a connection is
lost, and when the owner asks for another Wi-Fi. It opens the set-up network where nothing else works, and
ends when there is a network. What to do when is decided in `decide`; this module looks and acts.
"""

import asyncio
import contextlib
import logging
import sys
import time
from pathlib import Path

import msgspec

from appliance.admin.messages import WifiNetwork
from appliance.errors import AdminError
from appliance.setup import apply, connection, nm, wish
from appliance.setup.decide import Seen, Step, decide
from appliance.setup.places import Places, here
from appliance.setup.state import State, load, save, write
from appliance.setup.wish import Outcome, Wish

log = logging.getLogger("hob-network")

LOOK_SECONDS = 3.0
"""Between two looks: short enough for who has just plugged in a cable, and cheap."""

SCAN = "scan.json"
"""What was found before the set-up network was opened: most radios cannot look around while it is."""

NOTE = "network.txt"


class Keeper:
    """Looks at the network, decides, acts; until there is nothing more to do."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._since = time.monotonic()
        self._open = False
        self._name = connection.set_up_name((places.state / "machine-id").read_text().strip())

    async def run(self) -> None:
        """Return once the device is on a network."""
        with contextlib.suppress(AdminError):
            await nm.radio_on()
        while (step := decide(await self._seen())) is not Step.REST:
            if step is not Step.WAIT:
                log.info("next: %s", step.value)
            await self._act(step)
            if step is Step.WAIT:
                await asyncio.sleep(LOOK_SECONDS)
        self._note("")

    async def _seen(self) -> Seen:
        """The situation now."""
        found = await nm.interfaces()
        radio = nm.on_air(found)
        if (radio is not None) != self._open:
            self._open, self._since = radio is not None, time.monotonic()
        return Seen(
            online=any(one.connected and one.connection != connection.SET_UP for one in found),
            known=load(self._places.state).wifi is not None,
            wished=wish.get(self._places.network, Wish) is not None,
            open=radio is not None,
            guests=await nm.guests(radio.name) if radio else 0,
            since=time.monotonic() - self._since,
        )

    async def _act(self, step: Step) -> None:
        """Take a step; one that fails is logged, and the situation is looked at anew after a while."""
        try:
            match step:
                case Step.OPEN:
                    await self._open_set_up()
                case Step.CLOSE:
                    await self._close_set_up()
                case Step.JOIN:
                    await self._join()
                case _:
                    pass
        except AdminError as error:
            log.error("%s", error.explanation)
            self._since = time.monotonic()
            await asyncio.sleep(LOOK_SECONDS)

    async def _open_set_up(self) -> None:
        folder = self._places.network
        with contextlib.suppress(AdminError):  # a list of networks is a convenience
            write(folder / SCAN, msgspec.json.encode(await nm.scan()), 0o600)
        await nm.load(str(self._file(connection.SET_UP)))
        await nm.up(connection.SET_UP)
        radio = nm.on_air(await nm.interfaces())
        if radio:
            await nm.admit_guests(radio.name)
        code = load(self._places.state).setup_code
        self._note(
            f"   Hob has no network. It has opened its own:\n\n"
            f"      Wi-Fi     {self._name}\n"
            f"      password  {code}\n\n"
            f"   Join it, and open http://{connection.SET_UP_ADDRESS} there.\n"
        )

    async def _close_set_up(self) -> None:
        """Make way: NetworkManager then looks for the known network by itself."""
        await nm.down(connection.SET_UP)
        await nm.turn_guests_away()
        self._note("")

    async def _join(self) -> None:
        """Join the network that was asked for; keep it if that works, else go back to the one before."""
        asked = wish.get(self._places.network, Wish)
        assert asked is not None
        before = load(self._places.state)
        ssid = asked.wifi.ssid if asked.wifi else ""
        problem = ""
        try:
            if self._open:
                await self._close_set_up()
            after = msgspec.structs.replace(before, wifi=asked.wifi, country=asked.country or before.country)
            if asked.country:
                await nm.obey(asked.country)
            await self._switch(after)
            # Other settings may have changed meanwhile.
            now = load(self._places.state)
            save(self._places.state, msgspec.structs.replace(now, wifi=after.wifi, country=after.country))
        except AdminError as error:
            problem = _plainly(ssid, error)
            log.warning("%s (%s)", problem, error.message)
            with contextlib.suppress(AdminError):
                await self._switch(before, wait=False)
        self._since = time.monotonic()
        wish.clear(self._places.network, Wish)
        wish.put(self._places.network, Outcome(number=asked.number, ssid=ssid, problem=problem))

    async def _switch(self, state: State, *, wait: bool = True) -> None:
        """Have NetworkManager use the state's network; `wait` until it is joined."""
        apply.write_files(self._places, state)
        await nm.reload()
        if not state.wifi:
            with contextlib.suppress(AdminError):  # it went down with its file
                await nm.down(connection.WIFI)
        elif wait:
            await nm.load(str(self._file(connection.WIFI)))
            await nm.up(connection.WIFI)

    def _file(self, name: str) -> Path:
        return self._places.state / "connections" / f"{name}.nmconnection"

    def _note(self, text: str) -> None:
        """What the screen says of the network."""
        file = self._places.notes / NOTE
        if text:
            write(file, text.encode(), 0o644)
        else:
            file.unlink(missing_ok=True)


def found_before(places: Places) -> list[WifiNetwork]:
    """The networks that were in reach before the set-up network was opened."""
    try:
        return msgspec.json.decode((places.network / SCAN).read_bytes(), type=list[WifiNetwork])
    except (OSError, msgspec.DecodeError):
        return []


def _plainly(ssid: str, error: AdminError) -> str:
    """Why joining failed, in words for people."""
    text = error.message.lower()
    if "secrets were required" in text or "802-1x" in text or "802.1x" in text:
        return f"{ssid} did not let Hob in: the password is not right."
    if "could not be found" in text or "ssid" in text:
        return f"{ssid} is not in reach."
    if "ip configuration" in text or "timeout" in text or "longer than" in text:
        return f"{ssid} let Hob in, but gave it no address."
    return f"{ssid} could not be joined: {error.message}."


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        asyncio.run(Keeper(here()).run())
    except AdminError as error:  # NetworkManager itself is not there; systemd tries again
        sys.exit(f"hob-network: {error.explanation}")
