"""Which slot boots: the script that RAUC and the health gate call, and what a power cut leaves."""

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SYSTEM = Path(__file__).parents[3] / "builder/image/system"
VENDOR = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

# What bootctl does with the two variables that the script has it write, in the format of the specification:
# attributes 7 (non-volatile, at boot, at run time), then UTF-16 with a zero at its end; no text removes it.
BOOTCTL = """\
#!/usr/bin/python3
import os, sys
quiet, verb, entry = sys.argv[1:]
assert quiet == "--quiet"
name = {"set-oneshot": "LoaderEntryOneShot", "set-default": "LoaderEntryDefault"}[verb]
path = os.environ["HOB_ROOT"] + f"/sys/firmware/efi/efivars/{name}-VENDOR"
if os.environ.get("FULL"):
    sys.exit("Failed to update EFI variable: No space left on device")
if entry:
    open(path, "wb").write(bytes([7, 0, 0, 0]) + (entry + "\\0").encode("utf-16-le"))
elif os.path.exists(path):
    os.unlink(path)
""".replace("VENDOR", VENDOR)


@dataclass
class Machine(ABC):
    """A device's files, as far as the script sees them."""

    root: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Call the script."""
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            ["sh", self.root / "usr/lib/hob/slots", *arguments],
            env={"PATH": path, "HOB_ROOT": str(self.root), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )

    def __call__(self, *arguments: str) -> str:
        """What the script prints; it succeeds."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def trial(self) -> bool:
        """Whether this boot is a trial."""
        return self.run("trial").returncode == 0

    def boot(self) -> str:
        """What the boot loader does: takes the slot that was chosen for one boot, or the default."""
        slot = self.choice()
        assert (self.root / f"boot/EFI/Linux/hob-{slot}.efi").stat().st_size, f"{slot} does not boot"
        (self.root / "proc/cmdline").write_text(f"ro quiet root=PARTUUID=1 hob.slot={slot} panic=10\n")
        return slot

    @abstractmethod
    def choice(self) -> str:
        """The boot loader's own part of `boot`."""

    def install(self, slot: str) -> None:
        """What RAUC does, with a kernel brought in by the bundle's hook."""
        self("set-state", slot, "bad")
        (self.root / f"boot/EFI/Linux/hob-{slot}.efi").write_text("kernel")
        self("set-primary", slot)


class Uefi(Machine):
    """A PC with systemd-boot."""

    def choice(self) -> str:
        """The one-shot entry, which is gone then, else the default of the variable, else of the file."""
        variables = self.root / "sys/firmware/efi/efivars"
        once, always = (variables / f"LoaderEntry{name}-{VENDOR}" for name in ("OneShot", "Default"))
        conf = (self.root / "boot/loader/loader.conf").read_text()
        entry = next(line.split()[1] for line in conf.splitlines() if line.startswith("default"))
        for variable in (always, once):
            if variable.exists():
                entry = variable.read_bytes()[4:].decode("utf-16-le").rstrip("\0")
        once.unlink(missing_ok=True)
        return entry.removeprefix("hob-").removesuffix(".efi")


class Pi(Machine):
    """A Raspberry Pi with U-Boot, whose script this follows; tests/image runs the script itself."""

    def choice(self) -> str:
        """The slot of the file `once`, which is gone then, else of the file `always`, else A."""
        folder = self.root / "boot/slots"
        named = dict(path.read_text().strip().split("=") for path in folder.glob("*"))
        (folder / "once").unlink(missing_ok=True)
        return named.get("once") or named.get("always") or "a"


def flashed(machine: Machine, bootloader: str) -> None:
    """Lay out a device as it was flashed: slot B is empty, and nothing is known of the slots."""
    root = machine.root
    for folder in ("bin", "proc", "boot/loader", "boot/EFI/Linux", "sys/firmware/efi/efivars", "usr/lib/hob"):
        (root / folder).mkdir(parents=True)
    shutil.copy(SYSTEM / "common/usr/lib/hob/slots", root / "usr/lib/hob")
    shutil.copy(SYSTEM / bootloader / "usr/lib/hob/bootloader", root / "usr/lib/hob")
    (root / "bin/bootctl").write_text(BOOTCTL)
    (root / "bin/bootctl").chmod(0o755)
    (root / "boot/loader/loader.conf").write_text("timeout 0\ndefault hob-a.efi\neditor no\n")
    (root / "boot/EFI/Linux/hob-a.efi").write_text("kernel")
    (root / "proc/mounts").write_text(f"/dev/vda1 {root}/boot vfat rw,noatime 0 0\n")
    machine.boot()


@pytest.fixture
def uefi(tmp_path: Path) -> Iterator[Uefi]:
    """A PC, as it was flashed."""
    machine = Uefi(tmp_path)
    flashed(machine, "uefi")
    yield machine
    assert not list((tmp_path / "boot").rglob("*.new"))


@pytest.fixture
def pi(tmp_path: Path) -> Iterator[Pi]:
    """A Raspberry Pi, as it was flashed."""
    machine = Pi(tmp_path)
    flashed(machine, "pi")
    yield machine
    assert not list((tmp_path / "boot").rglob("*.new"))


@pytest.fixture(params=["uefi", "pi"])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Each kind of device, as it was flashed."""
    made: Machine = request.getfixturevalue(request.param)
    return made


def test_as_flashed(machine: Machine) -> None:
    """A runs, boots next, is good; B is not, and cannot be chosen."""
    assert machine("get-current") == machine("get-primary") == machine("get-default") == "a"
    assert (machine("get-state", "a"), machine("get-state", "b")) == ("good", "bad")
    assert not machine.trial
    refused = machine.run("set-primary", "b")
    assert refused.returncode == 1
    assert refused.stderr == "slots: slot b holds no system\n"


def test_a_good_update(machine: Machine) -> None:
    """The new slot boots once; found good, it boots always, and the old one stays good."""
    machine.install("b")
    assert (machine("get-primary"), machine("get-default")) == ("b", "a")
    assert machine.boot() == "b"
    assert machine.trial
    assert (machine("get-state", "b"), machine("get-primary")) == ("bad", "a")
    machine("set-state", "b", "good")
    assert not machine.trial
    assert (machine("get-primary"), machine("get-state", "a"), machine("get-state", "b")) == (
        "b",
        "good",
        "good",
    )
    assert machine.boot() == "b"


def test_the_file_of_the_loader(uefi: Uefi) -> None:
    """A new default changes that one line of systemd-boot's file."""
    uefi.install("b")
    uefi.boot()
    uefi("set-state", "b", "good")
    assert (uefi.root / "boot/loader/loader.conf").read_text() == (
        "timeout 0\neditor no\ndefault hob-b.efi\n"
    )


def test_a_trial_that_ends_leads_back(machine: Machine) -> None:
    """Whatever ends a boot on trial, the next one is the default's, which is then no trial."""
    machine.install("b")
    assert machine.boot() == "b"
    assert machine.boot() == "a"
    assert not machine.trial
    assert machine("get-state", "b") == "bad"


def test_giving_up_the_trial(machine: Machine) -> None:
    """A slot that is called bad before it booted is not booted."""
    machine.install("b")
    machine("set-state", "b", "bad")
    assert machine("get-primary") == "a"
    assert machine.boot() == "a"


def test_going_back_by_hand(machine: Machine) -> None:
    """The other slot, once it was good, is tried like a new one, and becomes the default when it is good."""
    machine.install("b")
    machine.boot()
    machine("set-state", "b", "good")
    machine("set-primary", "a")
    assert machine.boot() == "a"
    assert machine.trial
    assert machine.boot() == "b"
    machine("set-primary", "a")
    machine.boot()
    machine("set-state", "a", "good")
    assert machine.boot() == "a"


def test_the_default_itself_is_given_up(machine: Machine) -> None:
    """A default called bad hands over to the other slot if that was good, else stays: something must boot."""
    machine("set-state", "a", "bad")
    assert machine("get-default") == "a"
    machine("set-state", "a", "good")
    machine.install("b")
    machine.boot()
    machine("set-state", "b", "good")
    machine("set-state", "b", "bad")
    assert machine("get-default") == "a"
    assert machine.boot() == "a"


def test_choosing_what_runs_takes_back_a_choice(machine: Machine) -> None:
    """The default as primary clears what was chosen for one boot."""
    machine.install("b")
    machine("set-primary", "a")
    assert machine("get-primary") == "a"
    assert machine.boot() == "a"


def test_firmware_that_forgets(uefi: Uefi) -> None:
    """Without its variables the loader's file names the same default."""
    uefi.install("b")
    uefi.boot()
    uefi("set-state", "b", "good")
    for variable in (uefi.root / "sys/firmware/efi/efivars").iterdir():
        variable.unlink()
    assert uefi("get-default") == "b"
    assert uefi.boot() == "b"
    assert not uefi.trial


def test_a_lost_file_of_the_loader(uefi: Uefi) -> None:
    """Without the loader's file the variable names the default; the next good boot writes the file anew."""
    uefi.install("b")
    uefi.boot()
    uefi("set-state", "b", "good")
    (uefi.root / "boot/loader/loader.conf").unlink()
    assert uefi("get-default") == "b"
    uefi("set-state", "b", "good")
    assert (uefi.root / "boot/loader/loader.conf").read_text() == "default hob-b.efi\n"


def test_firmware_that_refuses(uefi: Uefi) -> None:
    """A variable that cannot be written is an error, and the old slot stays what boots."""
    uefi.install("b")
    uefi("set-primary", "a")
    refused = uefi.run("set-primary", "b", FULL="1")
    assert refused.returncode != 0
    assert "No space left" in refused.stderr
    assert uefi.boot() == "a"
    uefi("set-primary", "b")
    uefi.boot()
    assert uefi.run("set-state", "b", "good", FULL="1").returncode != 0
    assert uefi("get-state", "b") == "bad"
    assert uefi.boot() == "a"


def test_lost_state(machine: Machine) -> None:
    """Without its notes (a data partition made anew) the default counts as good, the other does not."""
    machine.install("b")
    machine.boot()
    machine("set-state", "b", "good")
    for note in (machine.root / "var/lib/hob-system/slots").iterdir():
        note.unlink()
    assert (machine("get-state", "b"), machine("get-state", "a")) == ("good", "bad")


def test_marking_good_again_writes_nothing(machine: Machine) -> None:
    """Each boot may say that all is well: flash memory is not worn by it."""
    machine("set-state", "a", "good")

    def times() -> dict[str, int]:
        files = [path for path in machine.root.rglob("*") if path.is_file()]
        return {str(path): path.stat().st_mtime_ns for path in files}

    before = times()
    machine("set-state", "a", "good")
    assert times() == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["help"],
        ["get-state"],
        ["get-state", "c"],
        ["set-primary", "../a"],
        ["set-state", "a"],
        ["set-state", "a", "x"],
    ],
)
def test_wrong_calls_are_refused(machine: Machine, arguments: list[str]) -> None:
    """Nothing but the two slots and the two states is taken."""
    refused = machine.run(*arguments)
    assert refused.returncode == 1
    assert refused.stderr.startswith("slots: ")


def test_a_command_line_without_a_slot(machine: Machine) -> None:
    """A system that does not know which slot it is says so, and changes nothing."""
    (machine.root / "proc/cmdline").write_text("ro quiet\n")
    assert machine.run("get-current").returncode == 1
    assert machine.run("set-state", "a", "good").returncode == 1


def test_a_boot_partition_that_is_only_read(uefi: Uefi) -> None:
    """It is made writable for the loader's file, and read-only again, also when something fails."""
    mounts, log = uefi.root / "proc/mounts", uefi.root / "mounted"
    mounts.write_text(f"/dev/vda1 {uefi.root}/boot vfat ro,noatime 0 0\n")
    tool = uefi.root / "bin/mount"
    tool.write_text(f'#!/bin/sh\necho "$@" >>{log}\n')
    tool.chmod(0o755)
    uefi.install("b")
    uefi.boot()
    assert not log.exists()  # choosing a slot for one boot writes nothing there
    uefi("set-state", "b", "good")
    boot = uefi.root / "boot"
    assert log.read_text() == f"-o remount,rw {boot}\n-o remount,ro {boot}\n"
    log.unlink()
    (boot / "loader/loader.conf").unlink()
    (boot / "loader").rmdir()
    (boot / "loader").write_text("damaged")
    assert uefi.run("set-state", "b", "good").returncode != 0
    assert log.read_text().splitlines()[-1] == f"-o remount,ro {boot}"


def test_files_that_u_boot_reads(pi: Pi) -> None:
    """Each is one line that U-Boot imports; what it cannot mean is no choice."""
    pi.install("b")
    assert (pi.root / "boot/slots/once").read_text() == "once=b\n"
    pi.boot()
    pi("set-state", "b", "good")
    assert (pi.root / "boot/slots/always").read_text() == "always=b\n"
    (pi.root / "boot/slots/always").write_text("always=../c\n")
    assert pi("get-default") == "a"  # which U-Boot takes then


def test_a_card_that_is_only_read(pi: Pi) -> None:
    """The boot partition is writable for as long as a choice is written, and no longer."""
    mounts, log = pi.root / "proc/mounts", pi.root / "mounted"
    mounts.write_text(f"/dev/mmcblk0p1 {pi.root}/boot vfat ro,noatime 0 0\n")
    tool = pi.root / "bin/mount"
    tool.write_text(f'#!/bin/sh\necho "$@" >>{log}\n')
    tool.chmod(0o755)
    pi.install("b")
    boot = pi.root / "boot"
    assert log.read_text() == f"-o remount,rw {boot}\n-o remount,ro {boot}\n"
    log.unlink()
    pi("set-primary", "b")
    assert not log.exists()  # it is chosen already
