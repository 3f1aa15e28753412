"""What a measurement says about a machine: how fast models of which size write on it, in one word.

A model writes one token by reading all of its weights once, so memory bounds its speed. A tier says up to
which of the sizes that models are published in (one, three and eight billion weights, four bits each) answers
come faster than people read.
"""

import logging
from pathlib import Path
from typing import Literal

from appliance.domain import Frozen, Hardware

log = logging.getLogger(__name__)

Tier = Literal["small", "medium", "large", "extra large"]

# Tokens a second from which on an answer is never waited for. People read some 240 words a minute
# (Brysbaert 2019, doi:10.1016/j.jml.2019.104047), five or six tokens a second; this leaves room for skimming.
FLUENT = 10.0
# Share of the memory's speed that decoding reaches: 0.8 and more in `just bench`.
SHARE = 0.8
# Bytes of a billion weights in q4f16_1: 4 bits and a float16 scale for every 32.
BILLION = 4.5 / 8 * 1e9

# Billions of weights that must be fluent.
TIERS: tuple[tuple[float, Tier], ...] = (
    (8.0, "extra large"),
    (3.0, "large"),
    (1.0, "medium"),
    (0.0, "small"),
)

NAME = "measured.json"
"""File in the data folder."""


class Measurement(Frozen):
    """What was measured on this machine.

    Attributes:
        machine: what it was measured on, as `fingerprint` says; another one makes it worthless.
        date: Unix time.
        target: the device that computed, as the compiler names it.
        bandwidth: GB/s (10⁹ bytes) read from that device's memory; None where it could not be measured.
        model: the model that answered; empty where none could.
        prefill, decode: tokens of it a second, read and written; None without a model.
    """

    machine: str
    date: float
    target: str
    bandwidth: float | None = None
    model: str = ""
    prefill: float | None = None
    decode: float | None = None

    @property
    def fluent(self) -> float | None:
        """Billions of 4-bit weights that write FLUENT tokens a second."""
        return None if self.bandwidth is None else self.bandwidth * 1e9 * SHARE / FLUENT / BILLION

    @property
    def tier(self) -> Tier | None:
        """In one word; None where the memory's speed is not known."""
        billions = self.fluent
        return None if billions is None else next(name for bound, name in TIERS if billions >= bound)


def fingerprint(machine: Hardware, target: str, version: str) -> str:
    """What a measurement holds for: board, processor, device, release of Hob."""
    return " | ".join((machine.board, machine.cpu, f"{machine.cores} cores", target, f"Hob {version}"))


def read(data_dir: Path) -> Measurement | None:
    """The last measurement, whatever it was made on; None where there is none that can be read."""
    try:
        return Measurement.model_validate_json((data_dir / NAME).read_text())
    except (OSError, ValueError):  # not there yet, or of another release: it is made anew
        return None


def write(data_dir: Path, measurement: Measurement) -> None:
    """Keep a measurement; a folder that cannot be written costs no more than measuring again."""
    partial = data_dir / f"{NAME}.part"
    try:
        partial.write_text(measurement.model_dump_json(indent=1) + "\n")
        partial.replace(data_dir / NAME)
    except OSError as error:
        log.warning("%s cannot be written: %s", data_dir / NAME, error.strerror)
