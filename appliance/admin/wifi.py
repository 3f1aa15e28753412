"""Wi-Fi: looking for networks, joining one, leaving it.

Joining is the work of `hob-network.service`, which also goes back to the network before, or to the set-up
network, where it fails: the wish is left for it, and its outcome waited for.
"""

import asyncio
import secrets
import time

from appliance.admin.messages import Done, ForgetWifi, Progress, ScanWifi, SetWifi, WifiNetworks
from appliance.admin.server import Tell
from appliance.admin.settings import places
from appliance.errors import AdminError, ConflictError, InvalidRequestError
from appliance.setup import network, nm, wish, wishes

PATIENCE = 75.0
"""Seconds to wait for a network: joining takes at most 55."""

LOOK_SECONDS = 0.5


async def scan(request: ScanWifi, tell: Tell) -> WifiNetworks:
    """The networks in reach; while the set-up network is open, those of the moment before."""
    _needs_radio()
    if nm.on_air(await nm.interfaces()):
        return WifiNetworks(networks=network.found_before(places))
    return WifiNetworks(networks=await nm.scan())


async def join(request: SetWifi, tell: Tell) -> Done:
    """Join a network. Over the set-up network the answer comes first: the phone that asks is about to lose
    it.
    """
    _needs_radio()
    try:
        wanted = wishes.Wifi(
            ssid=wishes.ssid(request.ssid),
            password=wishes.wifi_password(request.password),
            hidden=request.hidden,
        )
    except ValueError as error:
        raise InvalidRequestError(f"The name or password {error}.") from error
    leaving = nm.on_air(await nm.interfaces())
    number = _ask(wish.Wish(number=secrets.token_hex(8), wifi=wanted, country=request.country or ""))
    if leaving:
        return Done(
            text=f"Hob joins {request.ssid} now, and this network ends. "
            "If it is back in two minutes, joining did not work."
        )
    tell(Progress(text=f"Joining {request.ssid} …"))
    await _outcome(number)
    return Done(text=f"Hob is on {request.ssid}.")


async def forget(request: ForgetWifi, tell: Tell) -> Done:
    """Leave the network and forget its password."""
    _needs_radio()
    await _outcome(_ask(wish.Wish(number=secrets.token_hex(8), wifi=None)))
    return Done(text="The Wi-Fi network is forgotten.")


def _needs_radio() -> None:
    if not places.has_radio:
        raise ConflictError("This device has no Wi-Fi.", hint="A cable needs no settings.")


def _ask(asked: wish.Wish) -> str:
    """Leave a wish; hob-network.path starts who fulfils it."""
    wish.clear(places.network, wish.Outcome)
    wish.put(places.network, asked)
    return asked.number


async def _outcome(number: str) -> None:
    """Wait for what comes of a wish.

    Raises:
        AdminError: it did not work, or nothing came of it.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        outcome = wish.get(places.network, wish.Outcome)
        if outcome and outcome.number == number:
            if outcome.problem:
                raise AdminError(outcome.problem, code="wifi_failed", hint="What was set up before holds.")
            return
        await asyncio.sleep(LOOK_SECONDS)
    raise AdminError("Joining took too long.", hint="The log (journalctl -u hob-network) says more.")
