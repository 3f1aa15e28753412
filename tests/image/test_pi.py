"""The Raspberry Pi's image on QEMU's Raspberry Pi 3: which slot U-Boot starts, and that Hob answers.

QEMU cannot play the firmware, nor any later board. What it plays is everything from U-Boot on, with the
image's own U-Boot, script, kernel image and root, and with the device tree of the Pi 3.
"""

import re
import time
from pathlib import Path

import pytest

from builder.image.cache import Cache
from builder.image.toolbox import open_toolbox
from tests.image.boards import RASPBERRY_PI_3, DirectBoot
from tests.image.building import build
from tests.image.conftest import ENVIRONMENT
from tests.image.disk import Disk
from tests.image.emulator import Emulator
from tests.image.machine import Machine

pytestmark = pytest.mark.image

BOARD_TREE = "bcm2837-rpi-3-b.dtb"

# A played Pi 3 is slower than any timeout was made for, has no picture, no Bluetooth, and restarts when its
# watchdog is only armed.
WORDS = (
    "console=ttyS1,115200 systemd.show_status=yes systemd.default_device_timeout_sec=900 "
    "modprobe.blacklist=vc4,hci_uart,btbcm,bcm2835_wdt"
)


@pytest.fixture(scope="module")
def card(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """A memory card with the image on it, as it was flashed."""
    release = build("rpi4", tmp_path_factory.mktemp("rpi4"), ENVIRONMENT, "--fast")
    return Disk.copy(emulator, release.unpack(), tmp_path_factory.mktemp("card") / "card.img")


def board(card: Disk, folder: Path) -> DirectBoot:
    """What the firmware would start from this card."""
    folder.mkdir(parents=True, exist_ok=True)
    made = DirectBoot(folder / "u-boot.bin", folder / BOARD_TREE)
    assert b"kernel=u-boot.bin\n" in card.get("config.txt")
    made.program.write_bytes(card.get("u-boot.bin"))
    made.tree.write_bytes(card.get(BOARD_TREE))
    return made


def tried(serial: str) -> list[str]:
    """The slots that U-Boot tried to start, a string for each time that it ran."""
    runs = serial.split("Core: ")[1:]  # the first line on this port; what comes before goes to another
    return ["".join(re.findall(r"Hob: slot (\w)", run)) for run in runs]


@pytest.mark.parametrize(
    ("always", "once", "first", "later"),
    [
        ("", "", "ab", "ab"),
        ("always=a", "once=b", "baab", "aab"),
        ("always=b", "", "bab", "bab"),
        ("always=b", "once=a", "abab", "bab"),
        ("always=c; reset", "once=../b", "ab", "ab"),
    ],
)
def test_which_slot_starts(
    emulator: Emulator, card: Disk, tmp_path: Path, always: str, once: str, first: str, later: str
) -> None:
    """The slot chosen for one boot comes first, once; then the default; then whatever is there."""
    empty = card.clone(tmp_path / "card.img")
    direct = board(empty, tmp_path / "board")
    empty.erase("EFI/Linux/hob-a.efi")  # so that each is tried
    empty.folder("slots")
    for name, text in (("always", always), ("once", once)):
        if text:
            empty.put(f"slots/{name}", f"{text}\n")
    with Machine(emulator, empty, tmp_path / "m", board=RASPBERRY_PI_3, direct=direct) as machine:
        machine.wait_for_serial("no slot starts", 300)
        deadline = time.monotonic() + 300
        while len(tried(machine.serial())) < 3 and time.monotonic() < deadline:
            time.sleep(1)
    assert tried(machine.serial())[:2] == [first, later]
    assert "slots/once" not in empty.names("slots")


def test_it_answers(emulator: Emulator, card: Disk, cache: Cache, tmp_path: Path) -> None:
    """From the image alone, with no network but the forwarded port, until the built-in model is ready."""
    disk = card.clone(tmp_path / "card.img")
    toolbox = open_toolbox(cache)
    with toolbox.scratch("words") as work:
        toolbox.run(
            [
                *("ukify", "build", "--efi-arch=aa64"),
                "--stub=/usr/lib/systemd/boot/efi/addonaa64.efi.stub",
                *(f"--cmdline={WORDS}", f"--output={work}/words.addon.efi"),
            ],
            write=[work],
        )
        disk.put("EFI/Linux/hob-a.efi.extra.d/words.addon.efi", (work / "words.addon.efi").read_bytes())
    direct = board(disk, tmp_path / "board")
    with Machine(emulator, disk, tmp_path / "m", board=RASPBERRY_PI_3, direct=direct) as machine:
        # Linux never sees, on QEMU's USB controller, what U-Boot has found on it already.
        machine.wait_for_serial("network.target")
        machine.monitor("device_add", driver="usb-net", netdev="net")
        seconds = machine.wait("/healthz")
        assert "Hob: slot a" in machine.serial()
        print(f"HTTP and a loaded model {seconds:.0f} s after power-on")
    disk.recover()
