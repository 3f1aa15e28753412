"""The device page: name, network, SSH, clock, power of a device of its own. Handlers and texts.

Everything is asked of root's administration (`appliance.admin`). On a computer that merely runs Hob there is
none, and the page says so.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from msgspec import ValidationError, convert, to_builtins
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.admin import client
from appliance.admin.messages import (
    DescribeDevice,
    Device,
    Done,
    ForgetWifi,
    Link,
    PowerOff,
    ScanWifi,
    SetClock,
    SetHostName,
    SetSshKeys,
    SetTimeZone,
    SetWifi,
    WifiNetwork,
    WifiNetworks,
)
from appliance.admin.messages import Request as Wish
from appliance.errors import HobError, InvalidRequestError
from webui.device_pages import DevicePage, Network
from webui.pages import Fact
from webui.responses import form_fields, render, sentence, sidebar

KINDS: Final = {"ethernet": "Cable", "wifi": "Wi-Fi"}


async def device(request: Request) -> Response:
    """GET /device: how it is set up. `?wifi=look` looks for networks, which takes some seconds."""
    return await _page(request, look=request.query_params.get("wifi") == "look")


async def set_name(request: Request) -> Response:
    """POST /device/name: call it something else."""
    name = (await form_fields(request)).get("name", "").strip().lower().removesuffix(".local")
    return await _have_done(request, lambda: SetHostName(name=name))


async def set_zone(request: Request) -> Response:
    """POST /device/zone: where it stands."""
    zone = (await form_fields(request)).get("zone", "").strip()
    return await _have_done(request, lambda: SetTimeZone(zone=zone))


async def set_keys(request: Request) -> Response:
    """POST /device/ssh: who may log in; no key at all closes SSH."""
    lines = (await form_fields(request)).get("keys", "").splitlines()
    return await _have_done(request, lambda: SetSshKeys(keys=[line for line in lines if line.strip()]))


async def set_clock(request: Request) -> Response:
    """POST /device/clock: the time of day, as a clock on the wall shows it where the device stands."""
    text = (await form_fields(request)).get("time", "")
    try:
        told = await client.ask(DescribeDevice(), Device)
        here = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(told.zone))
    except HobError as error:
        return await _page(request, error=error)
    except ValueError:
        return await _page(request, error=InvalidRequestError("that is no date and time"))
    return await _have_done(request, lambda: SetClock(seconds=int(here.timestamp())))


async def set_wifi(request: Request) -> Response:
    """POST /device/wifi: join a network."""
    fields = await form_fields(request)
    return await _have_done(
        request,
        lambda: SetWifi(
            ssid=fields.get("ssid", ""),
            password=fields.get("password", ""),
            country=fields.get("country", "").strip().upper() or None,
            hidden="hidden" in fields,
        ),
    )


async def forget_wifi(request: Request) -> Response:
    """POST /device/wifi/forget: leave the network."""
    return await _have_done(request, ForgetWifi)


async def power_off(request: Request) -> Response:
    """POST /device/off: switch the device off."""
    return await _have_done(request, PowerOff)


async def _have_done(request: Request, wish: Callable[[], Wish]) -> Response:
    """Have a wish done, and show the page with what came of it."""
    try:
        done = await client.ask(_checked(wish()), Done)
    except HobError as error:
        return await _page(request, error=error)
    return await _page(request, note=done.text)


def _checked(wish: Wish) -> Wish:
    """A wish whose fields are what its message allows; the other side would refuse it less kindly.

    Raises:
        InvalidRequestError: a field is empty, too long, or has signs that it cannot have.
    """
    try:
        return convert(to_builtins(wish), type(wish))
    except ValidationError as error:
        field = str(error).rpartition("$.")[2].strip("`") or "something"
        raise InvalidRequestError(FIELDS.get(field.partition("[")[0], f"{field} is not right")) from error


FIELDS: Final = {
    "name": "A name has letters, digits and hyphens, at most 63, and neither begins nor ends with a hyphen.",
    "ssid": "The name of a Wi-Fi network has 1 to 32 characters.",
    "password": "The password of a Wi-Fi network has at most 64 characters.",
    "country": "A country is two letters, such as DE or US.",
    "zone": "A time zone is a name such as Europe/Berlin.",
    "keys": "There can be 64 keys, of 16384 characters each.",
    "seconds": "That is no time of this century.",
}


async def _page(
    request: Request, *, look: bool = False, note: str = "", error: HobError | None = None
) -> Response:
    """The page, with what came of the last wish."""
    told, networks = None, None
    try:
        told = await client.ask(DescribeDevice(), Device)
        if look and told.wifi:
            found = await client.ask(ScanWifi(), WifiNetworks)
            networks = [network(one) for one in found.networks]
    except HobError as refused:
        error = error or refused
    shown = DevicePage(
        sidebar=await sidebar(request),
        here=told is not None,
        facts=facts(told) if told else [],
        name=told.host_name if told else "",
        zone=told.zone if told else "",
        wifi=told is not None and told.wifi,
        wifi_network=told.wifi_network if told else "",
        wifi_problem=told.wifi_problem if told else "",
        country=told.country if told else "",
        networks=networks,
        keys="\n".join(told.ssh_keys) if told else "",
        fingerprints=told.ssh_host_keys if told else [],
        clock=clock(told) if told else "",
        problems=told.problems if told else [],
        note=note,
        problem=sentence(error.message) if error else "",
        hint=error.hint if error else "",
    )
    alone = error is not None and error.code == "not_a_device" and request.method == "GET"
    return render(shown, error.status if error and not alone else 200)


def facts(told: Device) -> list[Fact]:
    """How the device is connected, a line for each interface."""
    found = [Fact(KINDS.get(link.kind, link.kind), connected(link, told)) for link in told.links]
    return found or [Fact("Network", "none that can be told")]


def connected(link: Link, told: Device) -> str:
    """What an interface is connected to, and its addresses."""
    if not link.network:
        return "not connected"
    if link.kind == "wifi" and told.set_up_network:
        return f"opens {told.set_up_network}, the network for setting Hob up"
    where = f"{told.wifi_network}, " if link.kind == "wifi" else ""
    return where + (", ".join(link.addresses) or "no address")


def network(found: WifiNetwork) -> Network:
    """A network for the list."""
    strength = "strong" if found.signal >= 70 else "fair" if found.signal >= 40 else "weak"
    kind = "" if found.secure else ", open: anybody can listen"
    if not found.usable:
        kind = ", of a kind that Hob does not join"
    return Network(found.ssid, strength + kind, found.secure, found.usable)


def clock(told: Device) -> str:
    """The device's time for a field of a form; "" where a battery or a time server keeps it."""
    if told.clock_kept:
        return ""
    return datetime.fromtimestamp(told.seconds, ZoneInfo(told.zone)).strftime("%Y-%m-%dT%H:%M")


def routes() -> list[Route]:
    """The page and what can be done on it. Restarting is a matter of `updates`."""
    return [
        Route("/device", device, methods=["GET"]),
        Route("/device/name", set_name, methods=["POST"]),
        Route("/device/zone", set_zone, methods=["POST"]),
        Route("/device/ssh", set_keys, methods=["POST"]),
        Route("/device/clock", set_clock, methods=["POST"]),
        Route("/device/wifi", set_wifi, methods=["POST"]),
        Route("/device/wifi/forget", forget_wifi, methods=["POST"]),
        Route("/device/off", power_off, methods=["POST"]),
    ]
