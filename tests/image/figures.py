"""Prints what the image costs, as JSON lines: `python -m tests.image.figures [NAME …]`.

Each line is `{"name", "value", "unit", "bar"}`; `bar` is the most that it may be (null: only to be known).
The times of starts are those of an emulated machine, so they are given as ratios to a bare Debian on the
same one.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from builder.image import gpt
from builder.image.cache import Cache, default_root
from tests.image import bare, building, people
from tests.image.boards import PC
from tests.image.building import Release
from tests.image.disk import Disk
from tests.image.emulator import Emulator, open_emulator
from tests.image.machine import Machine
from tests.systemd.container import PATIENCE, booted

MEGABYTE = 10**6
SETTLE = 240.0
"""Seconds that a machine is left alone before it counts as idle: the first minutes bring clean-up jobs."""
IDLE = 900.0
"""Seconds of idling that are measured; `HOB_TEST_IDLE` sets others."""

WITHOUT = 'extends = "nuc"\ncompiler = false\n'
"""The recipe of an image that cannot compile models itself."""

Line = dict[str, Any]


def line(name: str, value: float, unit: str, bar: float | None, **more: Any) -> Line:
    """A figure; `more` explains it."""
    return {"name": name, "value": round(value, 2), "unit": unit, "bar": bar, **more}


class Bench:
    """Builds once what several figures are taken from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = Cache(default_root())
        self.emulator: Emulator = open_emulator(self.cache)
        self._release: Release | None = None

    @property
    def release(self) -> Release:
        """The image for PCs."""
        if self._release is None:
            self._release = building.build("nuc", self.folder / "nuc", dict(os.environ))
        return self._release

    def machine(self, image: Path, name: str, **options: Any) -> Machine:
        """A machine with a probe, on a fresh disk with this image."""
        folder = self.folder / name
        folder.mkdir()
        disk = Disk.copy(self.emulator, image, folder / "disk.img")
        if name != "bare":
            disk.put("hob.toml", people.FIRST_BOOT)
        return Machine(self.emulator, disk, folder, probe=True, **options)


def size(bench: Bench) -> Iterator[Line]:
    """What is downloaded."""
    packed = bench.release.file(".img.xz").stat().st_size / MEGABYTE
    yield line("image, compressed", packed, "MB", 700)


def compiler(bench: Bench) -> Iterator[Line]:
    """What the compiler adds to it."""
    recipe = bench.folder / "small.toml"
    recipe.write_text(WITHOUT)
    smaller = building.build(recipe, bench.folder / "small", dict(os.environ)).file(".img.xz")
    added = bench.release.file(".img.xz").stat().st_size - smaller.stat().st_size
    yield line("image, the compiler's part", added / MEGABYTE, "MB", 120)


def rebuild(bench: Bench) -> Iterator[Line]:
    """The time of a build when only the application has changed: its version, which is in its files."""
    _ = bench.release
    begun = time.monotonic()
    building.build("nuc", bench.folder / "again", dict(os.environ), "--version", f"0.0.{int(time.time())}")
    yield line("rebuild after a change of the application", (time.monotonic() - begun) / 60, "min", 3)


def idle(bench: Bench) -> Iterator[Line]:
    """Memory and writes of a machine that nobody talks to."""
    with bench.machine(bench.release.unpack(), "idle") as machine:
        machine.wait()
        machine.probe("true")
        time.sleep(SETTLE)
        found = dict(re.findall(r"(\w+): +(\d+) kB", machine.probe("cat /proc/meminfo")))
        used = (int(found["MemTotal"]) - int(found["MemAvailable"])) * 1024
        # What is kept in compressed memory is not free either.
        yield line("memory in use when idle", used / MEGABYTE, "MB", 250, swapped=_swapped(found))
        seconds = float(os.environ.get("HOB_TEST_IDLE", IDLE))
        machine.probe("sync")
        before = machine.written()
        time.sleep(seconds)
        machine.probe("sync")  # what would only be written later counts too
        written = (machine.written() - before) * 3600 / seconds
        yield line("written in an idle hour", written / MEGABYTE, "MB", 5, measured_seconds=seconds)


def ready(bench: Bench) -> Iterator[Line]:
    """From the end of the kernel's part to the first possible answer, and to a bare Debian's last unit."""
    hob = bench.release.unpack()
    plain = bare.build(bench.cache, bench.folder / "bare.img")
    with bench.machine(plain, "bare") as machine:
        reference = _took(_in(machine), bare.READY)
    with bench.machine(hob, "first") as machine:
        machine.wait()
        first = _took(_in(machine), "hob.service")
        machine.power_off()
        disk, folder = machine.disk, machine.folder
    with Machine(bench.emulator, disk, folder, probe=True) as machine:
        machine.wait()
        later = _took(_in(machine), "hob.service")
    about = {"bare_seconds": reference, "emulated_seconds": later}
    yield line("ready, beside a bare Debian", later / reference, "ratio", None, **about)
    yield line("ready at the first start, beside a bare Debian", first / reference, "ratio", None)


def native(bench: Bench) -> Iterator[Line]:
    """The same at this machine's own speed: the image's systemd and units, without kernel and devices."""
    image = bench.release.unpack()
    with image.open("rb") as file:
        table = gpt.read(file.read(MEGABYTE))
    part = table.find("root-a") if table else None
    assert part
    root, system, layer = (bench.folder / name for name in ("root", "system", "layer"))
    for folder in (root, system, layer / "etc"):
        folder.mkdir(parents=True)
    (layer / "etc/fstab").touch()  # there are no partitions to wait for
    options = f"loop,ro,offset={part.start},sizelimit={part.size}"
    subprocess.run(["mount", "-t", "squashfs", "-o", options, image, root], check=True)
    try:
        with booted([layer, root], system) as container:
            seconds = _took(lambda command: container.run("sh", "-c", command), "hob.service", PATIENCE)
    finally:
        subprocess.run(["umount", root], check=True)
    yield line("ready, at this machine's speed", seconds, "s", 5)


def _in(machine: Machine) -> Callable[[str], str]:
    """Runs a line of shell in a machine, as soon as that can be done."""
    return lambda command: machine.probe(command, machine.board.patience)


def _took(run: Callable[[str], str], unit: str, patience: float = PC.patience) -> float:
    """Seconds from systemd's start to a unit's being active; `run` runs a line of shell beside it."""
    begun = int(run("systemctl show --value -p UserspaceTimestampMonotonic"))
    ask = f"systemctl show --value -p ActiveEnterTimestampMonotonic {unit}"
    deadline = time.monotonic() + patience
    while not (ended := int(run(ask))):
        assert time.monotonic() < deadline, f"{unit} never became active"
        time.sleep(1)
    return (ended - begun) / 1e6


def _swapped(found: dict[str, str]) -> float:
    """MB that were moved to compressed memory."""
    return round((int(found["SwapTotal"]) - int(found["SwapFree"])) * 1024 / MEGABYTE, 1)


FIGURES: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "size": size,
    "compiler": compiler,
    "rebuild": rebuild,
    "idle": idle,
    "ready": ready,
    "native": native,
}


def main(names: list[str]) -> None:
    """Take the figures of these names, or all of them."""
    if unknown := sorted({*names} - {*FIGURES}):
        sys.exit(f"no figures {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    with tempfile.TemporaryDirectory(prefix="hob-") as folder:
        bench = Bench(Path(folder))
        for name in names or FIGURES:
            for figure in FIGURES[name](bench):
                sys.stdout.write(json.dumps(figure) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
