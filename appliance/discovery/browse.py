"""Finding others: every Hob that answers on the LAN."""

import asyncio
from dataclasses import dataclass

from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from appliance.discovery.announce import PRODUCT, SERVICE
from appliance.discovery.interfaces import reach


@dataclass(frozen=True)
class Found:
    """A Hob on the LAN, as it announces itself.

    Attributes:
        name: the service's name for people ("Hob").
        host: its host name, with .local.
        addresses: IPv4 addresses first.
        port: TCP port of its pages and its API.
        version: Hob's version there; "" when it does not tell.
    """

    name: str
    host: str
    addresses: tuple[str, ...]
    port: int
    version: str

    @property
    def url(self) -> str:
        """Where to open it."""
        return f"http://{self.host}" + ("" if self.port == 80 else f":{self.port}")


async def browse(seconds: float) -> list[Found]:
    """Ask for web services for so many seconds; those that say they are a Hob, by host name.

    Empty where there is no network.
    """
    interfaces = reach().multicast
    if not interfaces:
        return []
    names: asyncio.Queue[str] = asyncio.Queue()

    def seen(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Added:
            names.put_nowait(name)
        elif state_change is ServiceStateChange.Removed:
            found.pop(name, None)

    found: dict[str, Found] = {}
    async with AsyncZeroconf(interfaces=list(interfaces)) as zeroconf, asyncio.TaskGroup() as lookups:
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[seen])

        clock = asyncio.get_running_loop().time
        end = clock() + seconds

        async def look_up(name: str) -> None:
            # Who turns up at the last moment still gets the time of one question.
            if (hob := await _resolve(zeroconf.zeroconf, name, max(end - clock(), 0.5))) is not None:
                found[name] = hob

        try:
            async with asyncio.timeout_at(end):
                while True:
                    lookups.create_task(look_up(await names.get()))
        except TimeoutError:
            await browser.async_cancel()
    return sorted(found.values(), key=lambda hob: (hob.host, hob.port))


async def _resolve(zeroconf: Zeroconf, name: str, seconds: float) -> Found | None:
    info = AsyncServiceInfo(SERVICE, name)
    if not await info.async_request(zeroconf, seconds * 1000):
        return None
    told = info.decoded_properties
    if told.get("product") != PRODUCT or info.server is None or info.port is None:
        return None
    return Found(
        name=name.removesuffix(f".{SERVICE}"),
        host=info.server.removesuffix("."),
        addresses=tuple(info.parsed_addresses()),
        port=info.port,
        version=told.get("version") or "",
    )
