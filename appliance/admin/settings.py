"""The device's settings: reading them, and changing one at a time.

A change goes into the state on the data partition, and `hob-setup.service` puts the state into effect, as it
does at every start: there is one way in which settings come to hold.
"""

import time

import msgspec

from appliance.admin.messages import (
    DescribeDevice,
    Device,
    Done,
    SetClock,
    SetHostName,
    SetSshKeys,
    SetTimeZone,
)
from appliance.admin.program import run
from appliance.admin.server import Tell
from appliance.errors import AdminError, InvalidRequestError
from appliance.setup import clock, connection, nm, ssh_keys, wish, wishes
from appliance.setup.places import here
from appliance.setup.state import State, load, save

EARLIEST = 1_735_689_600  # 2025: before any device of ours
LATEST = 4_102_444_800  # 2100

places = here()


async def describe(request: DescribeDevice, tell: Tell) -> Device:
    """Everything the page shows. Without NetworkManager there are no links, and the rest is there."""
    state = load(places.state)
    try:
        links = await nm.links()
        radio = nm.on_air(await nm.interfaces())
    except AdminError:
        links, radio = [], None
    outcome = wish.get(places.network, wish.Outcome)
    host_key = places.state / "ssh/ssh_host_ed25519_key.pub"
    return Device(
        host_name=state.host_name,
        zone=state.timezone,
        seconds=int(time.time()),
        clock_kept=clock.kept(places.root),
        ssh_keys=state.ssh_keys,
        ssh_host_keys=[ssh_keys.fingerprint(host_key.read_text())] if host_key.exists() else [],
        wifi=places.has_radio,
        wifi_network=state.wifi.ssid if state.wifi else "",
        wifi_problem=outcome.problem if outcome else "",
        country=state.country,
        set_up_network=connection.set_up_name(_machine_id()) if radio else "",
        links=links,
        problems=state.problems,
    )


async def set_host_name(request: SetHostName, tell: Tell) -> Done:
    """Another name: the network sees it as soon as the service has started anew."""
    try:
        name = wishes.host_name(request.name)
    except ValueError as error:
        raise InvalidRequestError(f"The name {error}.", param="name") from error
    await _change(host_name=name)
    await run("systemctl", "--no-block", "restart", "hob.service")
    return Done(text=f"This Hob is called {name}.local now.")


async def set_ssh_keys(request: SetSshKeys, tell: Tell) -> Done:
    """Who may log in by SSH."""
    keys = []
    for number, line in enumerate(request.keys, 1):
        try:
            key = ssh_keys.check(line)
        except ValueError as error:
            raise InvalidRequestError(f"Key {number} {error}.", param="keys") from error
        if key not in keys:
            keys.append(key)
    await _change(ssh_keys=keys)
    return Done(text="SSH is on for these keys." if keys else "SSH is off.")


async def set_time_zone(request: SetTimeZone, tell: Tell) -> Done:
    """Where the device stands."""
    try:
        zone = wishes.time_zone(request.zone, places.zones)
    except ValueError as error:
        raise InvalidRequestError(f"The time zone {error}.", param="zone") from error
    await _change(timezone=zone)
    return Done(text=f"The time zone is {zone}.")


async def set_clock(request: SetClock, tell: Tell) -> Done:
    """The time, from a browser whose machine knows it."""
    if not EARLIEST <= request.seconds < LATEST:
        raise InvalidRequestError("That is not a time of this century.", param="seconds")
    try:
        time.clock_settime(time.CLOCK_REALTIME, request.seconds)
    except OSError as error:
        raise AdminError(f"The clock cannot be set: {error.strerror}") from error
    return Done(text="The clock is set.")


async def _change(**fields: object) -> State:
    """Keep a changed state and put it into effect.

    Raises:
        AdminError: it could not be put into effect; it is kept all the same, and tried again at the next
        start.
    """
    state = msgspec.structs.replace(load(places.state), **fields)
    save(places.state, state)
    await run("systemctl", "restart", "hob-setup.service", seconds=60)
    return state


def _machine_id() -> str:
    return (places.state / "machine-id").read_text().strip()
