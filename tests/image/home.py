"""A machine's whole life: one disk that is switched on and off many times."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.image import people
from tests.image.boards import PC, Board
from tests.image.disk import Disk
from tests.image.emulator import Emulator
from tests.image.machine import Machine

GUEST_PORTS = (
    21,
    22,
    23,
    25,
    53,
    80,
    111,
    139,
    443,
    445,
    631,
    2375,
    5355,
    5432,
    8000,
    8080,
    8081,
    9090,
    11434,
)
"""What `Home.on` forwards: the page, and what a careless system leaves open."""


@dataclass
class Home:
    """A machine that is on at most once at a time.

    Attributes:
        disk: its disk; to be looked into only while it is off.
        sticks: USB sticks that are in whenever it is switched on.
        ready: how many seconds it took from the power button to the first good answer, for every start.
    """

    emulator: Emulator
    disk: Disk
    folder: Path
    accelerator: str = "tcg"
    board: Board = PC
    sticks: Sequence[Path] = ()
    ready: list[float] = field(default_factory=list)
    _machine: Machine | None = None

    @property
    def machine(self) -> Machine:
        """The machine, which is on."""
        assert self._machine, "the machine is off"
        return self._machine

    def on(self, probe: bool = False) -> Machine:
        """Switch it on, unless it is on already, and wait until it says that it can answer.

        `probe`: with a root shell to look inside (`Machine.probe`); one that is on without is switched off
        first.
        """
        if probe and self._machine and not self._machine.has_probe:
            self.off()
        if self._machine is None or self._machine.process.poll() is not None:
            self._machine = Machine(
                self.emulator,
                self.disk,
                self.folder,
                board=self.board,
                accelerator=self.accelerator,
                ports=GUEST_PORTS,
                probe=probe,
                sticks=self.sticks,
            ).__enter__()
            self.ready.append(self._machine.wait())
        return self._machine

    def off(self) -> None:
        """Press the power button, unless it is off already; then the disk must be sound."""
        if self._machine and self._machine.process.poll() is None:
            self._machine.power_off()
            self.kill()
            self.disk.recover()

    def kill(self) -> None:
        """Pull the plug."""
        if self._machine:
            self._machine.kill()
            self._machine = None


def flashed(
    emulator: Emulator,
    image: Path,
    folder: Path,
    accelerator: str = "tcg",
    *,
    settings: str = people.FIRST_BOOT,
    board: Board = PC,
    sticks: Sequence[Path] = (),
) -> Home:
    """A new machine, flashed by its owner, with `settings` as the hob.toml of its boot partition."""
    folder.mkdir(exist_ok=True)
    disk = Disk.copy(emulator, image, folder / "disk.img")
    disk.put("hob.toml", settings)
    return Home(emulator, disk, folder, accelerator, board, sticks)
