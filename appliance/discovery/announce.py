"""Being found: `hob.local` and a web service of type `_http._tcp` on every LAN interface."""

import asyncio
import logging
from collections.abc import Callable

from zeroconf import Error
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from appliance import __version__
from appliance.discovery.hostname import Contest, Defender, Watch, candidates, listen, taken, wins
from appliance.discovery.interfaces import Reach, reach
from appliance.security.hosts import IPAddress, interface_addresses

logger = logging.getLogger(__name__)

SERVICE = "_http._tcp.local."
PRODUCT = "hob"

# How often interfaces are looked at; one look takes a fifth of a millisecond.
LOOK_SECONDS = 3.0
# A name is defended at most once a second (RFC 6762 §6), and so often within a minute before it is given up,
# so that it and a machine that does not know the rule do not shout at each other for ever.
DEFENCE_SECONDS = 1.0
DEFENCES_PER_MINUTE = 10


def properties(label: str) -> dict[str, str]:
    """The TXT record: what a browser opens, and by what another Hob knows us. Each value is short."""
    return {"path": "/", "product": PRODUCT, "version": __version__[:200], "name": label}


def instance(label: str) -> str:
    """The service's name for people, at most 63 bytes: "Hob", or "Hob (kitchen)" on a host named kitchen."""
    return "Hob" if label == "hob" else f"Hob ({label[:57]})"


class Announcer:
    """Keeps Hob announced while `run` runs: through changes of addresses and quarrels over names.

    Args:
        label: the host name wanted, without .local; `label-2` and so on are taken when it is not free.
        port: TCP port of the web service.
        on_host: told the host name (with .local) each time it is won, "" when it is given up.
    """

    def __init__(
        self,
        label: str,
        port: int,
        *,
        on_host: Callable[[str], None],
        look: Callable[[], Reach] = reach,
    ) -> None:
        self._label = label
        self._port = port
        self._on_host = on_host
        self._look = look
        self._reach = Reach((), ())
        self._own: frozenset[IPAddress] = frozenset()
        self._zeroconf: AsyncZeroconf | None = None
        self._info: AsyncServiceInfo | None = None
        self._watch: Watch | None = None
        self._ears: asyncio.DatagramTransport | None = None
        self._contest = Contest()
        self._rivals: frozenset[IPAddress] = frozenset()
        self._defended: list[float] = []
        self._wake = asyncio.Event()
        self.host = ""

    async def run(self) -> None:
        """Announce until cancelled, then say goodbye. Trouble with the network is logged and tried again."""
        try:
            while True:
                try:
                    await self._settle()
                except (OSError, Error) as error:
                    logger.warning("cannot announce Hob on the LAN now: %s", error)
                    await self._leave()
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), LOOK_SECONDS)
                except TimeoutError:
                    continue
        finally:
            await self._leave()

    async def _settle(self) -> None:
        """Bring what is announced in line with the interfaces and with what others announce."""
        now = self._look()
        # Addresses that we had stay ours for a while: others may still repeat what we told them.
        self._own |= interface_addresses()
        if now != self._reach:
            await self._follow(now)
        elif self._rivals:
            await self._quarrel()

    async def _follow(self, now: Reach) -> None:
        before, self._reach = self._reach, now
        if not now.multicast or not before.multicast or self._zeroconf is None or self._info is None:
            await self._leave()
            self._own = interface_addresses()
            self._reach = now
            if now.multicast:
                await self._enter(now)
            return
        if now.multicast != before.multicast:
            await self._zeroconf.async_update_interfaces(list(now.multicast))
            await self._open_ears(now)
        # Another network may have another hob.local.
        if await self._taken(self._zeroconf, self.host):
            await self._claim(self._zeroconf)
            return
        self._info.addresses = [address.packed for address in now.announced]
        await self._zeroconf.async_update_service(self._info)
        logger.info("announced as %s at %s", self.host, ", ".join(map(str, now.announced)))

    async def _enter(self, now: Reach) -> None:
        self._zeroconf = AsyncZeroconf(interfaces=list(now.multicast))
        await self._zeroconf.zeroconf.async_wait_for_start()
        await self._open_ears(now)
        await self._claim(self._zeroconf)

    async def _claim(self, zeroconf: AsyncZeroconf) -> None:
        """Take the first free name and announce the service under it."""
        await self._withdraw()
        for label in candidates(self._label):
            host = f"{label}.local"
            if not await self._taken(zeroconf, host):
                break
        self._rivals = frozenset()
        self._watch = Watch(host, lambda: self._own, self._hear_rivals)
        zeroconf.zeroconf.async_add_listener(self._watch, None)
        info = AsyncServiceInfo(
            SERVICE,
            f"{instance(label)}.{SERVICE}",
            port=self._port,
            properties=properties(label),
            server=f"{host}.",
            addresses=[address.packed for address in self._reach.announced],
        )
        # "Cooperating" leaves out zeroconf's own probe: the service's name follows from the host's, which is
        # ours already, and for the second that it takes nobody would answer for either. What is returned are
        # the announcements, still being repeated; nobody has to wait for them.
        await zeroconf.async_register_service(info, cooperating_responders=True)
        self._info = info
        self.host = host
        self._on_host(host)
        logger.info("announced as %s at %s", host, ", ".join(map(str, self._reach.announced)))

    async def _taken(self, zeroconf: AsyncZeroconf, host: str) -> bool:
        return await taken(zeroconf.zeroconf, host, self._reach.announced, lambda: self._own, self._contest)

    async def _withdraw(self) -> None:
        """Take back the name and the service, with goodbyes."""
        if self._zeroconf is None or self._info is None:
            return
        if self._watch is not None:
            self._zeroconf.zeroconf.async_remove_listener(self._watch)
        await (await self._zeroconf.async_unregister_service(self._info))
        self._info = self._watch = None
        self.host = ""
        self._on_host("")

    async def _quarrel(self) -> None:
        """Somebody else uses our name: one of us keeps it, by the rule that both know (RFC 6762 §8.2, §9)."""
        assert self._zeroconf is not None
        assert self._info is not None
        rivals = self._rivals
        if wins(self._reach.announced, rivals) and self._may_defend():
            await self._zeroconf.async_update_service(self._info)
            await asyncio.sleep(DEFENCE_SECONDS)
            self._rivals = frozenset()
            return
        logger.info("%s belongs to %s; taking another name", self.host, ", ".join(map(str, rivals)))
        await self._claim(self._zeroconf)

    def _may_defend(self) -> bool:
        now = asyncio.get_running_loop().time()
        self._defended = [when for when in self._defended if now - when < 60]
        self._defended.append(now)
        return len(self._defended) <= DEFENCES_PER_MINUTE

    def _hear_rivals(self, addresses: frozenset[IPAddress]) -> None:
        self._rivals = addresses
        self._wake.set()

    async def _open_ears(self, now: Reach) -> None:
        if self._ears is not None:
            self._ears.close()
        self._ears = await listen(
            Defender(self._contest, lambda: self.host, lambda: self._own, self._answer_probe), now.multicast
        )

    def _answer_probe(self) -> None:
        if self._zeroconf is not None and self._info is not None:
            zeroconf = self._zeroconf.zeroconf
            zeroconf.async_send(zeroconf.generate_service_broadcast(self._info, None))

    async def _leave(self) -> None:
        if self._ears is not None:
            self._ears.close()
        if self._zeroconf is not None:
            await self._withdraw()
            await self._zeroconf.async_close()
        self._ears = self._zeroconf = None
        self._reach = Reach((), ())
