"""How often a stranger may guess: a growing delay per address and one budget for the whole network."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from math import ceil

from appliance.errors import RateLimitError

FREE_ATTEMPTS = 5
LONGEST_DELAY = 15 * 60.0
FORGET_AFTER = 60 * 60.0
# Guesses the whole network has together: a burst, then one every two seconds. A LAN has few people, so this
# never meets them; it meets somebody who owns many addresses.
BURST = 30.0
REFILL_PER_SECOND = 0.5
# Strangers choose their addresses; what is remembered about them has to stay small.
REMEMBERED = 1024


@dataclass
class _Record:
    failures: int
    last: float


class Throttle:
    """Counts attempts in memory. Deterministic for a given clock; forgets everything on restart.

    An attempt counts as failed from the moment it is admitted, so that guesses sent side by side
    do not slip through while the first is still being hashed; success takes it back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._budget = BURST
        self._filled = clock()

    def admit(self, address: str) -> None:
        """Count an attempt from `address`.

        Raises:
            RateLimitError: too early; `retry_after` says how many whole seconds to wait.
        """
        now = self._clock()
        key = network(address)
        record = self._records.get(key)
        if record is not None and now - record.last > FORGET_AFTER:
            record = None
        wait = 0.0 if record is None else record.last + delay(record.failures) - now
        self._budget = min(BURST, self._budget + (now - self._filled) * REFILL_PER_SECOND)
        self._filled = now
        if self._budget < 1:
            wait = max(wait, (1 - self._budget) / REFILL_PER_SECOND)
        if wait > 0:
            raise RateLimitError(
                "Too many attempts.", hint=f"Wait {ceil(wait)} seconds.", retry_after=ceil(wait)
            )
        self._budget -= 1
        self._records[key] = _Record(failures=1 + (record.failures if record else 0), last=now)
        self._records.move_to_end(key)
        if len(self._records) > REMEMBERED:
            self._records.popitem(last=False)

    def succeeded(self, address: str) -> None:
        """The attempt was right: forget what `address` did before and give its guess back."""
        self._records.pop(network(address), None)
        self._budget = min(BURST, self._budget + 1)


def delay(failures: int) -> float:
    """Seconds an address waits after its failures: none for the first four, then doubling to 15 minutes."""
    if failures < FREE_ATTEMPTS:
        return 0.0
    return min(LONGEST_DELAY, 2.0 ** min(failures - FREE_ATTEMPTS, 20))


def network(address: str) -> str:
    """What counts as one guesser: an IPv4 address, or an IPv6 /64, which one machine may own as a whole."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return f"{parsed.packed[:8].hex()}::/64"
    return str(parsed)
