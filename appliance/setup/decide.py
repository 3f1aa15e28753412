"""When to open the set-up network and when to leave it: a pure decision on what is seen."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

FRESH: Final = 20.0
"""Seconds without any network after which a device that knows no Wi-Fi opens its own: cables take a
moment."""

PATIENT: Final = 120.0
"""The same for a device that knows one: after a power cut, routers take longer to start than Hob."""

AGAIN: Final = 300.0
"""Seconds after which the set-up network makes way for another look at the known one, if nobody is on it."""


@dataclass(frozen=True)
class Seen:
    """The situation.

    Attributes:
        online: a cable or the owner's Wi-Fi is connected.
        known: a Wi-Fi network is set up.
        wished: somebody asked for another one just now.
        open: the set-up network is on the air.
        guests: devices on it.
        since: seconds since this began: without a network, or with the set-up network open.
    """

    online: bool = False
    known: bool = False
    wished: bool = False
    open: bool = False
    guests: int = 0
    since: float = 0.0


class Step(Enum):
    """What to do next."""

    WAIT = "wait"
    OPEN = "open the set-up network"
    CLOSE = "close the set-up network, and look for the known one where there is no cable"
    JOIN = "join the network that was asked for"
    REST = "there is a network: nothing more to do"


def decide(seen: Seen) -> Step:
    """The next step."""
    if seen.wished:
        return Step.JOIN
    if seen.open:
        if seen.online:
            return Step.CLOSE
        look_again = seen.known and not seen.guests and seen.since >= AGAIN
        return Step.CLOSE if look_again else Step.WAIT
    if seen.online:
        return Step.REST
    return Step.OPEN if seen.since >= (PATIENT if seen.known else FRESH) else Step.WAIT
