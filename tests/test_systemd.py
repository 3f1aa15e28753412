"""The units are sound as far as systemd can tell without running them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[1] / "systemd"

# Where the units find their programs, and where they lie here.
PROGRAMS = {
    "/opt/hob/bin/hob": Path(sys.executable).with_name("hob"),
    "/opt/hob/bin/python": Path(sys.executable),
    "/usr/lib/hob/slots": UNITS.parent / "builder/image/system/common/usr/lib/hob/slots",
}

# The two that talk to strangers or run what came from them.
OPEN = {"hob.service", "hob-engine.service"}

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    """No unknown key, no misspelt value, no missing program once Hob is where the unit expects it."""
    for other in UNITS.iterdir():  # units name one another
        text = other.read_text()
        for installed, here in PROGRAMS.items():
            text = text.replace(installed, str(here))
        (tmp_path / other.name).write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / unit.name],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda unit: unit.name)
def test_little_is_exposed(unit: Path) -> None:
    """systemd's own measure of what a unit could do to the system stays low; 10 is everything."""
    assert exposure(unit) <= (2.0 if unit.name in OPEN else 2.5)


@pytest.mark.parametrize("unit", sorted(OPEN))
def test_little_more_is_exposed_with_a_gpu(unit: str, tmp_path: Path) -> None:
    """What a GPU needs costs a unit no more than the measure allows."""
    drop_in = (UNITS / "gpu.conf").read_text().replace("[Service]", "")
    # As systemd reads it: behind the unit's own keys, of which the last counts.
    section, _, install = (UNITS / unit).read_text().partition("[Install]")
    copy = tmp_path / unit
    copy.write_text(section + drop_in + ("[Install]" + install if install else ""))
    assert exposure(copy) <= 2.0


def exposure(unit: Path) -> float:
    """The overall exposure level of a unit."""
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", unit], capture_output=True, text=True, check=False
    )
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", result.stdout)
    assert found, result.stdout[-300:] + result.stderr
    return float(found[1])
