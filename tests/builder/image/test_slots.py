"""Which slot boots: the script that RAUC and the health gate call on UEFI, and what a power cut leaves."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SLOTS = Path(__file__).parents[3] / "builder/image/system/uefi/usr/lib/hob/slots"
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
class Machine:
    """A device's files, as far as the script sees them."""

    root: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Call the script."""
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            ["sh", SLOTS, *arguments],
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
        """What systemd-boot does: takes the one-shot entry, which is gone then, or the default."""
        variables = self.root / "sys/firmware/efi/efivars"
        once, always = (variables / f"LoaderEntry{name}-{VENDOR}" for name in ("OneShot", "Default"))
        conf = (self.root / "boot/loader/loader.conf").read_text()
        entry = next(line.split()[1] for line in conf.splitlines() if line.startswith("default"))
        for variable in (always, once):
            if variable.exists():
                entry = variable.read_bytes()[4:].decode("utf-16-le").rstrip("\0")
        once.unlink(missing_ok=True)
        assert (self.root / "boot/EFI/Linux" / entry).stat().st_size, f"{entry} does not boot"
        slot = entry.removeprefix("hob-").removesuffix(".efi")
        (self.root / "proc/cmdline").write_text(f"ro quiet root=PARTUUID=1 hob.slot={slot} panic=10\n")
        return slot

    def install(self, slot: str) -> None:
        """What RAUC does, with a kernel brought in by the bundle's hook."""
        self("set-state", slot, "bad")
        (self.root / f"boot/EFI/Linux/hob-{slot}.efi").write_text("kernel")
        self("set-primary", slot)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A device as it was flashed: slot B is empty, no variable is set, nothing is known of the slots."""
    for folder in ("bin", "proc", "boot/loader", "boot/EFI/Linux", "sys/firmware/efi/efivars"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bin/bootctl").write_text(BOOTCTL)
    (tmp_path / "bin/bootctl").chmod(0o755)
    (tmp_path / "boot/loader/loader.conf").write_text("timeout 0\ndefault hob-a.efi\neditor no\n")
    (tmp_path / "boot/EFI/Linux/hob-a.efi").write_text("kernel")
    (tmp_path / "proc/mounts").write_text(f"/dev/vda1 {tmp_path}/boot vfat rw,noatime 0 0\n")
    machine = Machine(tmp_path)
    machine.boot()
    yield machine
    assert not list((tmp_path / "boot/loader").glob("*.new"))


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
    assert (machine.root / "boot/loader/loader.conf").read_text() == (
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


def test_firmware_that_forgets(machine: Machine) -> None:
    """Without its variables the loader's file names the same default."""
    machine.install("b")
    machine.boot()
    machine("set-state", "b", "good")
    for variable in (machine.root / "sys/firmware/efi/efivars").iterdir():
        variable.unlink()
    assert machine("get-default") == "b"
    assert machine.boot() == "b"
    assert not machine.trial


def test_a_lost_file_of_the_loader(machine: Machine) -> None:
    """Without the loader's file the variable names the default; the next good boot writes the file anew."""
    machine.install("b")
    machine.boot()
    machine("set-state", "b", "good")
    (machine.root / "boot/loader/loader.conf").unlink()
    assert machine("get-default") == "b"
    machine("set-state", "b", "good")
    assert (machine.root / "boot/loader/loader.conf").read_text() == "default hob-b.efi\n"


def test_firmware_that_refuses(machine: Machine) -> None:
    """A variable that cannot be written is an error, and the old slot stays what boots."""
    machine.install("b")
    machine("set-primary", "a")
    refused = machine.run("set-primary", "b", FULL="1")
    assert refused.returncode != 0
    assert "No space left" in refused.stderr
    assert machine.boot() == "a"
    machine("set-primary", "b")
    machine.boot()
    assert machine.run("set-state", "b", "good", FULL="1").returncode != 0
    assert machine("get-state", "b") == "bad"
    assert machine.boot() == "a"


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


def test_a_boot_partition_that_is_only_read(machine: Machine) -> None:
    """It is made writable for the loader's file, and read-only again, also when something fails."""
    mounts, log = machine.root / "proc/mounts", machine.root / "mounted"
    mounts.write_text(f"/dev/vda1 {machine.root}/boot vfat ro,noatime 0 0\n")
    tool = machine.root / "bin/mount"
    tool.write_text(f'#!/bin/sh\necho "$@" >>{log}\n')
    tool.chmod(0o755)
    machine.install("b")
    machine.boot()
    assert not log.exists()  # choosing a slot for one boot writes nothing there
    machine("set-state", "b", "good")
    boot = machine.root / "boot"
    assert log.read_text() == f"-o remount,rw {boot}\n-o remount,ro {boot}\n"
    log.unlink()
    (boot / "loader/loader.conf").unlink()
    (boot / "loader").rmdir()
    (boot / "loader").write_text("damaged")
    assert machine.run("set-state", "b", "good").returncode != 0
    assert log.read_text().splitlines()[-1] == f"-o remount,ro {boot}"
