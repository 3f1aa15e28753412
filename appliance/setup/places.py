"""Where things lie on a device."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """Folders and files below a root: the device's own, or a test's."""

    root: Path = Path("/")

    @property
    def boot(self) -> Path:
        """The boot partition, which other computers can read and write."""
        return self.root / "boot"

    @property
    def state(self) -> Path:
        """What root's side of Hob keeps, on the data partition."""
        return self.root / "var/lib/hob-system"

    @property
    def network(self) -> Path:
        """Where a Wi-Fi network is wished for, and what came of it."""
        return self.root / "run/hob-network"

    @property
    def notes(self) -> Path:
        """Texts that the screen shows."""
        return self.root / "run/hob-screen"

    @property
    def zones(self) -> Path:
        """The time zone database."""
        return self.root / "usr/share/zoneinfo"

    @property
    def radios(self) -> Path:
        """A folder with an entry for each Wi-Fi radio."""
        return self.root / "sys/class/ieee80211"

    @property
    def has_radio(self) -> bool:
        """Whether there is a Wi-Fi radio."""
        return self.radios.is_dir() and any(self.radios.iterdir())


def here() -> Places:
    """This device; HOB_ROOT names another root than /."""
    return Places(Path(os.environ.get("HOB_ROOT", "/")))
